"""A run's figures as claims: nothing unstated, nothing that contradicts itself, and the run itself reproduces them."""

import pytest

from optsd.claims import files, template
from optsd.claims.checks import check
from optsd.errors import BadInput
from optsd.judge.claims import judge_claims
from optsd.judge.reading import read_all_claims
from optsd.records import Measurement, Results, Technique, Workload

WORK = Workload("sd15", "cuda", "float16", 50, 7.5, 512, 512, 4)


@pytest.fixture
def results():
    rows = []
    for variant, seconds in (("baseline", 2.5), ("int8", 1.8)):
        samples = (seconds, seconds * 1.01, seconds * 0.99)
        rows += [
            Measurement(variant, "latency_s", "s", seconds, seconds * 0.99, seconds * 1.01, samples),
            Measurement(variant, "speedup", "×", 2.5 / seconds, 2.4 / seconds, 2.6 / seconds),
            Measurement(variant, "peak_memory_bytes", "B", 6.2e9),
            Measurement(variant, "fid", "", 16.1),
            Measurement(variant, "fid_retention", "fraction", 0.99),
            Measurement(variant, "kid", "", None, note="too few pictures"),
        ]
    images = tuple({"variant": name, "prompt": "p", "seed": 1, "file": "f"} for name in ("baseline", "int8")) * 40
    proof = {"scheduler": "PNDMScheduler"}
    return Results(
        machine={"gpus": [{"name": "NVIDIA A100-SXM4-80GB"}], "git": {"commit": "0123abc4"}}, workload=WORK,
        measurements=tuple(rows), techniques=(Technique("int8", False, ("unet",), proof),), images=images,
        created="2026-11-25T12:00:00+00:00",
    )  # fmt: skip


def test_claims_of_a_run_can_be_checked_and_are_reproduced_by_it(results, tmp_path):
    file = tmp_path / "claims.json"
    files.write(template.of_results(results), file)
    claims = files.read(file).claims
    assert len(claims) == 8
    assert not any(claim.setting.missing() for claim in claims)
    assert all(claim.images.known for claim in claims)
    assert not check(claims).findings
    assert {claim.label for claim in claims if claim.metric.kind == "speedup"} <= check(claims).compared
    verdicts = [row for group in read_all_claims(file) for row in judge_claims(group, results)]
    assert {row.status for row in verdicts} == {"reproduced"}
    assert len(verdicts) == 8


def test_a_slower_run_does_not_reproduce_them(results, tmp_path):
    from dataclasses import replace

    file = tmp_path / "claims.json"
    files.write(template.of_results(results), file)
    slower = replace(
        results, measurements=tuple(replace(row, value=row.value * 2) if row.metric == "latency_s" else row
                                    for row in results.measurements),
    )  # fmt: skip
    (statuses,) = [
        {
            row.status
            for group in read_all_claims(file)
            for row in judge_claims(group, slower)
            if row.metric == "latency_s"
        }
    ]
    assert statuses == {"missed"}
    other = replace(results, machine={"gpus": [{"name": "Tesla T4"}]})
    notes = {row.note for group in read_all_claims(file) for row in judge_claims(group, other)}
    assert notes == {"Tesla T4 instead of NVIDIA A100-SXM4-80GB"}


def test_a_run_without_figures_claims_nothing(results):
    from dataclasses import replace

    with pytest.raises(BadInput, match="measured nothing that could be claimed"):
        template.of_results(replace(results, measurements=()))

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.judge.claims import judge_claim, judge_claims
from optsd.judge.expectations import GUIDE_TOLERANCES, Claim, Tolerance
from optsd.judge.reading import read_claims
from optsd.judge.verdicts import PASSING, nothing_was_judged
from optsd.metrics import metric
from optsd.records import Measurement

CLAIMS_FILE = Path(__file__).parents[2] / "expected" / "claims" / "guide.json"


@pytest.fixture(scope="session")
def claims():
    return read_claims(CLAIMS_FILE)


def claim_of(claims, variant, name, source="Expected Results Table"):
    return next(
        claim
        for claim in claims.claims
        if (claim.variant, claim.metric) == (variant, name) and claim.source.startswith(source)
    )


def test_the_guides_table_is_in_the_file(claims):
    def row(variant):
        return [claim_of(claims, variant, name).low for name in ("speedup", "memory_reduction", "fid", "clip")]

    assert row("baseline") == [1.0, 0.0, 15.8, 0.320]
    assert row("int8") == [1.39, 0.34, 16.2, 0.315]
    assert row("int4") == [1.79, 0.55, 17.1, 0.295]
    assert row("flash") == [1.19, 0.23, 15.9, 0.318]
    assert row("int8+flash") == [1.65, 0.42, 16.5, 0.308]
    assert claim_of(claims, "baseline", "latency_s", "Baseline Expectations").low == 2.5
    assert claim_of(claims, "baseline", "peak_memory_bytes", "Baseline Expectations").low == 6.2e9
    assert claim_of(claims, "int4", "speedup", "Optimization Targets").high == 1.8
    assert len(claims.claims) == 30


def test_tolerances_are_the_guides(claims):
    for claim in claims.claims:
        expected = GUIDE_TOLERANCES[metric(claim.metric).kind]
        assert claim.tolerance == expected or claim.low == 0
    assert round(1.39 * 1.19, 2) == 1.65  # what "Combined" is


@pytest.mark.parametrize(
    ("value", "status"),
    [(1.39, "reproduced"), (1.26, "reproduced"), (1.52, "reproduced"), (1.24, "missed"), (1.54, "exceeded")],
)
def test_speedup_of_int8(claims, guide_run, with_value, value, status):
    results = with_value(guide_run(), "int8", "speedup", value)
    verdict = judge_claim(claim_of(claims, "int8", "speedup"), claims, results)
    assert (verdict.status, verdict.measured, verdict.expected) == (status, value, 1.39)
    assert verdict.tolerance == "±10 %"
    assert verdict.source.endswith("guide.json: Expected Results Table, row INT8 Quant")


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [("fid", 15.0, "reproduced"), ("fid", 16.7, "reproduced"), ("fid", 17.0, "missed"), ("clip", 0.284, "missed")],
)
def test_bounds(claims, guide_run, with_value, name, value, status):
    results = with_value(guide_run(), "baseline", name, value)
    verdict = judge_claim(claim_of(claims, "baseline", name, "Baseline Expectations"), claims, results)
    assert verdict.status == status
    assert verdict.tolerance in ("at most, ±5 %", "at least, ±5 %")


def test_ranges(claims, guide_run, with_value):
    claim = claim_of(claims, "int4", "speedup", "Optimization Targets")
    statuses = [
        judge_claim(claim, claims, with_value(guide_run(), "int4", "speedup", value)).status
        for value in (1.4, 1.5, 1.7, 1.9, 2.0)
    ]
    assert statuses == ["missed", "reproduced", "reproduced", "reproduced", "exceeded"]
    assert judge_claim(claim, claims, guide_run()).tolerance == "1.6 to 1.8, ±10 %"


def test_an_interval_across_the_limit_is_mentioned(claims, guide_run, with_value):
    results = with_value(guide_run(), "int8", "speedup", 1.27, low=1.20, high=1.30)
    verdict = judge_claim(claim_of(claims, "int8", "speedup"), claims, results)
    assert verdict.status == "reproduced"
    assert verdict.note == "the interval 1.2 to 1.3 reaches across the limit 1.251"


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"steps": 20}, "steps 20 instead of 50"),
        ({"device": "cpu", "dtype": "float32"}, "device cpu instead of cuda, dtype float32 instead of float16"),
        ({"model": "shapes"}, "model shapes instead of sd15"),
    ],
)
def test_another_workload_is_not_comparable(claims, guide_run, change, note):
    results = guide_run()
    results = replace(results, workload=replace(results.workload, **change))
    verdicts = judge_claims(claims, results)
    assert {verdict.status for verdict in verdicts} == {"not comparable"}
    assert note in verdicts[0].note
    assert nothing_was_judged(verdicts)


def test_random_weights_count_for_speed_and_not_for_quality(claims, guide_run, with_value):
    results = with_value(guide_run(), "int8", "clip", 0.3)
    results = replace(results, workload=replace(results.workload, model="sd15-random"))
    assert judge_claim(claim_of(claims, "int8", "speedup"), claims, results).status == "reproduced"
    assert judge_claim(claim_of(claims, "int8", "clip"), claims, results).status == "not comparable"


def test_quality_of_fewer_pictures_is_not_comparable(claims, guide_run, with_value):
    results = with_value(guide_run(images=32), "int8", "clip", 0.315)
    verdict = judge_claim(claim_of(claims, "int8", "clip"), claims, results)
    assert (verdict.status, verdict.note) == ("not comparable", "32 pictures instead of 1000")


def test_what_is_absent_is_not_measured(claims, guide_run, with_value):
    claim = claim_of(claims, "int8", "speedup")
    for value in ("absent", None):
        assert judge_claim(claim, claims, with_value(guide_run(), "int8", "speedup", value)).status == "not measured"
    zero = judge_claim(claim, claims, with_value(guide_run(), "int8", "speedup", 0.0))
    assert (zero.status, zero.note) == ("not measured", "0 is no measurement")


def test_claims_about_variants_that_were_not_chosen_are_left_out(claims, guide_run):
    assert {verdict.variant for verdict in judge_claims(claims, guide_run(), ("baseline", "int8"))} == {
        "baseline",
        "int8",
    }


metrics = st.sampled_from(["speedup", "latency_s", "peak_memory_bytes", "memory_reduction", "fid", "clip"])
figures = st.floats(1e-3, 1e3)


@given(name=metrics, low=figures, width=st.sampled_from([0.0, 0.5, None]), value=figures, gain=figures)
def test_better_is_never_worse(claims, guide_run, name, low, width, value, gain):
    bounds = (
        (low, None)
        if width is None and metric(name).better == "higher"
        else (None, low)
        if width is None
        else (
            low,
            low + width,
        )
    )
    claim = Claim("int8", name, *bounds, Tolerance(relative=0.1), "made up")
    rank = ["missed", "reproduced", "exceeded"]
    better = value + gain if metric(name).better == "higher" else value / (1 + gain)
    ranks = []
    for figure in (value, better):
        results = replace(guide_run(rounds=1), measurements=(Measurement("int8", name, "", figure),))
        ranks.append(rank.index(judge_claim(claim, claims, results).status))
    assert ranks[1] >= ranks[0]


@given(
    name=metrics,
    value=st.one_of(st.none(), st.floats(-10, 10)),
    change=st.sampled_from([{}, {"steps": 49}, {"model": "shapes"}, {"device": "cpu"}, {"batch_size": 1}]),
)
def test_nothing_passes_by_absence(claims, guide_run, name, value, change):
    claim = Claim("int8", name, 0.5, 0.5, Tolerance(relative=0.1), "made up")
    row = Measurement("int8", name, "", value, note="failed")
    results = replace(guide_run(rounds=1), measurements=(row,))
    results = replace(results, workload=replace(results.workload, **change))
    status = judge_claim(claim, claims, results).status
    if change:
        assert status == "not comparable"
    elif value is None:
        assert status == "not measured"
    else:
        good = value >= 0.45 if metric(name).better == "higher" else value <= 0.55
        assert (status in PASSING) <= good


def test_the_file_is_what_its_schema_says():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((CLAIMS_FILE.parents[1] / "schema" / "claims.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(CLAIMS_FILE.read_text()), schema)

"""Which published claims a run can judge, as what, and which run they ask for."""

from dataclasses import replace

import pytest

from optsd.claims import rows
from optsd.claims.schema import Published
from optsd.errors import BadInput
from optsd.judge.chosen import choose
from optsd.judge.expectations import Claim, Claims, Tolerance
from optsd.judge.published import as_expectations, measured_as, workload_of

ROW = {
    "source": "A README", "url_or_path": "a page, Table 1", "technique": "DeepCache", "parameters": {"N": 3},
    "model": "runwayml/stable-diffusion-v1-5", "device": "A100", "dtype": "float16 (script)", "steps": 50,
    "scheduler": None, "guidance": None, "size": "512x768", "batch": 4, "images": None, "baseline": "SDPA",
    "metric": "speedup", "value": 2.3, "unit": "x", "notes": "", "seen": "primary",
}  # fmt: skip


def claim(**changes):
    return replace(rows.from_row({**ROW, **changes}), label="x 1")


@pytest.mark.parametrize(
    ("changes", "name", "figures"),
    [
        ({}, "speedup", {"expected": 2.3}),
        ({"unit": "% of time saved", "value": 50}, "speedup", {"expected": 2.0}),
        ({"unit": "% faster", "value": 37}, "speedup", {"expected": 1.37}),
        ({"unit": "% faster", "value": "30 to 40"}, "speedup", {"low": 1.3, "high": 1.4}),
        ({"unit": "x (up to)"}, "speedup", {"high": 2.3}),
        ({"unit": "%"}, "", {}),  # a rate gained, or time saved?
        ({"metric": '"Speed over xformers"'}, "", {}),  # of another baseline
        ({"metric": "latency per call (batch)", "unit": "ms", "value": 8000}, "latency_s", {"expected": 2.0}),
        ({"metric": "latency per image", "unit": "s", "value": 2}, "latency_s", {"expected": 2.0}),
        ({"metric": "latency per call", "unit": "s", "batch": None}, "", {}),
        ({"metric": "throughput", "unit": "images/s"}, "throughput_images_s", {"expected": 2.3}),
        ({"metric": "it/s", "unit": "it/s"}, "", {}),
        ({"metric": "peak memory", "unit": "GiB", "value": 2}, "peak_memory_bytes", {"expected": 2**31}),
        ({"metric": "peak memory", "unit": "GB (max_memory_reserved)"}, "", {}),
        ({"metric": "memory factor", "unit": "x less", "value": 4}, "memory_reduction", {"expected": 0.75}),
        ({"metric": "CLIP score", "unit": "cosine x100", "value": 32}, "clip", {"expected": 0.32}),
        ({"metric": "CLIP score", "unit": "cosine x100, ViT-g/14"}, "", {}),  # another network's cosines
        ({"metric": "FID change", "unit": ""}, "", {}),
        ({"metric": "outcome", "unit": "", "value": "OOM"}, "", {}),
    ],
)
def test_a_claim_in_optsds_own_metrics(changes, name, figures):
    found, values = measured_as(claim(**changes))
    assert (found, values) == (name, pytest.approx(figures))


def test_a_workload_has_what_is_stated_and_no_more():
    assert workload_of(claim()) == (
        {"device": "cuda", "dtype": "float16", "steps": 50, "batch_size": 4, "width": 512, "height": 768}, "A100",
    )  # fmt: skip
    assert workload_of(claim(device=None, dtype="autocast", size=None, batch="16 (README)")) == (
        {"steps": 50, "batch_size": 16}, "",
    )  # fmt: skip
    assert workload_of(claim(device="4th gen Xeon"))[0]["device"] == "cpu"


def test_claims_are_grouped_by_workload_and_two_figures_for_one_thing_both_stay():
    claims = (claim(), claim(value=2.5), claim(steps=20), claim(technique="T-GATE"))
    first, second = as_expectations(Published("x.json", "A README", claims))
    assert [row["expected"] for row in first["claims"]] == [2.3, 2.5]
    assert first["claims"][1]["source"] == "Table 1 (x 1)"
    assert second["workload"]["steps"] == 20
    assert first["models"]["performance"] == [
        "sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15-random", "runwayml/stable-diffusion-v1-5",
    ]  # fmt: skip


def group(count=1, metric="speedup", images=None, **workload):
    one = Claim("deepcache:3", metric, 2.0, 2.0, Tolerance(relative=0.1), "Table 1")
    models = {"performance": ("sd15", "sd15-random"), "quality": ("sd15",)}
    return Claims("x.json", "A README", workload, images, models, (one,) * count)


def test_the_workload_with_the_most_claims_is_run():
    chosen = choose([group(2, steps=20), group(5, steps=50, width=512, height=512), group(1, steps=4)], {})
    assert chosen.options == {"model": "sd15", "steps": 50, "size": "512"}
    assert chosen.assumed == ("dtype", "guidance", "batch_size", "images")
    assert chosen.variants == ("baseline", "deepcache:3")
    assert [each.workload["steps"] for each in chosen.others] == [20, 4]


def test_what_the_user_sets_decides_between_workloads():
    groups = [group(5, steps=50, width=512, height=512), group(1, steps=4)]
    chosen = choose(groups, {"steps": 4, "model": "sd15-random"})
    assert chosen.claims.workload["steps"] == 4
    assert chosen.options == {}
    assert choose(groups, {"steps": 7}).claims.workload["steps"] == 50  # none fits: the most claims, and they say why


def test_pictures_are_asked_for_where_there_are_prompts_for_them():
    assert choose([group(metric="fid", images=1000)], {}).options["images"] == 1000
    assert "images" not in choose([group(metric="fid", images=30000)], {}).options
    assert "images" not in choose([group(images=1)], {}).options


def test_files_without_a_claim_that_can_be_judged():
    with pytest.raises(BadInput, match="no claim of these files can be judged by a run"):
        choose([], {})

from dataclasses import replace
from pathlib import Path

import pytest

from optsd.errors import BadInput, Unsupported
from optsd.estimate import bounds, claims, measurements, roofline
from optsd.estimate.devices import DEVICES
from optsd.judge.claims import judge_claims
from optsd.judge.expectations import Claim, Tolerance
from optsd.judge.reading import read_claims
from optsd.records import Measurement, Results

FILE = Path(__file__).parents[2] / "expected" / "claims" / "guide.json"


@pytest.fixture(scope="module")
def found(eager, fused):
    return bounds.bounds(read_claims(FILE), eager, fused)


def status(found, variant, metric):
    return {one.status for one in found if (one.claim.variant, one.claim.metric) == (variant, metric)}


def test_the_guides_memory_claims(found):
    assert status(found, "int8", "memory_reduction") == {"unattainable"}  # 34 % and 35 %: the weights are a third
    assert status(found, "int4", "memory_reduction") == {"unattainable"}  # 55 %
    assert status(found, "flash", "memory_reduction") == {"possible"}
    assert status(found, "int8+flash", "memory_reduction") == {"possible"}
    assert status(found, "baseline", "peak_memory_bytes") == {"possible"}


def test_quality_claims_have_no_bound(found):
    assert {one.claim.metric for one in found} == {"speedup", "memory_reduction", "latency_s", "peak_memory_bytes"}


def test_a_bound_shows_its_arithmetic(found):
    int8 = next(one for one in found if (one.claim.variant, one.claim.metric) == ("int8", "memory_reduction"))
    assert 0.14 < int8.limit < 0.18
    assert int8.arithmetic.startswith("baseline 6.20 GiB = weights 1.99 + scores 4.00")


def test_perfect_weights(eager, fused):
    linear, whole = bounds.weight_share(eager, "linear"), bounds.weight_share(eager, "denoiser")
    assert linear / 2 / whole == pytest.approx(0.157, abs=0.001)  # all that Linear alone can save at 8 bits
    assert linear * 3 / 4 / whole == pytest.approx(0.236, abs=0.001)  # and at 4
    assert bounds.weight_share(eager, "convolution") / whole == pytest.approx(0.685, abs=0.002)
    assert bounds.weight_share(eager, "all") > whole
    assert bounds.memory_after(fused, 8) < bounds.memory_after(fused, 8, "denoiser") < fused.peak_bytes
    assert bounds.memory_after(fused, 16, sliced=True) < bounds.memory_after(fused, 16) == fused.peak_bytes


def test_speed_bounds_are_ordered(eager, fused):
    for variant in ("int8", "int4", "flash", "int8+flash", "kvcache", "int8+flash+kvcache"):
        limit = bounds.speed(bounds.techniques_of(variant), eager, fused)
        assert 1 <= limit.at_roofline <= limit.most, variant
        assert limit.most <= 1 / bounds.SLOWEST * limit.at_roofline
        assert "A100" in limit.arithmetic
    one = bounds.speed(("int8",), eager, fused).most
    assert bounds.speed(("int8", "flash"), eager, fused).at_roofline > bounds.speed(("int8",), eager, fused).at_roofline
    assert bounds.speed(("baseline",), eager, fused).most == pytest.approx(1)
    assert bounds.speed(("int4",), eager, fused).most >= one
    # At best a mixture is as if all its layers had the fewest bits.
    for mixed in ("int8:up_blocks.*=int4", "int4:up_blocks.*=float"):
        assert bounds.speed(bounds.techniques_of(mixed), eager, fused) == bounds.speed(("int4",), eager, fused)
        assert bounds.memory(bounds.techniques_of(mixed), eager, fused) == bounds.memory(("int4",), eager, fused)


def test_a_key_value_cache_cannot_be_fast(eager, fused):
    assert bounds.speed(("kvcache",), eager, fused).most < 1.05


@pytest.mark.parametrize(
    ("technique", "metric", "low", "high", "expected"),
    [
        ("kvcache", "speedup", 1.5, 1.5, "unattainable"),
        ("kvcache", "speedup", 1.1, 1.1, "possible"),  # within the tolerance
        ("int8", "memory_reduction", 0.1, 0.1, "possible"),
        ("baseline", "latency_s", 0.01, 0.01, "unattainable"),
        ("baseline", "peak_memory_bytes", 4e9, 4e9, "unattainable"),
        ("baseline", "peak_memory_bytes", 9e9, 9e9, "possible"),
        ("flash", "latency_s", 1.0, 1.0, "not bounded"),
        ("tome", "speedup", 1.3, 1.3, "not bounded"),
    ],
)
def test_claims_against_bounds(technique, metric, low, high, expected, eager, fused):
    claim = Claim(technique, metric, low, high, Tolerance(relative=0.1), "somebody")
    made = replace(read_claims(FILE), claims=(claim,))
    (bound,) = bounds.bounds(made, eager, fused)
    assert bound.status == expected


def test_bounds_are_of_the_claims_own_workload(eager, fused):
    other = replace(eager, workload=replace(eager.workload, batch_size=1))
    with pytest.raises(BadInput, match="the claims are about batch_size 4, the estimate is of 1"):
        bounds.bounds(read_claims(FILE), other, fused)


def test_techniques_without_a_bound():
    assert bounds.techniques_of("combined") == ("int8", "flash")
    with pytest.raises(Unsupported, match="deepcache:3 has no bound"):
        bounds.techniques_of("deepcache:3")
    with pytest.raises(Unsupported, match="int8:all has no bound"):
        bounds.techniques_of("int8:all")


def judged(results, claims, traces):
    results = replace(results, verdicts=judge_claims(claims, results))
    return bounds.compare(claims, results, DEVICES["a100"], traces.__getitem__)


def test_claimed_bound_and_measured_side_by_side(eager, fused):
    rows = (Measurement("flash", "speedup", "×", 1.2), Measurement("flash", "latency_s", "s", 2.0))
    results = Results({}, eager.workload, measurements=rows)
    seen = judged(results, read_claims(FILE), {"baseline": eager, "sdpa": fused, "flash": fused})
    row = next(row for row in seen.bounds if (row["variant"], row["metric"]) == ("flash", "speedup"))
    assert (row["claimed"], row["measured"], row["status"]) == (1.19, 1.2, "possible")
    assert seen.get("flash", "roofline_share").value == roofline.of_roofline(2.0, fused)
    assert 0 < seen.get("flash", "mfu").value < seen.get("flash", "roofline_share").value
    assert {row["variant"] for row in seen.bounds} == {"baseline", "flash"}


def test_a_claim_beyond_its_bound_is_unattainable_unless_it_was_measured_to_hold(eager, fused):
    claims = read_claims(FILE)
    for measured, status in ((0.12, "unattainable"), (0.34, "reproduced")):
        results = Results({}, eager.workload, (Measurement("int8", "memory_reduction", "fraction", measured),))
        seen = judged(results, claims, {"baseline": eager, "sdpa": fused})
        verdict = next(row for row in seen.verdicts if (row.variant, row.expected) == ("int8", 0.34))
        assert (verdict.status, verdict.measured) == (status, measured)
        assert verdict.note.startswith("at most 0.16: baseline 6.20 GiB = ") == (status == "unattainable")


def test_an_estimate_is_no_measurement(eager, fused):
    rows = (*measurements(fused, eager), Measurement("int8", "memory_reduction", "fraction", 0.15, note="estimate"))
    results = Results({}, replace(eager.workload, device="estimate:a100"), rows)
    seen = judged(results, read_claims(FILE), {"baseline": eager, "sdpa": fused})
    assert all(row.measured is None for row in seen.verdicts)
    assert all(row["measured"] is None for row in seen.bounds)
    assert seen.get("sdpa", "mfu") is None
    assert {row.status for row in seen.verdicts} == {"unattainable", "not comparable"}


def test_what_the_claims_are_not_about_has_no_bounds(eager, fused):
    other = Results({}, replace(eager.workload, batch_size=1))
    assert judged(other, read_claims(FILE), {}).bounds == ()


def test_the_document_says_what_the_bounds_say(found):
    """docs/claims.md is made by a command; this fails when it was not made again."""
    page = claims.DOCUMENT.read_text(encoding="utf-8")
    for bound in found:
        cell = f"**{bound.status}**" if bound.status == "unattainable" else bound.status
        limit = f"{bound.limit:.3g}"
        assert f"| {bound.claim.variant} | {bound.claim.metric} |" in page
        assert any(
            line.startswith(f"| {bound.claim.variant} | {bound.claim.metric} |") and f"| {limit} | {cell} |" in line
            for line in page.splitlines()
        ), bound

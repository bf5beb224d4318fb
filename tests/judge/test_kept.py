"""Whether a variant keeps its quality: how often the rule errs, and how many pictures it takes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.judge.kept import decide, fewest, judge_kept, kept, score
from optsd.records import Measurement

ERROR = 0.05


def scores(count: int, keeps: float, seed: int, good: float = 0.95) -> list[tuple[float, float]]:
    """As the shipped model's: none, half or all of a picture's two objects; the variant loses some of them."""
    generator = np.random.default_rng(seed)
    before = generator.binomial(2, good, count) / 2
    after = np.where(generator.random(count) < keeps, before, 0)
    return list(zip(after.tolist(), before.tolist(), strict=True))


@pytest.mark.parametrize("keeps", [0.95, 0.9])
def test_what_loses_as_much_as_is_allowed_or_more_is_hardly_ever_called_kept_however_often_one_looks(keeps) -> None:
    wrong = 0
    for seed in range(200):
        pictures = scores(256, keeps - 1e-9, seed)
        wrong += any(decide(pictures[:count], 0.95, ERROR) == "kept" for count in range(32, 257, 16))
    assert wrong <= ERROR * 200


def test_a_rare_total_loss_is_not_overlooked() -> None:
    """One picture in ten is lost entirely: a median, or a cut-off of large losses, would not see it."""
    assert decide([(1.0, 1.0)] * 9 + [(0.0, 1.0)], 0.95, ERROR) == "insufficient data"
    assert decide(([(1.0, 1.0)] * 9 + [(0.0, 1.0)]) * 60, 0.95, ERROR) == "lost"


def test_what_keeps_everything_is_shown_to_and_what_loses_a_third_to_lose() -> None:
    assert decide(scores(400, 0.999, 1), 0.95, ERROR) == "kept"
    assert decide(scores(100, 0.67, 1), 0.95, ERROR) == "lost"
    assert decide(scores(20, 1, 1), 0.95, ERROR) == "insufficient data"
    assert decide([], 0.95, ERROR) == "insufficient data"


@pytest.mark.parametrize("asked", [0.8, 0.95, 0.98])
@pytest.mark.parametrize("error", [0.05, 0.0015])
def test_the_fewest_pictures_are_just_enough(asked, error) -> None:
    count = fewest(asked, error)
    assert decide([(1.0, 1.0)] * count, asked, error) == "kept"
    assert decide([(1.0, 1.0)] * (count - 1), asked, error) != "kept"


@given(
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 2), min_size=1, max_size=80),
    st.floats(0.5, 0.99),
)
@settings(deadline=None, max_examples=60)
def test_status_and_interval_say_the_same(pictures, asked) -> None:
    found = kept(pictures, asked, ERROR)
    assert found.status == decide(pictures, asked, ERROR)
    assert 0 <= found.low <= found.high
    # but for the last digits of a bisection, as the asked share may lie just there
    if found.status == "kept":
        assert found.low >= asked - 1e-6
    elif found.low > asked + 1e-6:
        raise AssertionError("the interval is above what was asked, and the status does not say so")
    if found.status == "lost":
        assert found.high <= asked + 1e-6


def test_a_baseline_that_has_nothing_right_proves_nothing() -> None:
    found = kept([(0.0, 0.0)] * 500, 0.95, ERROR)
    assert (found.status, found.share) == ("insufficient data", 1.0)


@pytest.mark.parametrize("wrong", [[(1.5, 1.0)], [(0.5, -0.1)], [(float("nan"), 1.0)]])
def test_what_is_no_score(wrong) -> None:
    with pytest.raises(BadInput, match="not between 0 and 1"):
        kept(wrong, 0.95, ERROR)
    with pytest.raises(BadInput, match="cannot be shown"):
        kept([(1.0, 1.0)], 1.0, ERROR)


def run(make_run, before: list[float], after: list[float] | None):
    given = {"baseline": before} | ({} if after is None else {"int8": after})
    rows = [
        Measurement(name, "objects_right", "", float(np.mean(samples)), samples=tuple(samples))
        for name, samples in given.items()
    ]
    return replace(make_run(extra=tuple(rows)), techniques=())  # as a run of quality alone has it


@pytest.mark.parametrize(
    ("after", "status"),
    [
        ([1.0] * 120, "kept"),
        ([1.0, 0.0] * 60, "lost"),
        ([*[1.0] * 114, *[0.0] * 6], "insufficient data"),
        (None, "not measured"),
        ([1.0] * 60, "not measured"),  # of other pictures
    ],
)
def test_verdicts_are_of_each_variant_and_say_how_much(make_run, after, status) -> None:
    (verdict,) = judge_kept(run(make_run, [1.0] * 120, after), "objects_right", 0.95, ["baseline", "int8"])
    assert (verdict.variant, verdict.status, verdict.expected) == ("int8", status, 0.95)
    assert verdict.note
    if status == "lost":
        assert verdict.note.startswith("50.0% [")


def test_an_exact_variant_keeps_it_unless_its_pictures_say_otherwise(make_run) -> None:
    for exact, after, status in ((True, 1.0, "kept"), (False, 1.0, "insufficient data"), (True, 0.0, "lost")):
        found, names = run(make_run, [1.0] * 20, [after] * 20), ["int8"] * exact
        assert judge_kept(found, "objects_right", 0.95, ["int8"], names)[0].status == status


def test_a_prompts_seeds_are_one_reading(make_run) -> None:
    """Two seeds of 60 prompts, of which one fails each time: half of every prompt is lost, not every other one."""
    whole = run(make_run, [1.0] * 120, [1.0] * 60 + [0.0] * 60)
    assert "over 60 prompts" in judge_kept(whole, "objects_right", 0.95, ["int8"], seeds=2)[0].note
    assert judge_kept(whole, "objects_right", 0.95, ["int8"], seeds=2)[0].measured == 0.5


@pytest.mark.parametrize(
    ("metric", "reading", "expected"),
    [
        *(("clip", 0.25, 0.5), ("clip", -0.1, 0), ("clip", 0.7, 1), ("clip_shapes", 0.9, 0.9)),
        *(("lpips", 0.1, 0.9), ("lpips_shapes", 1.4, 0), ("ssim", 0.8, 0.8), ("objects_right", 0.5, 0.5)),
    ],
)
def test_readings_become_scores_between_0_and_1(metric, reading, expected) -> None:
    assert score(metric, np.array([reading])) == pytest.approx(expected)

"""Whether a variant keeps its quality: how often the rule errs, and how many pictures it takes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.judge.kept import decide, fewest, kept

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

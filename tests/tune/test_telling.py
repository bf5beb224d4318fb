"""What is said of figures: shares, likenesses and distances, each in its own words and under its own name."""

import pytest

from optsd.tune import telling
from optsd.tune.search import Ask, Candidate, Demand, Known


def known(metric: str, share: float, score: float, exact: bool = False, pictures: int = 400) -> Known:
    demand = Demand(metric, share)
    scores = {metric: [(score, 1.0)] * pictures}
    return Known(Candidate("sdpa", exact), Ask((demand,)), 0.002, ratios=[0.5] * 40, scores=scores, blocks=50)


@pytest.mark.parametrize(
    ("one", "asked", "kept", "name", "value"),
    [
        (
            known("objects_right", 0.95, 1.0),
            "0.95 of the baseline's objects right kept",
            "keeps 100.0% of objects right (at least 9",
            "objects_right_retention",
            1.0,
        ),
        (known("ssim", 0.9, 0.96), "SSIM at least 0.9", "SSIM 0.960 (at least 0.9", "ssim", 0.96),
        (
            known("lpips_shapes", 0.95, 0.98),
            "LPIPS (shapes) at most 0.05",
            "LPIPS (shapes) 0.020 (at most 0.0",
            "lpips_shapes",
            0.02,
        ),
    ],
)
def test_each_metric_in_its_own_words_and_under_its_own_name(one, asked, kept, name, value) -> None:
    demand = one.ask.demands[0]
    assert telling.demanded(demand) == asked
    assert telling._kept_in_words(one, demand).startswith(kept)
    speedup, quality = telling._measurements(one)
    assert (speedup.metric, speedup.value) == ("speedup", 2.0)
    assert quality.metric == name
    assert quality.value == pytest.approx(value)
    assert quality.low is None or quality.low <= quality.value <= quality.high


def test_an_exact_one_is_said_to_be_exact_and_not_proved() -> None:
    one = known("objects_right", 0.95, 1.0, exact=True, pictures=8)
    assert telling._kept_in_words(one, one.ask.demands[0]).startswith("the same mathematics: keeps 100.0%")
    assert telling.standing(one) == "wins (exact)"


def test_an_interval_that_is_open_is_not_drawn() -> None:
    one = known("objects_right", 0.95, 1.0, pictures=8)
    one.ratios = one.ratios[:2]
    assert all((row.low, row.high) == (None, None) for row in telling._measurements(one))
    assert telling.standing(one) == "not proved: its gain and its quality"

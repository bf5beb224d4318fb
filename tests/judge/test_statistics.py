import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.judge.statistics import (
    FEWEST_ROUNDS,
    change_interval,
    difference_interval,
    median_interval,
    paired_ratios,
    ratio_interval,
    rounds_needed,
)

readings = st.lists(st.floats(1e-3, 1e3), min_size=FEWEST_ROUNDS, max_size=30)


@given(readings)
def test_interval_holds_the_median_and_stays_within_the_readings(samples):
    value, low, high = median_interval(samples)
    assert min(samples) <= low <= value <= high <= max(samples)


@given(readings, st.floats(0.01, 100))
def test_intervals_scale_with_the_unit(samples, factor):
    scaled = median_interval([sample * factor for sample in samples])
    assert scaled == pytest.approx(tuple(bound * factor for bound in median_interval(samples)))


def test_same_readings_give_the_same_interval():
    samples = list(np.random.default_rng(7).lognormal(0, 0.2, 12))
    assert median_interval(samples) == median_interval(samples)


@pytest.mark.parametrize("rounds", [FEWEST_ROUNDS, 8, 12, 20])
def test_intervals_cover_the_truth_about_as_often_as_they_say(rounds):
    generator = np.random.default_rng(rounds)
    covered = 0
    for _ in range(200):
        _, low, high = median_interval(generator.lognormal(0, 0.3, rounds))
        covered += low <= 1 <= high
    assert covered / 200 > 0.90


@pytest.mark.parametrize("samples", [[2.0], [2.0, 3.0], [2.0, 2.5, 3.0], [2.0, 2.2, 2.8, 3.0]])
def test_few_readings_give_their_range(samples):
    assert median_interval(samples) == (np.median(samples), min(samples), max(samples))


def test_ratio_is_the_speedup_and_pairing_removes_what_rounds_share():
    generator = np.random.default_rng(0)
    load = generator.uniform(1, 3, 15)  # a machine that others use: every round is slowed by another factor
    speedup = ratio_interval(1.39 * load, 1.0 * load)
    assert speedup == pytest.approx((1.39, 1.39, 1.39))


def test_change_between_sessions_is_seen_with_its_uncertainty():
    generator = np.random.default_rng(1)
    before, after = generator.normal(1, 0.03, 20), generator.normal(1.3, 0.03, 20)
    value, low, high = change_interval(before, after)
    assert 1.2 < low < value < high < 1.4
    _, low, high = change_interval(before, before)
    assert low < 1 < high


def test_difference_between_sessions():
    value, low, high = difference_interval([1.0, 1.1, 0.9, 1.0, 1.05], [2.0, 2.1, 1.9, 2.0, 2.05])
    assert value == pytest.approx(1.0)
    assert 0.8 <= low <= value <= high <= 1.2


def test_rounds_needed_grows_with_the_square_of_the_width():
    assert rounds_needed(10, half_width=0.10, distance=0.05) == 40
    assert rounds_needed(10, half_width=0.01, distance=0.05) == 11
    assert rounds_needed(10, half_width=0.10, distance=0) is None
    assert rounds_needed(10, half_width=1e3, distance=1e-6) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: median_interval([]), "no readings; give at least one"),
        (lambda: median_interval([1, math.nan]), "not finite; leave out what was not measured"),
        (lambda: median_interval([1, math.inf]), "not finite"),
        (lambda: paired_ratios([1, 2], [1]), "2 rounds of the baseline and 1 of the variant are no pairs"),
        (lambda: paired_ratios([1, 0], [1, 1]), "baseline samples: a reading is not above zero"),
        (lambda: ratio_interval([1, 1], [1, -1]), "variant samples: a reading is not above zero"),
        (lambda: change_interval([0.0], [1.0]), "reference: a reading is not above zero"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(BadInput, match=message):
        call()

"""Intervals of medians and of ratios, by the percentile bootstrap, with a fixed seed. NumPy only.

Medians, because a busy machine slows single rounds by any factor; ratios of interleaved rounds, because both sides of
a ratio then meet the same machine. Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from optsd.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
FEWEST_ROUNDS = 6
"""Fewer readings hold no 95 % interval of a median: of n readings all are on one side with probability 2 / 2^n,
which is 12.5 % for 4, 6.25 % for 5 and 3.1 % for 6."""
RESAMPLES = 4000


class Interval(NamedTuple):
    """An estimate and the bounds of its 95 % confidence interval.

    Below `FEWEST_ROUNDS` readings the bounds are about the lowest and the highest reading and promise nothing: the
    judge takes no decision on them.
    """

    value: float
    low: float
    high: float


def median_interval(samples: Sequence[float]) -> Interval:
    """The median of readings (any unit) and its interval. Raises BadInput for no reading, or one that is not finite."""
    import numpy as np

    readings = _checked(samples, "samples")
    return Interval(float(np.median(readings)), *_percentiles(_resampled_medians(readings, seed=0)))


def enough(found: Interval, count: int) -> tuple[float, float] | None:
    """The interval's ends, where it is of so many readings that it promises something."""
    return (found.low, found.high) if count >= FEWEST_ROUNDS else None


def ratio_interval(baseline_samples: Sequence[float], variant_samples: Sequence[float]) -> Interval:
    """Baseline ÷ variant, paired by round: of seconds it is the speedup, above 1 when the variant is faster.

    Reading i of both must come from the same round of one session. Raises BadInput when the counts differ or a
    reading is not above zero.
    """
    return median_interval(paired_ratios(baseline_samples, variant_samples))


def paired_ratios(baseline_samples: Sequence[float], variant_samples: Sequence[float]) -> tuple[float, ...]:
    """Baseline ÷ variant for each round."""
    if len(baseline_samples) != len(variant_samples):
        raise BadInput(
            f"{len(baseline_samples)} rounds of the baseline and {len(variant_samples)} of the variant are no pairs",
            "time both in every round",
        )
    baseline = _checked(baseline_samples, "baseline samples", above_zero=True)
    variant = _checked(variant_samples, "variant samples", above_zero=True)
    return tuple(float(ratio) for ratio in baseline / variant)


def change_interval(reference: Sequence[float], current: Sequence[float]) -> Interval:
    """Median of `current` ÷ median of `reference`, for readings of two sessions, which no round pairs."""
    import numpy as np

    before = _checked(reference, "reference", above_zero=True)
    after = _checked(current, "current", above_zero=True)
    value = float(np.median(after) / np.median(before))
    # Two seeds: with one, equal readings would be resampled alike and their ratio would seem certain.
    ratios = _resampled_medians(after, seed=1) / _resampled_medians(before, seed=2)
    return Interval(value, *_percentiles(ratios))


def difference_interval(reference: Sequence[float], current: Sequence[float]) -> Interval:
    """Median of `current` − median of `reference`, in their unit, for readings of two sessions."""
    import numpy as np

    before, after = _checked(reference, "reference"), _checked(current, "current")
    value = float(np.median(after) - np.median(before))
    return Interval(value, *_percentiles(_resampled_medians(after, seed=1) - _resampled_medians(before, seed=2)))


def rounds_needed(rounds: int, half_width: float, distance: float) -> int | None:
    """How many rounds in all until the interval leaves the limit out, its width going with 1 / sqrt(rounds).

    `half_width` of the interval now, `distance` from the estimate to the limit. None when no number will do.
    """
    if distance <= 0 or not math.isfinite(half_width / distance):
        return None
    needed = math.ceil(rounds * (half_width / distance) ** 2)
    return max(needed, rounds + 1) if needed <= 10_000 else None


def _checked(samples: Sequence[float], name: str, above_zero: bool = False) -> "np.ndarray":
    import numpy as np

    readings = np.asarray(samples, dtype=float)
    if readings.ndim != 1 or not readings.size:
        raise BadInput(f"{name}: no readings", "give at least one")
    if not np.isfinite(readings).all():
        raise BadInput(f"{name}: a reading is not finite", "leave out what was not measured")
    if above_zero and (readings <= 0).any():
        raise BadInput(f"{name}: a reading is not above zero", "leave out what was not measured")
    return readings


def _resampled_medians(readings: "np.ndarray", seed: int) -> "np.ndarray":
    import numpy as np

    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, readings.size, size=(RESAMPLES, readings.size))
    # Many short rows: sorting them takes a fortieth of the time of np.median.
    resampled = np.sort(readings[chosen], axis=1)
    return (resampled[:, (readings.size - 1) // 2] + resampled[:, readings.size // 2]) / 2


def _percentiles(estimates: "np.ndarray") -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(estimates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)

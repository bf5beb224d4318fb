"""Is one build slower than another? An answer that may be asked for after every round, and still errs as rarely.

Two builds are timed in turn, in an order drawn anew each round. x = log(ours ÷ theirs) of a round is then symmetric
about the true change: whatever the machine does to one it could have done to the other. Of two equal builds that holds
exactly, however the noise drifts and bursts, because the order is a fair coin.

A bet is laid against "the change is at most m": capital starts at 1 and is multiplied in each round by
1 + λ·ψ((x − m) / s), where ψ cuts off at ±1 as Huber's does, so that a round that is late by any factor counts as one
that is late by s. If the bet is wrong, capital grows with probability α to 1/α at any time (Ville, 1939), so one may
look after every round and stop when one likes. Capital is spread over several λ and s before the first round, so that
nothing is tuned on the readings: it depends on which readings there are and not on their order, and no faster reading
ever makes it grow.

Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024); Howard & Ramdas,
"Sequential estimation of quantiles with applications to A/B testing", Bernoulli 28 (2022), whose test by signs is that
of the smallest s; Huber, "Robust estimation of a location parameter" (1964). NumPy only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optsd.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

RED = 0.005
"""Of equal builds at most this share is ever called slower, or faster, whenever one stops."""
SAME = 0.05
"""Of builds that differ by the tolerance at most this share is ever called the same."""
BETS = (0.03, 0.06, 0.12, 0.25, 0.5, 0.95)  # λ, the share of the capital that is at stake
SCALES = (0.01, 0.04, 0.16)  # s, in log-ratios: of a quiet machine, of a shared one, of a busy one

Status = Literal["slower", "faster", "same", "insufficient data"]


@dataclass(frozen=True)
class Answer:
    """`change` is ours ÷ theirs − 1 in time: 0.12 is 12 % slower. `low` and `high` hold whenever one stops."""

    status: Status
    change: float
    low: float  # of a 99 % confidence sequence
    high: float
    rounds: int

    def __str__(self) -> str:
        if not self.rounds:
            return "no rounds"
        bounds = ", ".join("?" if math.isinf(bound) else f"{bound:+.1%}" for bound in (self.low, self.high))
        return f"{self.change:+.1%} in time [{bounds}], {self.rounds} rounds"


def answer(ratios: Sequence[float], tolerance: float) -> Answer:
    """What the rounds so far say of ours ÷ theirs, in time, against a tolerance of 0.05 for ±5 %.

    `slower`: by more than the tolerance. `faster`: likewise. `same`: neither is true. `insufficient data`: go on.
    Raises BadInput for a ratio that is not above zero and finite, or a tolerance that is none.
    """
    import numpy as np

    if not 0 < tolerance < 1:
        raise BadInput(f"a tolerance of {tolerance:g} decides nothing", "give one between 0 and 1, such as 0.05")
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise BadInput("a ratio of two times is not above zero", "leave out what was not measured")
    if not ratios:
        return Answer("insufficient data", 0.0, -1.0, math.inf, 0)
    x = np.log(np.asarray(ratios, dtype=float))
    low, high = interval(ratios)
    return Answer(_status(x, math.log1p(tolerance)), math.expm1(float(np.median(x))), low - 1, high - 1, len(x))


def decide(ratios: Sequence[float], tolerance: float) -> Status:
    """The status alone, without its interval: what a run asks after every round."""
    import numpy as np

    return _status(np.log(np.asarray(ratios, dtype=float)), math.log1p(tolerance)) if ratios else "insufficient data"


def _status(x: "np.ndarray", limit: float) -> Status:
    """Of log-ratios. The first that is proved; two can be so at once only where a bet has been lost."""
    red, same = math.log(1 / RED), math.log(1 / SAME)
    if log_capital(x, limit) >= red:
        return "slower"
    if log_capital(-x, limit) >= red:
        return "faster"
    if log_capital(-x, -limit) >= same and log_capital(x, -limit) >= same:
        return "same"
    return "insufficient data"


def log_capital(x: "np.ndarray", m: float, scales: Sequence[float] = SCALES) -> float:
    """The logarithm of what the bets against "the change is at most m" have become."""
    import numpy as np

    psi = np.clip((x - m) / np.asarray(scales)[:, None], -1, 1)  # scales × rounds
    grown = np.log1p(np.multiply.outer(BETS, psi)).sum(axis=-1)  # bets × scales
    return float(np.logaddexp.reduce(grown, axis=None)) - math.log(grown.size)


def log_capitals(x: "np.ndarray", m: float) -> "np.ndarray":
    """The same after each round: of runs × rounds of log-ratios, runs × rounds."""
    import numpy as np

    total = np.full(x.shape, -math.inf)
    for scale in SCALES:
        psi = np.clip((x - m) / scale, -1, 1)
        for bet in BETS:
            total = np.logaddexp(total, np.cumsum(np.log1p(bet * psi), axis=1))
    return total - math.log(len(SCALES) * len(BETS))


def interval(ratios: Sequence[float], error: float = RED) -> tuple[float, float]:
    """Bounds of ours ÷ theirs: each is ever beyond the true ratio with probability `error` at most.

    The ratios against which the capital stays below 1 / error on both sides: by bisection, as it falls with m.
    """
    import numpy as np

    x = np.log(np.asarray(ratios, dtype=float))
    return (math.exp(-_upper(-x, error)), _exp(_upper(x, error))) if x.size else (0.0, math.inf)


def _upper(x: "np.ndarray", error: float) -> float:
    """The least m at which the bets that the change is below m have not won."""
    bound = math.log(1 / error)
    low, high = float(x.min()) - 1.0, float(x.max()) + 1.0

    def refuted(m: float) -> bool:
        return log_capital(-x, -m) >= bound

    if not refuted(high):
        return math.inf
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf

"""How much of its quality does a variant keep? Paired by picture, and asked after every picture.

A picture's score lies between 0 and 1: v the variant's, b the baseline's of the same prompt and noise. A variant keeps
the share q where the mean of x = v − q·b is not below zero. x lies between −q and 1, so that the bets of
`optsd.judge.sequential`, cut off where x ends by itself, are a test of that mean, whatever its distribution, that one
may look at after every picture (Waudby-Smith & Ramdas, JRSS B 86, 2024). The prompts are a fair sample of what the
answer is about: all that is assumed.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optsd.errors import BadInput
from optsd.judge.sequential import BETS, log_capital
from optsd.judge.verdicts import why_absent
from optsd.records import Results, Verdict

if TYPE_CHECKING:
    import numpy as np

ERROR = 0.05
"""How often a verdict of `judge_kept` may be wrong."""
QUESTION = "--quality: "
"""How the source of its verdicts begins: what they answer."""
CLIP_RANGE = 0.5
"""A cosine of OpenAI's CLIP is a score as a share of this; no healthy picture has more."""

Status = Literal["kept", "lost", "insufficient data"]
Scores = Sequence[tuple[float, float]]
"""(the variant's, the baseline's) of each picture, in order."""
_MOST = 4.0  # times the baseline's score: no share is looked for beyond


@dataclass(frozen=True)
class Kept:
    """`share` is the variant's mean score ÷ the baseline's; `low` and `high` hold whenever one stops."""

    status: Status
    share: float
    low: float
    high: float
    pictures: int


def score(metric: str, readings: "np.ndarray") -> "np.ndarray":
    """The scores between 0 and 1 of a metric's readings: of CLIP its cosine ÷ `CLIP_RANGE`, of LPIPS 1 − it."""
    import numpy as np

    if metric == "clip":
        readings = readings / CLIP_RANGE
    return np.clip(1 - readings if metric.startswith("lpips") else readings, 0, 1)


def judge_kept(
    results: Results, metric: str, asked: float, variants: Iterable[str], exact: Collection[str] = (), seeds: int = 1
) -> tuple[Verdict, ...]:
    """Does each variant keep the share `asked` of the baseline's mean score? A prompt's seeds are averaged first.

    Those of `exact`, by their mathematics, keep it unless the pictures say otherwise.
    """
    theirs = results.get("baseline", metric)
    found = []
    for variant in variants:
        if variant == "baseline":
            continue
        ours = results.get(variant, metric)
        if not (ours and theirs and ours.samples and len(ours.samples) == len(theirs.samples)):
            note = (ours.note if ours and not ours.samples else "") or why_absent(variant, results)
            found.append(Verdict(variant, metric, "not measured", None, asked, "", f"{QUESTION}{metric}", note))
            continue
        pairs = [_of_prompts(metric, row.samples, seeds) for row in (ours, theirs)]
        said = kept(list(zip(*pairs, strict=True)), asked, ERROR)
        status: str = said.status
        note = f"{said.share:.1%} [{said.low:.1%}, {said.high:.1%}] of the baseline's over {said.pictures} prompts"
        if status == "insufficient data" and variant in exact:
            status, note = "kept", f"exact by its mathematics, and no picture says otherwise; {note}"
        found.append(Verdict(variant, metric, status, said.share, asked, "", f"{QUESTION}{metric}", note))
    return tuple(found)


def _of_prompts(metric: str, readings: Sequence[float], seeds: int) -> list[float]:
    import numpy as np

    return score(metric, np.asarray(readings)).reshape(seeds, -1).mean(0).tolist()


def kept(scores: Scores, asked: float, error: float) -> Kept:
    """What the pictures so far say of keeping the share `asked`. Each answer is wrong with probability `error` at most.

    Raises BadInput for a score outside of 0 to 1, or a share that is none.
    """
    v, b = _checked(scores, asked)
    if not len(v):
        return Kept("insufficient data", math.nan, 0.0, math.inf, 0)
    bound = math.log(1 / error)
    low = _last(lambda q: _for_kept(v, b, q) >= bound)
    high = _last(lambda q: _for_lost(v, b, q) < bound)
    # Of a baseline that has nothing right so far nothing could be lost.
    share = float(v.mean() / b.mean()) if b.any() else (_MOST if v.any() else 1.0)
    return Kept(_status(v, b, asked, bound), share, low, high if high < _MOST else math.inf, len(v))


def decide(scores: Scores, asked: float, error: float) -> Status:
    """The status alone, without its interval: what a search asks after every picture."""
    v, b = _checked(scores, asked)
    if not len(v):
        return "insufficient data"
    return _status(v, b, asked, math.log(1 / error))


def fewest(asked: float, error: float) -> int:
    """How many pictures it takes at least: where each is as good as the baseline's, and that is perfect."""
    gain = (1 - asked) / asked
    bound = math.log(len(BETS) / error)
    # The capital of n equal pictures: a sum of powers, of which the largest bet's is soon all.
    low, high = 1, math.ceil(bound / math.log1p(max(BETS) * min(gain, 1.0)))
    while low < high:
        middle = (low + high) // 2
        won = math.log(sum(math.exp(middle * math.log1p(bet * min(gain, 1.0)) - bound) for bet in BETS)) >= 0
        low, high = (low, middle) if won else (middle + 1, high)
    return low


def _checked(scores: Scores, asked: float) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    if not 0 < asked < 1:
        raise BadInput(f"a share of {asked:g} cannot be shown to be kept", "ask for one between 0 and 1, such as 0.95")
    pairs = np.asarray(scores, dtype=float).reshape(-1, 2)
    if not ((pairs >= 0) & (pairs <= 1)).all():
        raise BadInput("a score is not between 0 and 1", "leave out what was not measured")
    return pairs[:, 0], pairs[:, 1]


def _status(v: "np.ndarray", b: "np.ndarray", asked: float, bound: float) -> Status:
    if _for_kept(v, b, asked) >= bound:
        return "kept"
    return "lost" if _for_lost(v, b, asked) >= bound else "insufficient data"


def _for_kept(v: "np.ndarray", b: "np.ndarray", q: float) -> float:
    """The bets against "it keeps less than q". What is above the cut-off is in their disfavour alone."""
    return log_capital(v - q * b, 0.0, (q,))


def _for_lost(v: "np.ndarray", b: "np.ndarray", q: float) -> float:
    """The bets against "it keeps q at least"."""
    return log_capital(q * b - v, 0.0, (1.0,))


def _last(holds: Callable[[float], bool]) -> float:
    """The largest share for which it holds, up to `_MOST`: by bisection, as it holds for all smaller ones."""
    low, high = 0.0, _MOST
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low

"""The search: which candidate is measured next, and when the answer is clear. Logic alone: no clock, no torch.

Successive halving (Jamieson & Talwalkar, AISTATS 2016): few rounds and pictures of every candidate, more of the better
half, and so on. What is given up is given up on figures that may err; what is *claimed* is not. Each claim ("faster
than the baseline", "keeps the quality that was asked") is a bet of `optsd.judge` that one may look at after every
reading, and the error rate of the whole search is divided among all claims of all candidates (Bonferroni), those
included that the search makes up on its way. So it does not matter how the winner was chosen.

The search asks a `Bench` for readings and nothing else. The same readings give the same answer: one that was killed and
goes on with what was kept of them ends where it would have ended.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from statistics import median
from typing import Any, Literal, Protocol

import numpy as np

from optsd.judge import sequential
from optsd.judge.kept import Kept, Scores, decide, fewest, kept

ERROR = 0.05
"""The search makes a claim that is false with at most this probability."""
COMBINATIONS = 4
"""How many combinations of techniques that did well alone are tried beside them."""
FIRST_ROUNDS, FIRST_PICTURES = 3, 8
"""Of every candidate; then twice the rounds and four times the pictures of those that are left, and so on."""
HOPELESS = 3.0
"""A candidate of which a single step takes so many times the baseline's is not timed: it would eat all others' time."""
SAME = 0.05
"""A candidate whose gain or loss of time is proved to be less than this is not followed any further; one that seems to
gain no more is not combined with others."""

BASELINE = "baseline"
Goal = Literal["speed", "memory"]


def block_of(batch_size: int) -> int:
    """Pictures that are read at a time: whole batches."""
    return batch_size * -(-FIRST_PICTURES // batch_size)


class TimeUp(Exception):
    """The next reading would not be there in time: what is known so far is the answer."""


class Failed(Exception):
    """The candidate cannot be measured, and why: a result as any other."""


@dataclass(frozen=True)
class Demand:
    """The share of a metric's score, between 0 and 1, that a candidate has to keep of the baseline's."""

    metric: str
    share: float


@dataclass(frozen=True)
class Ask:
    """What is searched for: `demands` and `memory` (bytes at the peak) are to be met, `goal` is to be the best."""

    demands: tuple[Demand, ...]
    memory: int | None = None
    goal: Goal = "speed"
    rounds: int = 64  # at most, of a candidate
    pictures: int = 512


@dataclass(frozen=True)
class Candidate:
    """A variant. `exact` by its mathematics; `why_not` says what shows without a measurement that it cannot win."""

    name: str
    exact: bool
    why_not: str = ""


class Bench(Protocol):
    """Who measures. Each raises TimeUp, and Failed for a candidate that cannot be measured."""

    def trial(self, name: str) -> float:
        """The seconds of a single step ÷ those of the baseline's: a rough one."""

    def ratio(self, name: str, number: int) -> float:
        """The seconds of a candidate ÷ those of the baseline, in round `number`, both run in an order of chance."""

    def scores(self, name: str, number: int) -> dict[str, Scores]:
        """(candidate's, baseline's) score of each picture in block `number`, for each metric that is asked for."""

    def peak(self, name: str) -> int:
        """Bytes at the peak, of a candidate or of the baseline."""


@dataclass
class Known:
    """All that has been read of one candidate, and what follows from it."""

    candidate: Candidate
    ask: Ask
    error: float  # of one claim
    trial: float | None = None
    ratios: list[float] = field(default_factory=list)
    scores: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    blocks: int = 0  # of pictures
    peak: int | None = None
    baseline_peak: int | None = None
    failed: str = ""
    _said: dict[str, tuple[Any, Any]] = field(default_factory=dict, repr=False)

    def _once(self, what: str, make: Callable[[], Any]) -> Any:
        """What follows from the readings is asked for far more often than there are new ones."""
        readings = self.trial, len(self.ratios), self.blocks, self.peak, self.failed
        if self._said.get(what, (None,))[0] != readings:
            self._said[what] = readings, make()
        return self._said[what][1]

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def speedup(self) -> float:
        """The median; NaN where there is none."""
        return 1 / median(self.ratios) if self.ratios else math.nan

    def speed_bounds(self) -> tuple[float, float]:
        low, high = sequential.interval(self.ratios, self.error)
        return 0.0 if math.isinf(high) else 1 / high, 1 / low if low else math.inf

    def kept(self, demand: Demand) -> Kept:
        return kept(self.scores.get(demand.metric, ()), demand.share, self.error)

    @property
    def pictures(self) -> int:
        return max(map(len, self.scores.values()), default=0)

    @property
    def quality(self) -> str:
        """`kept` (`exact`: by its mathematics, and nothing speaks against it), `lost`, or `insufficient data`."""
        return self._once("quality", self._quality)

    def _quality(self) -> str:
        found = [decide(self.scores.get(one.metric, ()), one.share, self.error) for one in self.ask.demands]
        if "lost" in found:
            return "lost"
        if all(status == "kept" for status in found):
            return "kept"
        return "exact" if self.candidate.exact and self.pictures and self.seems_kept else "insufficient data"

    @property
    def seems_kept(self) -> bool:
        """Whether the pictures so far keep, on average, what is asked. That is no proof."""
        return all(self.lost(one) <= 1 - one.share for one in self.ask.demands)

    @property
    def may_keep(self) -> bool:
        """Whether the pictures so far leave room for what is asked: the mean margin is below 0 by one standard error at
        most. One object of the first eight pictures says little, and what is dropped for it is not looked at again.
        """
        return all(self._has_room(one) for one in self.ask.demands)

    def _has_room(self, demand: Demand) -> bool:
        pairs = np.array(self.scores.get(demand.metric, ()), float)
        if len(pairs) < 2:
            return True
        margins = pairs[:, 0] - demand.share * pairs[:, 1]
        return bool(margins.mean() + margins.std(ddof=1) / math.sqrt(len(margins)) >= 0)

    def lost(self, demand: Demand) -> float:
        """The share of the baseline's score that the pictures so far lose, on average."""

        def make() -> float:
            before = sum(b for _, b in self.scores.get(demand.metric, ()))
            after = sum(v for v, _ in self.scores.get(demand.metric, ()))
            return max(0.0, 1 - after / before) if before else 0.0

        return self._once(f"lost {demand.metric}", make)

    @property
    def gains(self) -> bool:
        """Whether it is proved to be faster than the baseline; of memory, which repeats: whether it needs less."""
        if self.ask.goal == "memory":
            return None not in (self.peak, self.baseline_peak) and self.peak < self.baseline_peak  # type: ignore[operator]
        won = math.log(1 / self.error)
        return self._once("gains", lambda: sequential.log_capital(-np.log(self.ratios), 0.0) >= won)

    @property
    def wins(self) -> bool:
        return not self.out and self.gains and self.quality in ("kept", "exact")

    @property
    def value(self) -> float:
        """What the goal makes the most of: the speedup, or the share of the baseline's memory, upside down."""
        if self.ask.goal == "memory":
            return self.baseline_peak / self.peak if self.peak and self.baseline_peak else 0.0
        return self.speedup if self.ratios else 0.0

    @property
    def out(self) -> str:
        """Why it is not followed any further; empty while it may win."""
        return self._once("out", self._out)

    def _out(self) -> str:
        if self.candidate.why_not or self.failed:
            return self.candidate.why_not or self.failed
        if self.peak is not None and self.ask.memory is not None and self.peak > self.ask.memory:
            return "needs more memory"
        if self.quality == "lost":
            return "loses too much"
        return self._too_slow if self.ask.goal == "speed" else self._too_large

    @property
    def is_hopeless(self) -> bool:
        return self.trial is not None and self.trial > HOPELESS

    @property
    def _too_large(self) -> str:
        known = self.peak is not None and self.baseline_peak is not None
        return "needs no less memory" if known and not self.gains else ""

    @property
    def _too_slow(self) -> str:
        if self.is_hopeless:
            return f"a step takes {self.trial:.2g} times the baseline's"
        if len(self.ratios) >= FIRST_ROUNDS and min(self.ratios) >= 1:
            return f"slower in each of {len(self.ratios)} rounds"
        said = sequential.decide(self.ratios, SAME)
        if said == "same" and not self.gains:
            return f"as fast as the baseline (±{SAME:.0%})"
        return "slower" if said == "slower" else ""

    def spent(self) -> bool:
        """Whether it has had all rounds and pictures that it may have."""
        pictures = self.quality in ("kept", "exact") or self.pictures >= self.ask.pictures
        return pictures and (len(self.ratios) >= self.ask.rounds or self.gains)


@dataclass
class Search:
    """`join` makes the candidate of several techniques' names, or None where they do not go together."""

    ask: Ask
    candidates: Sequence[Candidate]
    bench: Bench
    join: Callable[[tuple[str, ...]], Candidate | None] = lambda names: None
    say: Callable[[str], None] = lambda text: None
    known: dict[str, Known] = field(default_factory=dict, init=False)
    complete: bool = field(default=False, init=False)
    baseline_peak: int | None = field(default=None, init=False)

    @cached_property
    def error(self) -> float:
        """Of one claim: a candidate claims a gain, and a share kept of every metric that is asked for."""
        measured = sum(not one.why_not for one in self.candidates) + COMBINATIONS
        return ERROR / (measured * (1 + len(self.ask.demands)))

    def run(self) -> None:
        """Go on until the answer is clear or the time is up; `complete` says which."""
        for candidate in self.candidates:
            self._add(candidate)
        try:
            self._halve()
        except TimeUp:
            return
        self.complete = True

    @property
    def winner(self) -> Known | None:
        """The best of those that are proved to gain and to keep what was asked."""
        return max((one for one in self.known.values() if one.wins), key=lambda one: one.value, default=None)

    @property
    def fewest_pictures(self) -> int:
        """How many pictures it takes at least to show that an approximate candidate keeps what was asked."""
        return max((fewest(one.share, self.error) for one in self.ask.demands), default=0)

    def _halve(self) -> None:
        self._advance(list(self.known.values()), 0)
        self._secure()
        self._advance([self._add(one) for one in self._joined()], 0)
        left, rung = len(self._open()), 0
        while waiting := self._open():
            width = max(2, math.ceil(left / 2**rung))
            if width == 2 and waiting[0].wins:
                return
            self._advance([one for one in waiting[:width] if not one.spent()], rung)
            rung += 1

    def _secure(self) -> None:
        """An answer first: prove the best of the exact ones, which takes rounds and few pictures, before the time is up
        over those that promise more.
        """
        for one in [one for one in self._open() if one.candidate.exact and one.value > 1 + SAME][:1]:
            rung = 1
            while not (one.wins or one.out or one.spent()):
                self._advance([one], rung)
                rung += 1

    def _open(self) -> list[Known]:
        """Those that may still win, the likeliest first: those that have had everything in vain are not among them."""
        may = [one for one in self.known.values() if not one.out and (one.wins or not one.spent())]
        return sorted(may, key=lambda one: (one.may_keep, one.value), reverse=True)

    def _advance(self, some: list[Known], rung: int) -> None:
        """Bring each up to the rung: its memory first, as one reading decides; then rounds; then pictures."""
        steps: tuple[Callable[[Known, int], None], ...] = (self._weigh, self._time, self._look)
        for one in some:  # all of one's at a time, as it is built for them
            try:
                for step in steps:
                    if not one.out:
                        step(one, rung)
            except Failed as failure:
                one.failed = str(failure)

    def _weigh(self, one: Known, rung: int) -> None:
        if one.peak is None and (self.ask.memory is not None or self.ask.goal == "memory"):
            if self.baseline_peak is None:
                self.baseline_peak = self.bench.peak(BASELINE)
            one.peak, one.baseline_peak = self.bench.peak(one.name), self.baseline_peak

    def _time(self, one: Known, rung: int) -> None:
        # What is to be small need not be fast: then its speed is told, and not proved.
        most = FIRST_ROUNDS if self.ask.goal == "memory" else min(FIRST_ROUNDS << rung, self.ask.rounds)
        if one.trial is None:
            self.say(f"{one.name}: a step")
            one.trial = self.bench.trial(one.name)
        if one.is_hopeless:
            most = 1
        while len(one.ratios) < most and not one.out:
            self.say(f"{one.name}: round {len(one.ratios) + 1} of {most}")
            one.ratios.append(self.bench.ratio(one.name, len(one.ratios)))

    def _look(self, one: Known, rung: int) -> None:
        most = min(FIRST_PICTURES << 2 * rung, self.ask.pictures)
        while self.ask.demands and one.pictures < most and one.quality not in ("kept", "exact") and not one.out:
            self.say(f"{one.name}: {one.pictures} of {most} pictures")
            for metric, pairs in self.bench.scores(one.name, one.blocks).items():
                one.scores.setdefault(metric, []).extend(pairs)
            one.blocks += 1

    def _add(self, candidate: Candidate) -> Known:
        return self.known.setdefault(candidate.name, Known(candidate, self.ask, self.error))

    def _joined(self) -> list[Candidate]:
        """The most promising combinations of what may still win: gains are taken to multiply, losses to add up."""
        alone = [one for one in self._open() if one.seems_kept and one.value > 1 + SAME]
        found: dict[str, tuple[float, Candidate]] = {}
        for size in (2, 3, 4):
            for parts in combinations(alone, size):
                if any(sum(part.lost(one) for part in parts) > 1 - one.share for one in self.ask.demands):
                    continue
                made = self.join(tuple(part.name for part in parts))
                if made and made.name not in self.known:
                    found[made.name] = (math.prod(part.value for part in parts), made)
        best = sorted(found.values(), key=lambda pair: pair[0], reverse=True)
        return [made for _, made in best[:COMBINATIONS]]

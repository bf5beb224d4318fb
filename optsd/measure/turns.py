"""Two calls timed in turn, in an order drawn anew each round, until a rule is satisfied or the time is up."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True)
class Turns:
    """Seconds of each, round by round."""

    theirs: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours ÷ theirs: above 1 ours is slower."""
        return tuple(ours / theirs for theirs, ours in zip(self.theirs, self.ours, strict=True))


def in_turn(
    theirs: Clock,
    ours: Clock,
    enough: Callable[[Sequence[float]], bool],
    budget_s: float,
    most: int | None = None,
    say: Callable[[int], None] = lambda number: None,
    seed: int | None = None,
) -> Turns:
    """Rounds of both until `enough(ratios)`, or the next one would not end within `budget_s`, or there are `most`.

    `theirs` and `ours` give the seconds that they took. At least one round is made.
    """
    drawn, start, longest = random.Random(seed), time.monotonic(), 0.0
    readings: dict[Clock, list[float]] = {theirs: [], ours: []}
    ratios: list[float] = []
    while not ratios or not (enough(ratios) or len(ratios) == most or time.monotonic() - start + longest > budget_s):
        began = time.monotonic()
        say(len(ratios) + 1)
        # The coin that makes two equal builds exchangeable: see optsd.judge.sequential.
        for call in drawn.sample([theirs, ours], 2):
            readings[call].append(call())
        longest = max(longest, time.monotonic() - began)
        ratios.append(readings[ours][-1] / readings[theirs][-1])
    return Turns(tuple(readings[theirs]), tuple(readings[ours]))

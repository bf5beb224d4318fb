"""Whether what was timed is what is judged, and was drawn each time: after MLPerf's audits (its TEST01 and TEST04)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from optsd.quality.store import checksum

LEAST_SHARE = 0.2
"""Of the fastest new batch's seconds: what gives a batch once more in less has not drawn it.

On a shared machine one that was drawn anew can take half of the others' time; to look up an answer takes next to none.
"""

Recipe = tuple[str, int, tuple[str, ...]]
"""The variant, the index of the batch's first picture, which with the run's seed decides the noise, and the prompts."""


@dataclass
class Witness:
    """The SHA-256 of the pixels of every batch that a run has timed, and of every one that it has judged."""

    timed: dict[Recipe, list[str]] = field(default_factory=dict)
    judged: dict[Recipe, list[str]] = field(default_factory=dict)

    def saw_timed(self, variant: str, prompts: Sequence[str], first: int, pictures: Iterable[np.ndarray]) -> None:
        self.timed.setdefault((variant, first, tuple(prompts)), [checksum(np.asarray(each)) for each in pictures])

    def saw_judged(self, variant: str, prompts: Sequence[str], digests: Sequence[str], size: int) -> None:
        """Of the pictures of the run's first seed, drawn in batches of `size`; the last one is left out unless full."""
        for first in range(0, len(prompts) - size + 1, size):
            batch = slice(first, first + size)
            self.judged[variant, first, tuple(prompts[batch])] = list(digests[batch])

    def difference(self, variant: str) -> str:
        """What is wrong with a variant of which both were seen; nothing where all is well, or where only one was."""
        both = [recipe for recipe in self.timed if recipe[0] == variant and recipe in self.judged]
        wrong = [
            recipe[1] + place
            for recipe in both
            for place, pair in enumerate(zip(self.timed[recipe], self.judged[recipe], strict=True))
            if len(set(pair)) == 2
        ]
        count = sum(len(self.timed[recipe]) for recipe in both)
        if not wrong:
            return ""
        return (
            f"{variant}: {len(wrong)} of {count} pictures that were timed are not those that are judged, with equal "
            f"prompts and noise (the first is number {min(wrong)})"
        )


def keeps_answers(variant: str, again: float, new: Sequence[float]) -> str:
    """Whether a batch that was drawn before comes back too soon: `again` seconds, beside those of new prompts."""
    if again >= LEAST_SHARE * min(new):
        return ""
    return (
        f"{variant} keeps its answers: a batch that it had drawn before took {again:.3g} s, new prompts at least "
        f"{min(new):.3g} s; its speed is that of new ones"
    )

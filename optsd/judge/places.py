"""Where two ledgers differ: which operator in which module makes a figure without noise another one."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from optsd.errors import BadInput
from optsd.files import read_text
from optsd.judge.verdicts import joined
from optsd.ledger import FIGURES, Ledger, file_name
from optsd.records import Verdict

SHOWN = 3
"""Places that a verdict's note names; the others are counted."""


@dataclass(frozen=True)
class Place:
    """One operator in one module, before and after, in the unit of a figure."""

    module: str
    operator: str
    precision: str
    before: int
    after: int

    def __str__(self) -> str:
        kind = f"{self.operator} ({self.precision})" if self.precision else self.operator
        return f"{self.module}: {kind} {self.before:,} → {self.after:,}"


def places(figure: str, before: Ledger, after: Ledger) -> tuple[Place, ...]:
    """What changed of a figure, by module and operator: first what grew most, last what shrank most."""
    sums = [ledger.sums(figure) for ledger in (before, after)]
    found = [
        Place(*key, sums[0].get(key, 0), sums[1].get(key, 0))
        for key in {**sums[0], **sums[1]}
        if sums[0].get(key, 0) != sums[1].get(key, 0)
    ]
    return tuple(sorted(found, key=lambda place: (place.before - place.after, place.module, place.operator)))


def describe(found: tuple[Place, ...], worse: bool) -> str:
    """The places that made a figure worse (or better), in words: `unet.mid_block…attn1: aten::_to_copy (float32) …`."""
    mattering = [place for place in found if (place.after > place.before) == worse]
    if not worse:
        mattering.reverse()
    more = f" and {len(mattering) - SHOWN} more places" if len(mattering) > SHOWN else ""
    gone = [place for place in found if (place.after > place.before) != worse]
    beside = f" (beside it {'less' if worse else 'more'} in {gone[-1 if worse else 0]})" if gone else ""
    return "; ".join(map(str, mattering[:SHOWN])) + more + beside


def with_places(verdicts: Iterable[Verdict], recorded: Path, measured: Path) -> tuple[Verdict, ...]:
    """The verdicts about a ledger's figures, each with what changed it in its note. Folders of a ledger a variant."""
    return tuple(_with_places(verdict, recorded, measured) for verdict in verdicts)


def _with_places(verdict: Verdict, recorded: Path, measured: Path) -> Verdict:
    if verdict.metric not in FIGURES or verdict.status not in ("regressed", "improved"):
        return verdict
    try:
        before, after = (read_ledger(folder / file_name(verdict.variant)) for folder in (recorded, measured))
    except BadInput as error:
        return replace(verdict, note=joined(verdict.note, f"where is not known: {error.problem}"))
    where = describe(places(verdict.metric, before, after), verdict.status == "regressed")
    return replace(verdict, note=joined(verdict.note, where))


def read_ledger(file: Path) -> Ledger:
    """Raises BadInput, naming the file, for what is no ledger."""
    return Ledger.from_text(read_text(file, "record it with --expected-update"), str(file))

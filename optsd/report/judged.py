"""What the verdicts of a run come to: the signs of their statuses, their counts, and which of them stand together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optsd.judge.verdicts import nothing_was_judged
from optsd.records import Results, Verdict

STATUSES = {
    # status -> (sign, tone); the sign says it without colour. Worst first: tables are sorted in this order.
    "missed": ("✗", "bad"),
    "regressed": ("✗", "bad"),
    "differs": ("✗", "bad"),
    "unattainable": ("✗", "bad"),
    "slower": ("✗", "bad"),
    "lost": ("✗", "bad"),
    "no baseline": ("?", "unknown"),
    "insufficient data": ("?", "unknown"),
    "reproduced": ("✓", "good"),
    "exceeded": ("▲", "good"),
    "ok": ("✓", "good"),
    "agrees": ("✓", "good"),
    "same": ("✓", "good"),
    "kept": ("✓", "good"),
    "improved": ("▲", "good"),
    "faster": ("▲", "good"),
    "not comparable": ("≠", "unknown"),
    "not measured": ("?", "unknown"),
}

UNATTAINABLE = "unattainable"
_UNDECIDED = ("not comparable", "not measured")


def sign_of(status: str) -> tuple[str, str]:
    return STATUSES.get(status, ("?", "unknown"))


def is_claim(row: Verdict) -> bool:
    """Whether it is about what somebody has claimed, and not about a recorded figure, a repeat or a build."""
    return "claim" in row.source.partition(": ")[0]


def is_noise_floor(row: Verdict) -> bool:
    """The baseline against itself is no claim: that it agrees says what a difference of the others means."""
    return row.source.startswith("noise floor")


def count_verdicts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """status -> how many, worst first."""
    counts = Counter(verdict.status for verdict in verdicts)
    return {status: counts[status] for status in [*STATUSES, *sorted(counts)] if counts[status]}


@dataclass(frozen=True)
class Tally:
    """One entry of the verdicts in short: `✗ 4 unattainable by their bound`."""

    sign: str
    tone: str
    count: int
    words: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.sign, str(self.count), self.words)))


def tally(results: Results) -> list[Tally]:
    """The verdicts by status, worst first; the claims that no implementation can reach; how many were judged at all.

    A claim and a recorded figure are not comparable for different reasons, so that these are counted apart.
    """
    rows = [row for row in results.verdicts if not is_noise_floor(row)]
    counts, claims = count_verdicts(rows), [row for row in rows if is_claim(row)]
    beyond = sum(row.get("status") == UNATTAINABLE for row in results.bounds)
    if beyond:  # the bounds have all of them, the verdicts those that were not measured to hold
        counts.pop(UNATTAINABLE, None)
    found = []
    for status, count in counts.items():
        of_claims = sum(row.status == status for row in claims)
        parts = [(of_claims, f"claims {status}"), (count - of_claims, f"recorded figures {status}")]
        if status != "not comparable" or not all(part for part, _ in parts):
            parts = [(count, status)]
        found += [Tally(*sign_of(status), *part) for part in parts]
    if beyond:
        # Nothing went wrong here: somebody has claimed what cannot be. In red it would be read as a fault of this run.
        found.append(Tally(sign_of(UNATTAINABLE)[0], "unknown", beyond, f"{UNATTAINABLE} by their bound"))
    if claims:
        judged = sum(row.status not in _UNDECIDED for row in claims)
        found.append(Tally("", "unknown", judged, f"of {len(claims)} claims judged here"))
    return found


def judged_nothing(results: Results) -> list[str]:
    """A line for each file of recorded figures by which nothing could be judged: the reason, and what to do."""
    files: dict[str, list[Verdict]] = {}
    for row in results.verdicts:
        file, _, about = row.source.partition(": ")
        if about == f"{row.variant} {row.metric}" and not is_claim(row):
            files.setdefault(file, []).append(row)
    said = []
    for file, rows in files.items():
        if nothing_was_judged(rows):
            (status, note), count = Counter((row.status, row.note) for row in rows).most_common(1)[0]
            note += f" ({count} of {len(rows)} rows)" if count < len(rows) else ""
            remedy = "; record again with --expected-update" if status == "not comparable" else ""
            said.append(f"Nothing was judged by {file}: {status}, {note}{remedy}")
    return said


def set_apart(verdicts: Sequence[Verdict]) -> tuple[list[Verdict], list[tuple[str, str]]]:
    """The verdicts that stand alone; and of those about another workload (what, why) once for all of a file."""

    def why(verdict: Verdict) -> tuple[str, str]:
        return verdict.source.partition(": ")[0], verdict.note

    counts = Counter(why(verdict) for verdict in verdicts if verdict.status == "not comparable")
    here = [verdict for verdict in verdicts if verdict.status != "not comparable" or counts[why(verdict)] == 1]
    told = [
        (f"{count} figures of {source} cannot be compared", reason)
        for (source, reason), count in counts.items()
        if count > 1
    ]
    return here, told

"""Do published figures follow from each other? Runs nothing and guesses nothing.

Each finding names the assumption under which it holds, and shows its arithmetic in one line. Figures are compared as
what they can stand for in print, so that rounding is never a contradiction.

contradiction   two figures of one source cannot both be right, if the assumption holds
implies         possible, but not for a stock pipeline (of `optsd.estimate.published`, as is "unattainable")
reading         a figure is something else than its name says: a time saved that is called a speedup
differs         two sources have different figures for what their words describe alike: no one need be wrong
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from optsd.claims import ratios, same, units
from optsd.claims.findings import STATUSES, Finding
from optsd.claims.schema import Claim

__all__ = ["STATUSES", "Checked", "Finding", "check"]

WITHIN = (
    ratios.ratios, ratios.printed_again, same.twice, same.spread, units.swapped, units.impossible, units.parts,
)  # fmt: skip
"""Each looks at the claims of one source, and yields its findings and the labels of the claims that it compared."""


@dataclass(frozen=True)
class Checked:
    """Findings, and the labels of all claims whose figure was compared with others of their source."""

    findings: tuple[Finding, ...]
    compared: frozenset[str]


def check(claims: Sequence[Claim]) -> Checked:
    """Everything that arithmetic finds within and between the sources of these claims."""
    sources: defaultdict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        sources[claim.source.name].append(claim)
    findings: list[Finding] = []
    compared: set[str] = set()
    for mine in sources.values():
        for test in WITHIN:
            for found in test(mine):
                if isinstance(found, Finding):
                    findings.append(found)
                    compared.update(found.claims)
                else:
                    compared.add(found)
    findings += units.said_otherwise(claims)
    findings += same.between(claims)
    return Checked(tuple(dict.fromkeys(findings)), frozenset(compared))

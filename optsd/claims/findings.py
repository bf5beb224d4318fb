"""A finding, and what every check asks: are two claims of the same run, and how is a figure shown."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from optsd.claims.figures import Interval
from optsd.claims.schema import Claim, Setting
from optsd.claims.words import unsaid

STATUSES = ("contradiction", "unattainable", "implies", "reading", "differs")


@dataclass(frozen=True)
class Finding:
    """What was found about the claims with these labels."""

    status: str
    claims: tuple[str, ...]
    says: str
    arithmetic: str
    assumption: str


def same_run(claim: Claim, row: Claim, ignored: Sequence[str] = ()) -> bool:
    """The same page and workload, gaps in the same places."""
    if claim.source.page != row.source.page or not agree(claim.images, row.images):
        return False
    if claim.prompts and row.prompts and claim.prompts != row.prompts:
        return False
    return all(
        getattr(claim.setting, each.name) == getattr(row.setting, each.name)
        for each in fields(Setting)
        if each.name not in ignored
    )


def alike(one: Claim, other: Claim) -> bool:
    """Whether two figures are of the same thing, so that their ratio means something."""
    parts = ("kind", "per", "scope", "when", "counted", "statistic")
    return all(getattr(one.metric, part) == getattr(other.metric, part) for part in parts)


def parameters_agree(one: Claim, other: Claim) -> bool:
    """Equal wherever both say something."""
    return all(
        one.parameters[key] == other.parameters[key] or not says(one, key) or not says(other, key)
        for key in set(one.parameters) & set(other.parameters)
    )


def says(claim: Claim, key: str) -> bool:
    return claim.parameters[key] != "" and not unsaid(claim.parameters[key])


def agree(one: object, other: object) -> bool:
    mine, theirs = getattr(one, "value", None), getattr(other, "value", None)
    return mine is None or theirs is None or mine == theirs


def gaps(one: Claim, other: Claim) -> str:
    """`; scheduler is unstated in one`: what was taken to be equal."""
    names_of = [
        each.name
        for each in fields(Setting)
        if getattr(one.setting, each.name).known != getattr(other.setting, each.name).known
    ]
    both = [name for name in one.setting.missing() if name in other.setting.missing()]
    said = f"; {', '.join(names_of)} unstated in one of them" if names_of else ""
    return said + (f"; {', '.join(both)} unstated in both" if both else "")


def quoted(claim: Claim) -> str:
    said = claim.metric.said.strip('"') or claim.metric.kind
    return f"{said} {figure_of(claim)}"


def figure_of(claim: Claim) -> str:
    value = claim.value
    number = value.said or (f"{value.figure:g}" if value.figure is not None else f"{value.low:g} to {value.high:g}")
    unit = {"% of time saved": "%", "cosine x100": ""}.get(value.unit, value.unit)
    return f"{number}×" if unit == "x" else f"{number} {unit}".strip()


def middle(interval: Interval) -> float:
    return (interval.low + interval.high) / 2

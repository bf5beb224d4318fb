"""What is tried, and what need not be: the variants, their combinations, and what shows without a measurement.

A candidate is a variant, or one in fewer steps than the baseline takes: `flash@10` is flash in 10 steps.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optsd.errors import OptsdError
from optsd.tune.search import BASELINE, Candidate
from optsd.variants import against_eager, canonical, parse

if TYPE_CHECKING:
    from optsd.estimate import Estimate

TRIED = (
    *("sdpa", "flash", "flash-enhanced", "kvcache", "graph"),
    *("deepcache:2", "deepcache:3", "deepcache:5", "tome:0.25", "tome:0.5"),
    *("fbcache:0.05", "fbcache:0.1", "fbcache:0.2", "taylorseer:2", "taylorseer:3", "pab:2", "pab:3"),
    *("sage", "int8", "int8:all", "int4"),
)
"""Exact ones first."""
ALLOWED = {"compile": "compiling takes minutes", "steps": "who asks for so many steps may want them all"}
"""What is tried where `--allow` names it, and why not else."""
FEWER = (0.75, 0.5, 0.35)
"""The shares of the baseline's steps that `--allow steps` tries."""

WhyNot = Callable[[str], str]
"""What shows of a variant, by its name, without a measurement: why it cannot win; empty where nothing does."""


def in_steps(variant: str, steps: int) -> str:
    """The name of a variant in so many steps."""
    return f"{variant}@{steps}"


def split(name: str) -> tuple[str, int | None]:
    """The variant of a candidate, and how many steps it takes; None: as many as the baseline."""
    variant, _, steps = name.partition("@")
    return variant, int(steps) if steps else None


def candidates(
    names: tuple[str, ...], allowed: tuple[str, ...], steps: int, why_not: WhyNot, more: tuple[str, ...] = ()
) -> list[Candidate]:
    """Those of these names (default: all that are known, and `more`), each with what shows without a measurement.

    `steps`: the baseline's. Fewer of them are tried where they are `allowed`, whatever the names.
    """
    fewer = sorted({max(1, round(share * steps)) for share in FEWER} - {steps}, reverse=True)
    tried = [in_steps(BASELINE, number) for number in fewer] if "steps" in allowed else []
    if names:
        return [_candidate(name, why_not) for name in (*names, *tried)]
    asked = [Candidate(name, True, f"{why}: --allow {name}") for name, why in ALLOWED.items() if name not in allowed]
    named = [name for name in allowed if name != "steps"]
    return [*(_candidate(name, why_not) for name in (*TRIED, *more, *named, *tried)), *asked]


def joiner(why_not: WhyNot) -> Callable[[tuple[str, ...]], Candidate | None]:
    """What makes a candidate of several names."""

    def join(names: tuple[str, ...]) -> Candidate | None:
        parts = [split(name) for name in names]
        steps = [number for _, number in parts if number is not None]
        techniques = [variant for variant, _ in parts if variant != BASELINE]
        if len(steps) > 1 or not techniques:
            return None
        try:
            name = canonical("+".join(techniques))
            parse(name)
        except OptsdError:  # one slot for two, or one technique with two parameters
            return None
        return _candidate(in_steps(name, steps[0]) if steps else name, why_not)

    return join


def checked(pipe: Any) -> WhyNot:
    """What the techniques themselves say of this pipeline, before anything of it is changed."""

    def why_not(name: str) -> str:
        try:
            against_eager(split(name)[0]).check(pipe)
        except OptsdError as error:
            return error.problem
        return ""

    return why_not


def bounded(trace: "Callable[[str], Estimate]", memory: int | None, has_rates: bool) -> WhyNot:
    """What the bounds say: of memory where it is limited, of speed where the device's rates are known.

    Live tensors are less than what a process needs, and what a technique changes is taken to be done perfectly: so what
    the bounds exclude is excluded, whoever implements it.
    """
    from optsd.estimate import bounds

    def why_not(name: str) -> str:
        try:
            if memory is not None and (least := trace(name).peak_bytes) > memory:
                return f"needs {least / 2**20:,.0f} MiB at least"
            if has_rates and split(name)[1] is None:
                baseline = trace("baseline")
                most = bounds.speed(bounds.techniques_of(name), baseline, trace("sdpa")).most
                if most <= 1:
                    return f"cannot be faster: {most:.2f}× at most"
        except OptsdError:  # no bound is known
            return ""
        return ""

    return why_not


def first_of(*some: WhyNot) -> WhyNot:
    return lambda name: next((why for each in some if (why := each(name))), "")


def _candidate(name: str, why_not: WhyNot) -> Candidate:
    variant, steps = split(name)
    spelled = canonical(variant) if steps is None else in_steps(canonical(variant), steps)
    try:
        return Candidate(spelled, parse(variant).exact and steps is None, why_not(spelled))
    except OptsdError as error:  # a technique that lacks a library
        return Candidate(spelled, False, error.problem)

"""The run that claims ask for: of which workload, and what had to be assumed where they leave it open."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optsd.errors import BadInput
from optsd.judge.expectations import Claims
from optsd.metrics import metric

OPTIONS = ("model", "dtype", "steps", "guidance", "size", "batch_size", "images")
"""What of a run claims decide unless the user does."""


STANDARD_PROMPTS = 1000
"""A claim of more pictures than there are standard prompts is not comparable, and says so."""


@dataclass(frozen=True)
class Chosen:
    """The claims that the run is about, the others of their files, and what of the run they decide."""

    claims: Claims
    others: tuple[Claims, ...]
    options: dict[str, Any]  # by name of an option, for those that the user has not set
    assumed: tuple[str, ...]  # options that neither claims nor user decide: the preset does

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(["baseline", *(claim.variant for claim in self.claims.claims)]))

    def __str__(self) -> str:
        """`claims of deepcache: 12 of 60, steps 50, size 512; unstated, so the preset's: guidance`."""
        total = len(self.claims.claims) + sum(len(group.claims) for group in self.others)
        taken = ", ".join(f"{name} {value}" for name, value in self.options.items())
        gaps = f"; unstated, so the preset's: {', '.join(self.assumed)}" if self.assumed else ""
        machine = f", measured on {self.claims.machine}" if self.claims.machine else ""
        return (
            f"{len(self.claims.claims)} of {total} claims of {self.claims.guide}{machine}: {taken or 'as asked'}{gaps}"
        )


def choose(groups: Sequence[Claims], given: Mapping[str, Any], variants: Collection[str] | None = None) -> Chosen:
    """The workload with the most claims among those that what the user set leaves. Raises BadInput where there is none.

    `given`: the options of `OPTIONS` that the user has set. `variants`: those that will be benched, if that is decided.
    """
    if not groups:
        raise BadInput("no claim of these files can be judged by a run", "see them with: optsd claims show NAME")

    def count(group: Claims) -> int:
        return sum(variants is None or claim.variant in variants for claim in group.claims)

    fitting = [group for group in groups if not _clashes(group, given)] or list(groups)
    best = max(fitting, key=count)
    wanted = _options(best)
    options = {name: value for name, value in wanted.items() if name not in given}
    assumed = tuple(name for name in OPTIONS if name not in wanted and name not in given)
    return Chosen(best, tuple(group for group in groups if group is not best), options, assumed)


def _options(group: Claims) -> dict[str, Any]:
    work = group.workload
    found: dict[str, Any] = {}
    if group.models["performance"]:
        found["model"] = group.models["performance"][0]
    found |= {name: work[name] for name in ("dtype", "steps", "guidance", "batch_size") if name in work}
    if "width" in work:
        found["size"] = str(work["width"]) if work["width"] == work["height"] else f"{work['width']}x{work['height']}"
    needs_pictures = any(metric(claim.metric).kind == "quality" for claim in group.claims)
    if needs_pictures and group.images and 2 <= group.images <= STANDARD_PROMPTS:
        found["images"] = group.images
    return {name: found[name] for name in OPTIONS if name in found}


def _clashes(group: Claims, given: Mapping[str, Any]) -> bool:
    """Whether a claim's workload is another one than the user asks for."""
    wanted = _options(group)
    clashing = [name for name in given if name in wanted and name not in ("model", "images")]
    if "model" in given and group.models["performance"] and given["model"] not in group.models["performance"]:
        return True
    return any(str(wanted[name]) != str(given[name]) for name in clashing)

"""What a technique is (`Optimization`), and what remains of it on a pipeline (`Patch`)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, TypeAlias

from optsd.errors import OptsdError

Pipeline: TypeAlias = Any
"""A diffusers pipeline with a `unet` and a `vae`; diffusers declares these attributes nowhere."""


class Stage(IntEnum):
    """When a technique is applied. Combinations are sorted by it, so that the order of names means nothing."""

    STRUCTURE = 0  # which modules there are: fused projections
    WEIGHTS = 1  # what the modules compute with: int8, int4
    ATTENTION = 2  # how attention is computed: eager, sdpa, flash
    EXECUTION = 3  # how what is computed is run: compile
    REUSE = 4  # what is not computed, or not again: kvcache, deepcache, tome
    RUNTIME = 5  # how a call is divided: slices, retries with a smaller batch


class Optimization(Protocol):
    """A technique and its parameters: a frozen dataclass in `optsd/optimizations/`."""

    @property
    def name(self) -> str:
        """What it is called in a variant's name, parameters included: `int8`, `deepcache:3`."""

    @property
    def exact(self) -> bool:
        """True when the mathematics is unchanged, so that images differ by rounding only."""

    @property
    def stage(self) -> Stage: ...

    @property
    def slot(self) -> str:
        """At most one technique may hold a slot (`attention`, `weights`, …); two that share one are refused."""

    def check(self, pipe: Pipeline) -> None:
        """Raise `Unsupported` if it cannot work on this pipeline. Changes nothing."""

    def apply(self, pipe: Pipeline) -> "Patch":
        """Change the pipeline in place. Raises `NothingMatched` when there is nothing to change."""


@dataclass
class Patch:
    """What was changed on a pipeline, the evidence that it is active, and the way back.

    `touched` are the names of the changed modules (`unet.mid_block.attentions.0…`); `proof` is counted while the
    pipeline runs (`{"quantized_linear": 32, "kernel_calls": 640}`); a lossy technique has no `undo` and says why.
    `slots` says which technique decides what, `active` lists the patches that are on the same UNet, the last one last.
    """

    name: str
    touched: tuple[str, ...]
    read_proof: Callable[[], dict[str, Any]] = dict
    restore: Callable[[], None] | None = None
    why_lossy: str = ""
    parts: tuple["Patch", ...] = ()
    slots: dict[str, str] = field(default_factory=dict)
    active: list["Patch"] = field(default_factory=list, repr=False)
    undone: bool = field(default=False, init=False)

    @property
    def proof(self) -> dict[str, Any]:
        """The counts so far, of this patch and of the patches that it is made of."""
        return {key: value for part in self.parts for key, value in part.proof.items()} | self.read_proof()

    def undo(self) -> None:
        """Restore the pipeline, to the bit. Raises OptsdError, and changes nothing, if a part of it is lossy.

        Patches come off in the reverse of the order in which they were applied.
        """
        if self.undone:
            raise OptsdError(f"{self.name} is undone already", "call undo() once")
        if self.active and self.active[-1] is not self:
            later = self.active[-1].name
            raise OptsdError(f"{self.name} cannot be undone: {later} was applied on top of it", f"undo {later} first")
        lossy = next((patch for patch in self._flat() if patch.why_lossy), None)
        if lossy:
            raise OptsdError(f"{lossy.name} cannot be undone: {lossy.why_lossy}", "load the pipeline again")
        for patch in reversed(self._flat()):
            if patch.restore:
                patch.restore()
            patch.undone = True
        if self.active:
            self.active.pop()

    def _flat(self) -> list["Patch"]:
        return [*(patch for part in self.parts for patch in part._flat()), self]


def active_patches(pipe: Pipeline) -> list[Patch]:
    """The patches on this pipeline's UNet, which other pipelines may share, in the order of their application."""
    return vars(getattr(pipe, "unet", pipe)).setdefault("_optsd_patches", [])


def in_reverse(restores: Iterable[Callable[[], None]]) -> Callable[[], None]:
    """One function that takes back many changes, the last first."""
    steps = tuple(restores)

    def restore() -> None:
        for step in reversed(steps):
            step()

    return restore


def replace_attribute(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute on one object, not on its class, and return what takes it back exactly.

    Use it with bound methods (`layer.forward = Cached(layer).forward`): a deep copy of the owner then carries deep
    copies of them, where a closure would go on working on the original.
    """
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)

    def restore() -> None:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return restore

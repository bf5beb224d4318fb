"""What a technique is (`Optimization`), and what remains of it on a pipeline (`Patch`)."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, TypeAlias

from torch import nn

from optsd import anatomy, calls
from optsd.anatomy import Pipeline
from optsd.errors import OptsdError
from optsd.state import LastPrompt

Proof: TypeAlias = Callable[[], dict[str, Any]]


class Stage(IntEnum):
    """When a technique is applied. Combinations are sorted by it, so that the order of names means nothing."""

    STRUCTURE = 0  # how the modules' weights lie: joined projections
    WEIGHTS = 1  # what the modules compute with: int8, int4
    ATTENTION = 2  # how attention is computed: eager, sdpa, flash
    EXECUTION = 3  # how what is computed is run: compile, graph
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


class Change(Protocol):
    """One thing that a patch did to a pipeline. Copies and pickles of the pipeline carry changes of their own."""

    def holds(self) -> bool:
        """Whether it is still there, where calls of the pipeline meet it."""

    def revert(self) -> None:
        """Take back what was put there, and leave what others put there later."""


@dataclass(eq=False)
class Interposed:
    """A part before the calls of the module at `place` below `root` (`mid_block.attentions.0`; empty: `root`)."""

    root: nn.Module
    place: str
    part: calls.Part

    def __post_init__(self) -> None:
        self.place = self.place.removesuffix(f".{anatomy.ADAPTED}")
        calls.interpose(self._there()[-1], self.part)

    def holds(self) -> bool:
        return any(self.part in calls.parts(module) for module in self._there())

    def revert(self) -> None:
        for module in self._there():
            calls.withdraw(module, self.part)

    def _there(self) -> list[nn.Module]:
        return anatomy.at(self.root, self.place)


@dataclass(eq=False)
class Replaced:
    """An attribute of one object, not of its class: `value` in place of what was there."""

    owner: Any
    name: str
    value: Any
    before: Any = field(init=False)
    was_there: bool = field(init=False)

    def __post_init__(self) -> None:
        self.was_there = self.name in vars(self.owner)
        self.before = vars(self.owner).get(self.name)
        setattr(self.owner, self.name, self.value)

    def holds(self) -> bool:
        """Also behind another one's wrapper, if that says what it wraps, as `functools.wraps` does."""
        there = vars(self.owner).get(self.name)
        while there is not self.value and hasattr(there, "__wrapped__"):
            there = there.__wrapped__
        return there is self.value

    def revert(self) -> None:
        if vars(self.owner).get(self.name) is not self.value:
            return
        if self.was_there:
            setattr(self.owner, self.name, self.before)
        else:
            delattr(self.owner, self.name)


@dataclass
class Patch:
    """What was changed on a pipeline, the evidence that it is active, and the way back.

    `touched` are the names of the changed modules (`unet.mid_block.attentions.0…`); `proof` is counted while the
    pipeline runs (`{"quantized_linear": 32, "kernel_calls": 640}`); a lossy technique has no `undo` and says why.
    `slots` says which technique decides what, `stack` lists the patches on the same denoiser, the last one last.
    """

    name: str
    touched: tuple[str, ...]
    read_proof: Proof = dict
    changes: tuple[Change, ...] = ()
    why_lossy: str = ""
    parts: tuple["Patch", ...] = ()
    slots: dict[str, str] = field(default_factory=dict)
    stack: list["Patch"] = field(default_factory=list, repr=False)
    undone: bool = field(default=False, init=False)

    @property
    def active(self) -> bool:
        """Whether everything that it put on the pipeline is still there."""
        return not self.undone and all(change.holds() for patch in self._flat() for change in patch.changes)

    @property
    def displaced(self) -> tuple[str, ...]:
        """The techniques of it that others have displaced, in whole or in part."""
        return tuple(patch.name for patch in self._flat() if not all(change.holds() for change in patch.changes))

    @property
    def proof(self) -> dict[str, Any]:
        """The counts so far, of this patch and of the patches that it is made of; `displaced` names what is off."""
        counted = {key: value for part in self.parts for key, value in part.proof.items()} | self.read_proof()
        return counted | ({"displaced": ", ".join(self.displaced)} if self.stack and self.displaced else {})

    def undo(self) -> None:
        """Restore the pipeline, to the bit. Raises OptsdError, and changes nothing, if a part of it is lossy.

        Patches come off in the reverse of the order in which they were applied. What others put there since stays.
        """
        if self.undone:
            raise OptsdError(f"{self.name} is undone already", "call undo() once")
        if self.stack and self.stack[-1] is not self:
            later = self.stack[-1].name
            raise OptsdError(f"{self.name} cannot be undone: {later} was applied on top of it", f"undo {later} first")
        lossy = next((patch for patch in self._flat() if patch.why_lossy), None)
        if lossy:
            raise OptsdError(f"{lossy.name} cannot be undone: {lossy.why_lossy}", "load the pipeline again")
        for patch in reversed(self._flat()):
            for change in reversed(patch.changes):
                change.revert()
            patch.undone = True
        if self.stack:
            self.stack.pop()

    def _flat(self) -> list["Patch"]:
        return [*(patch for part in self.parts for patch in part._flat()), self]


def patches(pipe: Pipeline) -> list[Patch]:
    """The patches on this pipeline's denoiser, which other pipelines may share, in the order of their application.

    A copy of the pipeline has patches of its own, which `undo()` takes off the copy alone.
    """
    return vars(anatomy.denoiser(pipe)).setdefault("_optsd_patches", [])


class Watch:
    """Before the denoiser's calls: says once, at the next prompt, that others have displaced a patch."""

    def __init__(self, patch: Patch) -> None:
        self.patch, self.said, self.prompt = patch, False, LastPrompt()

    def __call__(self, call: calls.Call, *args: Any, **kwargs: Any) -> Any:
        # A look at every module takes as long as a small step: one for each prompt tensor will do.
        is_new = self.prompt.is_new(anatomy.argument(call.module, anatomy.TEXT, args, kwargs))
        if is_new and not self.said and (displaced := self.patch.displaced):
            self.said = True
            warnings.warn(
                f"{', '.join(displaced)} is no longer on this pipeline as it was applied: something else has taken "
                f"its place since; apply it last, or load the pipeline again",
                stacklevel=2,
            )
        return call(*args, **kwargs)

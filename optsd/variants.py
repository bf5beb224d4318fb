"""The named variants, and how a name such as `int8+flash+kvcache` is read. Imports no torch."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optsd import outside
from optsd.errors import BadInput, Unsupported
from optsd.quantization import rules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optsd.patching import Optimization, Patch, Pipeline

TECHNIQUES: dict[str, str] = {
    # name in a variant -> the class that implements it, or the function that returns its parts; imported when used
    "eager": "optsd.optimizations.attention:Eager",
    "sdpa": "optsd.optimizations.attention:Sdpa",
    "flash": "optsd.optimizations.attention:Flash",
    "flash-enhanced": "optsd.optimizations.flash_enhanced:flash_enhanced",
    "sage": "optsd.optimizations.sage:Sage",
    "kvcache": "optsd.optimizations.kvcache:KVCache",
    "deepcache": "optsd.optimizations.deepcache:DeepCache",
    "tome": "optsd.optimizations.tome:TokenMerging",
    "fbcache": "optsd.optimizations.step_caches:FirstBlock",
    "taylorseer": "optsd.optimizations.step_caches:TaylorSeer",
    "pab": "optsd.optimizations.step_caches:Broadcast",
    "compile": "optsd.optimizations.compile:Compile",
    "graph": "optsd.optimizations.graph:Graph",
    "int8": "optsd.optimizations.quantize:Int8",
    "int4": "optsd.optimizations.quantize:Int4",
    "int8-bnb": "optsd.optimizations.peers:Int8Bnb",
    "int4-bnb": "optsd.optimizations.peers:Int4Bnb",
    "int8-torchao": "optsd.optimizations.peers:Int8Torchao",
    "int4-torchao": "optsd.optimizations.peers:Int4Torchao",
}

PARAMETERS = {"deepcache": "3", "tome": "0.5", "fbcache": "0.1", "taylorseer": "3", "pab": "2"}
"""The techniques that take a parameter after a colon, and its value where a name gives none."""

BY_LAYER = ("int8", "int4")
"""Those that take words after a colon, or none: `int8:all:up_blocks.*=int4` (`optsd.quantization.rules`)."""

GUIDE_VARIANTS = (
    "baseline",
    "sdpa",
    "int8",
    "int4",
    "flash",
    "flash-enhanced",
    "kvcache",
    "flash+kvcache",
    "int8+flash",
    "int4+flash",
    "int8+flash+kvcache",
)
"""What a bench runs unless `--variant` says otherwise: the guide's ten, and `sdpa`, today's default of diffusers."""

ALIASES = {"combined": "int8+flash", "baseline": "eager"}


@dataclass(frozen=True)
class Variant:
    """A combination of techniques, in the order in which they are applied."""

    name: str
    steps: "tuple[Optimization, ...]"

    @property
    def exact(self) -> bool:
        return all(step.exact for step in self.steps)

    def check(self, pipe: "Pipeline") -> None:
        """Raise `Unsupported` if some technique cannot work on this pipeline as it is now. Changes nothing."""
        from optsd.patching import patches

        for step in self.steps:
            step.check(pipe)
            for patch in patches(pipe):
                if step.slot in patch.slots:
                    raise Unsupported(
                        f"{step.name} cannot be added: {patch.slots[step.slot]} decides the {step.slot} already",
                        f"undo() the patch {patch.name} first",
                    )

    def apply(self, pipe: "Pipeline") -> "Patch":
        """Apply every technique in place; if one fails, those before it are undone where they can be."""
        from optsd.anatomy import denoiser, meet_again
        from optsd.patching import Interposed, Patch, Watch, patches

        self.check(pipe)
        parts: list[Patch] = []
        try:
            for step in self.steps:
                parts.append(step.apply(pipe))
        except BaseException:
            for part in reversed(parts):
                if not part.why_lossy:
                    part.undo()
            raise
        touched = tuple(dict.fromkeys(name for part in parts for name in part.touched))
        patch = Patch(self.name, touched, parts=tuple(parts), slots=self._slots(), stack=patches(pipe))
        patch.changes = (Interposed(denoiser(pipe), "", Watch(patch)),)
        patch.stack.append(patch)
        meet_again(pipe)
        return patch

    def _slots(self) -> dict[str, str]:
        return {step.slot: step.name for step in self.steps}


def canonical(name: str) -> str:
    """One spelling for each variant: aliases resolved, techniques known, each named once. No torch is imported.

    Raises BadInput for an unknown technique. Parameters follow a colon and are written out: `deepcache:3`. Rules for
    layers have one order.
    """
    expanded = "+".join(ALIASES.get(part.strip(), part.strip()) for part in name.split("+"))
    parts = [_written_out(part) for part in expanded.split("+")]
    for part in parts:
        if not is_technique(part):
            known = ", ".join([*ALIASES, *TECHNIQUES, *outside.techniques()])
            raise BadInput(f"unknown variant {name!r}", f"choose from {known}, or join techniques with +")
    if len(set(parts)) < len(parts):
        raise BadInput(f"variant {name!r} names a technique twice", "name each technique once")
    order = [*TECHNIQUES, *sorted(outside.techniques())]
    parts.sort(key=lambda part: order.index(part.partition(":")[0]))
    joined = "+".join(parts)
    written = next((known for known in GUIDE_VARIANTS if sorted(known.split("+")) == sorted(parts)), joined)
    return "baseline" if written == "eager" else written


def _written_out(part: str) -> str:
    name, colon, parameter = part.partition(":")
    if name in BY_LAYER and colon:
        whole, by_layer = rules.read(parameter)
        return rules.spelled(name, by_layer, whole)
    return f"{part}:{PARAMETERS[part]}" if part in PARAMETERS else part


def is_technique(spelled: str) -> bool:
    """Whether that is a technique's name, with or without a parameter. Raises BadInput where two packages have it."""
    name = spelled.partition(":")[0]
    if name in outside.techniques():
        outside.refuse_taken(name, name in TECHNIQUES)
        return True
    return name in TECHNIQUES


def is_variant(name: str) -> bool:
    """Whether a word, without its parameter, means a technique or a variant here."""
    return name.partition(":")[0] in {*ALIASES, *TECHNIQUES, *outside.techniques()}


def is_ours(variant: str) -> bool:
    """Whether a variant's name has only techniques of this package: no subject's, and nothing of another package."""
    return all(part.partition(":")[0] in {*ALIASES, *TECHNIQUES} for part in variant.split("+"))


def chosen(given: "Iterable[str] | None", default: "Iterable[str]") -> tuple[str, ...]:
    """The variants that options name, canonical, each once: an option may be repeated, and hold a list with commas."""
    names = [name.strip() for group in given or () for name in group.split(",") if name.strip()]
    return tuple(dict.fromkeys(map(canonical, names or default)))


def parse(name: str) -> Variant:
    """The variant of that name, ready to `apply`. Raises BadInput or Unsupported (two techniques of one slot)."""
    spelled = canonical(name)
    named = ("eager" if spelled == "baseline" else spelled).split("+")
    steps = [step for part in named for step in _technique(part)]
    taken: dict[str, str] = {}
    for step in steps:
        if step.slot in taken:
            raise Unsupported(
                f"{taken[step.slot]} and {step.name} cannot be combined: both decide the {step.slot}", "choose one"
            )
        taken[step.slot] = step.name
    return Variant(spelled, tuple(sorted(steps, key=lambda step: (step.stage, step.name))))


def against_eager(name: str) -> Variant:
    """The variant as a bench builds it: with the guide's eager attention wherever it names no attention kernel."""
    variant = parse(name)
    if any(step.slot == "attention" for step in variant.steps):
        return variant
    return Variant(variant.name, parse(f"eager+{variant.name}").steps)


def _technique(spelled: str) -> "tuple[Optimization, ...]":
    name, colon, parameter = spelled.partition(":")
    if name in outside.techniques():
        return (outside.load(name, parameter if colon else None),)
    module, _, attribute = TECHNIQUES[name].partition(":")
    technique = getattr(importlib.import_module(module), attribute)
    if name in PARAMETERS or (name in BY_LAYER and colon):
        return (technique.from_text(parameter),)
    if colon:
        raise BadInput(f"{name} takes no parameter, {spelled!r} gives one", f"write {name}")
    made = technique()
    return made if isinstance(made, tuple) else (made,)

"""What transformers need not compute in every denoising step: diffusers' own cache hooks, counted. Approximate.

- `fbcache:T`: First Block Cache. Where the first block changes its input as in the step before, to a relative T, what
  the blocks after it added there is added again.
- `taylorseer:N`: TaylorSeer (Liu et al., 2025). One step in N computes attention; between them its output is
  extrapolated from the last two that were computed.
- `pab:N`: Pyramid Attention Broadcast (Zhao et al., 2024). Between the timesteps 100 and 800, one step in N computes
  attention, and the N - 1 after it use what that gave.

diffusers keeps the hooks' memory by a name that its pipelines give, where they give one. Here it lives with the prompt
tensor, for every pipeline: so guidance in two calls, a new call and another prompt never meet each other's.
"""

import math
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from diffusers import hooks
from diffusers.hooks.hooks import CacheContext, HookRegistry, ModelHook, StateManager
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook, PyramidAttentionBroadcastState
from torch import Tensor, nn

from optsd import anatomy
from optsd.calls import Call, plain_class
from optsd.errors import BadInput, NothingMatched, Unsupported
from optsd.patching import Interposed, Patch, Pipeline, Stage
from optsd.state import PerPrompt, Tally, Turn

COUNTER = "optsd_computed"
"""The name of our hook in diffusers' registries: it stands behind the cache's, which asks it for what is computed."""


@dataclass(frozen=True)
class StepCache:
    """What the three share; each says which modules it covers, and puts diffusers' hooks there."""

    exact: bool = False
    stage: Stage = Stage.REUSE
    slot: str = "steps"

    @property
    def name(self) -> str:
        raise NotImplementedError

    def places(self, transformer: Any) -> list[str]:
        """The modules whose calls may be spared."""
        raise NotImplementedError

    def put(self, transformer: Any, places: list[str], steps: "Steps") -> None:
        """Put diffusers' hooks on them."""
        raise NotImplementedError

    def check(self, pipe: Pipeline) -> None:
        anatomy.check_transformer(pipe, self.name)
        transformer = anatomy.denoiser(pipe)
        if getattr(transformer, "is_cache_enabled", False):
            raise Unsupported(f"{self.name}: a cache of diffusers is on already", "call disable_cache() first")
        if not self.places(transformer):
            raise NothingMatched(f"{self.name} found nothing that it can keep", "choose another step cache")

    def apply(self, pipe: Pipeline) -> Patch:
        transformer, prefix = anatomy.denoiser(pipe), anatomy.denoiser_name(pipe)
        places = self.places(transformer)
        if not places:
            raise NothingMatched(f"{self.name} found nothing that it can keep", "choose another step cache")
        hooked = Hooked(transformer, places)
        steps = Steps(hooked, anatomy.timestep_scale(transformer))
        self.put(transformer, places, steps)
        touched = tuple(f"{prefix}.{place}" for place in places)
        return Patch(self.name, touched, hooked.proof, (hooked, Interposed(transformer, "", steps)))


@dataclass(frozen=True)
class FirstBlock(StepCache):
    """`threshold`: how much the first block's residual may differ from the last one that was computed with the rest."""

    threshold: float = 0.1

    @property
    def name(self) -> str:
        return f"fbcache:{self.threshold:g}"

    @classmethod
    def from_text(cls, text: str) -> "FirstBlock":
        """Raises BadInput unless `text` is a number above 0 and below 1."""
        try:
            threshold = float(text)
        except ValueError:
            threshold = math.nan
        if not 0 < threshold < 1 or f"{threshold:g}" != text:
            raise BadInput(f"fbcache:{text} is no threshold", "give a relative change between 0 and 1: fbcache:0.1")
        return cls(threshold=threshold)

    def check(self, pipe: Pipeline) -> None:
        super().check(pipe)
        transformer = anatomy.denoiser(pipe)
        for place in self.places(transformer):
            kind = plain_class(transformer.get_submodule(place))
            if not anatomy.has_block_metadata(kind):
                raise Unsupported(
                    f"{self.name}: diffusers does not know what a {kind.__name__} returns", "choose taylorseer or pab"
                )

    def places(self, transformer: Any) -> list[str]:
        """The blocks, but for a last one that gives no text: what it adds to the text is nothing to be kept."""
        return anatomy.blocks(transformer)

    def put(self, transformer: Any, places: list[str], steps: "Steps") -> None:
        seen = nn.Module()  # what diffusers walks through in search of blocks: those that are covered
        for place in places:
            group = place.partition(".")[0]
            if not hasattr(seen, group):
                setattr(seen, group, nn.ModuleList())
            seen.get_submodule(group).append(transformer.get_submodule(place))  # type: ignore[operator]
        hooks.apply_first_block_cache(seen, hooks.FirstBlockCacheConfig(self.threshold))


@dataclass(frozen=True)
class Attentions(StepCache):
    """Those that keep the output of attention layers, for `every` steps."""

    every: int = 2

    @classmethod
    def read(cls, name: str, text: str) -> Any:
        """Raises BadInput unless `text` is a whole number of at least 2."""
        if not text.isdecimal() or text.startswith("0") or int(text) < 2:
            raise BadInput(f"{name}:{text} is no interval", f"give a whole number of steps from 2 on: {name}:3")
        return cls(every=int(text))

    def places(self, transformer: Any) -> list[str]:
        return [place for place, _ in anatomy.attentions_of(transformer)]


@dataclass(frozen=True)
class TaylorSeer(Attentions):
    """Attention computed in one step of `every`, extrapolated in the others; the first three are computed."""

    every: int = 3

    @property
    def name(self) -> str:
        return f"taylorseer:{self.every}"

    @classmethod
    def from_text(cls, text: str) -> "TaylorSeer":
        return cls.read("taylorseer", text)

    def put(self, transformer: Any, places: list[str], steps: "Steps") -> None:
        names = [place.replace(".", r"\.") for place in places]
        hooks.apply_taylorseer_cache(
            transformer,
            hooks.TaylorSeerCacheConfig(
                cache_interval=self.every, cache_identifiers=names, taylor_factors_dtype=transformer.dtype
            ),
        )


@dataclass(frozen=True)
class Broadcast(Attentions):
    """Attention computed in one step of `every` between the timesteps 100 and 800, and used again in the others."""

    @property
    def name(self) -> str:
        return f"pab:{self.every}"

    @classmethod
    def from_text(cls, text: str) -> "Broadcast":
        return cls.read("pab", text)

    def put(self, transformer: Any, places: list[str], steps: "Steps") -> None:
        hooks.apply_pyramid_attention_broadcast(
            transformer,
            hooks.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=self.every,
                cross_attention_block_skip_range=self.every,
                current_timestep_callback=steps.now,
            ),
        )


class Counter(ModelHook):
    """Behind a cache's hook: counts what is computed."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.tally.add("computed")
        return self.fn_ref.original_forward(*args, **kwargs)


class Hooked:
    """diffusers' hooks on these modules of a transformer: put there, counted and taken away together."""

    def __init__(self, root: nn.Module, places: list[str]) -> None:
        self.root, self.places, self.tally = root, places, Tally()
        self.before = [set(registry.hooks) for registry in self._registries()]
        for registry in self._registries():
            registry.register_hook(Counter(self.tally), COUNTER)

    def caches(self) -> list[ModelHook]:
        """The hooks that are there since, our own left out."""
        return [
            hook
            for registry, known in zip(self._registries(), self.before, strict=True)
            for name, hook in registry.hooks.items()
            if name not in known and name != COUNTER
        ]

    def holds(self) -> bool:
        return len(self.caches()) >= len(self.places) and all(COUNTER in each.hooks for each in self._registries())

    def revert(self) -> None:
        for place, registry, known in zip(self.places, self._registries(), self.before, strict=True):
            for name in [name for name in reversed(registry._hook_order) if name not in known]:
                registry.remove_hook(name, recurse=False)
            if not registry.hooks:
                module = anatomy.at(self.root, place)[0]
                for attribute in ("forward", "_diffusers_hook"):
                    vars(module).pop(attribute, None)
        HookRegistry.check_if_exists_or_initialize(self.root).invalidate_child_registries_cache()

    def proof(self) -> dict[str, Any]:
        """Of the calls of `cached_layers`, how many ran (`layers_computed`) and how many did not (`layers_reused`)."""
        computed = self.tally["computed"]
        calls = self.tally["steps"] * len(self.places)
        return {"cached_layers": len(self.places), "layers_computed": computed, "layers_reused": calls - computed}

    def _registries(self) -> list[HookRegistry]:
        return [HookRegistry.check_if_exists_or_initialize(anatomy.at(self.root, place)[0]) for place in self.places]


class Steps:
    """Before the transformer's calls: gives the hooks the memory of the prompt, fresh where a denoising begins.

    One call at a time runs in the transformer, as the hooks hold what the call is about. What they keep of one pipeline
    call is dropped when the next one begins.
    """

    def __init__(self, hooked: Hooked, scale: float) -> None:
        self.hooked, self.scale = hooked, scale
        self.runs, self.turn, self.names = PerPrompt(), Turn(), count()
        self.timestep = 0.0

    def now(self) -> float:
        """Of 1000, whatever the transformer counts in."""
        return self.timestep

    def copying(self) -> None:
        """Raises Unsupported: diffusers' hooks give each module a `forward` that calls the module it was made for."""
        raise Unsupported(
            "a copy of a transformer with a step cache would compute with the layers of the original",
            "undo the step cache, copy, and apply it to both",
        )

    @torch.compiler.disable
    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        timestep, text = (
            anatomy.argument(call.module, names, args, kwargs) for names in (anatomy.TIMESTEP, anatomy.TEXT)
        )
        with self.turn.lock:
            first = timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep
            self.timestep = float(first) * self.scale
            caches = self.hooked.caches()
            if not len(self.runs):
                for hook in caches:
                    if hook._is_stateful:
                        hook.reset_state(call.module)
            self._remember(caches, self.runs.of(text))
            self.hooked.tally.add("steps")
            return call(*args, **kwargs)

    def _remember(self, caches: list[ModelHook], known: dict[Any, Any]) -> None:
        if self.timestep >= known.get("timestep", math.inf):
            known.clear()
        known["timestep"] = self.timestep
        context = known.setdefault("context", CacheContext(f"optsd {next(self.names)}"))
        for hook in caches:
            if isinstance(hook, PyramidAttentionBroadcastHook):  # it has one state for all contexts
                hook.state = known.setdefault(hook, PyramidAttentionBroadcastState())
            for value in vars(hook).values():
                if isinstance(value, StateManager):
                    value.set_context(context)

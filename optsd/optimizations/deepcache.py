"""Deep features of the UNet kept for a few steps (Ma et al., "DeepCache", CVPR 2024). Approximate, and fast.

From one denoising step to the next the deep layers' output hardly changes. One step in N runs the whole UNet and keeps
what enters the last layer of its last block; the N - 1 steps after it run that layer only, on the kept features and on
the new latents' first convolution. This is the paper's uniform schedule, with the shallowest skip branch.
"""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor
from torch.nn import functional

from optsd import anatomy, calls
from optsd.calls import Call
from optsd.errors import BadInput, Unsupported
from optsd.patching import Interposed, Patch, Pipeline, Stage
from optsd.state import PerPrompt, Tally, Turn


@dataclass(frozen=True)
class DeepCache:
    """Run the whole UNet in one step of `every`; the paper finds little loss up to 5 with SD v1.5 and 50 steps."""

    every: int = 3
    exact: bool = False
    stage: Stage = Stage.REUSE
    slot: str = "deep features"

    @property
    def name(self) -> str:
        return f"deepcache:{self.every}"

    @classmethod
    def from_text(cls, text: str) -> "DeepCache":
        """Raises BadInput unless `text` is a whole number of at least 2."""
        if not text.isdecimal() or text.startswith("0") or int(text) < 2:
            raise BadInput(f"deepcache:{text} is no interval", "give a whole number of steps from 2 on: deepcache:3")
        return cls(int(text))

    def check(self, pipe: Pipeline) -> None:
        anatomy.check_unet(pipe, self.name, "whose skip connections pass by the deep layers")
        last = anatomy.denoiser(pipe).up_blocks[-1]
        if calls.plain_class(last) not in (UpBlock2D, CrossAttnUpBlock2D) or last.upsamplers is not None:
            raise Unsupported(
                f"{self.name} cannot run the last layer of {type(last).__name__} by itself", "leave deepcache out"
            )

    def apply(self, pipe: Pipeline) -> Patch:
        unet = anatomy.denoiser(pipe)
        deep = _Deep(self.every)
        *inner, _ = (f"up_blocks.{i}" for i in range(len(unet.up_blocks)))
        last = f"up_blocks.{len(inner)}"
        parts: dict[str, calls.Part] = {
            **{f"down_blocks.{i}": _Down(deep) for i in range(len(unet.down_blocks))},
            **({"mid_block": _Skipped(deep)} if unet.mid_block is not None else {}),
            **{place: _Skipped(deep) for place in inner},
            f"{last}.resnets.{len(unet.up_blocks[-1].resnets) - 1}": _LastLayer(deep, unet.conv_in.out_channels),
            last: _LastUp(deep),
            "": deep,
        }
        changes = tuple(Interposed(unet, place, part) for place, part in parts.items())
        touched = tuple(f"unet.{place}".rstrip(".") for place in parts)
        return Patch(self.name, touched, deep.proof, changes)


@dataclass
class _Run:
    """Where one denoising of one batch of latents stands."""

    timestep: float
    sample: Tensor
    index: int = 0
    features: Tensor | None = None  # what entered the last layer of the last up block, beside its skip connection


class _Deep:
    """Before the UNet's calls: knows whether each runs whole or on the features that were kept.

    The features live with the prompt tensor, so a new pipeline call, another thread's call and a prompt that a
    callback swaps all begin with a whole step; so do a timestep that does not fall, and latents that do not continue
    those of the step before: tiles of one picture, and pictures that share a prompt tensor, have features of their own.
    One call at a time runs in the UNet, as its blocks read from here which kind of step it is.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.runs, self.tally = PerPrompt(), Tally()
        self.turn = Turn()
        self.reuses = False
        self.features: Tensor | None = None

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("down_intrablock_additional_residuals") is not None:
            raise Unsupported("deepcache skips the layers that a T2I-Adapter writes to", "leave one of them out")
        sample, timestep, text = (
            anatomy.argument(call.module, names, args, kwargs)
            for names in (anatomy.SAMPLE, anatomy.TIMESTEP, anatomy.TEXT)
        )
        with self.turn.lock:
            run = self._run(sample, timestep, text)
            self.reuses = run.index % self.every > 0 and run.features is not None
            self.features = run.features if self.reuses else None
            try:
                output = call(*args, **kwargs)
                self.tally.add("shallow" if self.reuses else "whole")
                run.features = self.features
            finally:
                self.reuses, self.features = False, None
        return output

    def kind(self, text: Tensor | None) -> bool:
        """Which of the two kinds of step this is, for `graph`."""
        return self.reuses

    def _run(self, sample: Tensor, timestep: Any, text: Tensor) -> _Run:
        """The run that these latents continue, moved to this step, or a new one."""
        now = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        runs: list[_Run] = self.runs.of(text).setdefault((threading.get_ident(), tuple(sample.shape)), [])
        earlier = [run for run in runs if run.timestep > now]
        # Those that had no call at the step before this one have ended.
        latest = min((run.timestep for run in earlier), default=now)
        alike = [(likeness(run.sample, sample), run) for run in earlier if run.timestep == latest]
        nearest, run = max(alike, key=lambda pair: pair[0], default=(0.0, None))
        if run is None or nearest < LEAST_LIKENESS:
            run = _Run(now, sample)
            runs.append(run)
        else:
            run.timestep, run.sample, run.index = now, sample, run.index + 1
        runs[:] = [each for each in runs if each.timestep in (now, latest)]
        return run

    def proof(self) -> dict[str, Any]:
        return {"whole_steps": self.tally["whole"], "shallow_steps": self.tally["shallow"]}


LEAST_LIKENESS = 0.5
"""From step to step latents keep most of their noise; those of another picture, or of another tile, have their own."""


def likeness(before: Tensor, after: Tensor) -> float:
    """The least cosine of two batches' pictures, B×C×H×W each: 1 for equal latents, about 0 for unrelated ones."""
    return float(functional.cosine_similarity(before.float().flatten(1), after.float().flatten(1)).min())


class _Down:
    """Before a down block: a shallow step hands on its input, and zeros in place of its skip connections."""

    replayable = True  # `_Deep.kind` tells

    def __init__(self, deep: _Deep) -> None:
        self.deep = deep

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        if not self.deep.reuses:
            return call(*args, **kwargs)
        block: Any = call.module
        hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        skips = len(block.resnets) + (block.downsamplers is not None)
        return hidden_states, (hidden_states.new_zeros(()),) * skips


class _Skipped:
    """Before a block that a shallow step leaves out. A zero, as a ControlNet may add to it."""

    replayable = True  # `_Deep.kind` tells

    def __init__(self, deep: _Deep) -> None:
        self.deep = deep

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        if not self.deep.reuses:
            return call(*args, **kwargs)
        hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return hidden_states.new_zeros(())


class _LastUp:
    """Before the last up block: whole steps keep what enters its last layer, shallow steps run that layer only."""

    replayable = True  # `_Deep.kind` tells

    def __init__(self, deep: _Deep) -> None:
        self.deep = deep

    def __call__(
        self,
        call: Call,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        upsample_size: int | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        text = {
            "encoder_hidden_states": encoder_hidden_states,
            "cross_attention_kwargs": cross_attention_kwargs,
            "attention_mask": attention_mask,
            "encoder_attention_mask": encoder_attention_mask,
        }
        block: Any = call.module
        attention = getattr(block, "attentions", None)
        features = self.deep.features
        if not self.deep.reuses or features is None:
            more = text if attention else {}
            return call(hidden_states, res_hidden_states_tuple, temb, upsample_size=upsample_size, **more)
        # The skip connections are taken from the end, so the last layer's is the first: the first convolution's output.
        skip = res_hidden_states_tuple[0]
        if all(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")):
            scales = {name: getattr(block, name) for name in ("s1", "s2", "b1", "b2")}
            _, skip = apply_freeu(block.resolution_idx, features.clone(), skip, **scales)  # the features had theirs
        hidden_states = torch.cat([features, skip], dim=1)
        hidden_states = block.resnets[-1](hidden_states, temb)
        return attention[-1](hidden_states, **text, return_dict=False)[0] if attention else hidden_states


class _LastLayer:
    """Before the last layer's ResNet block, whose input is the kept features beside the first convolution's output."""

    replayable = True  # `_Deep.kind` tells

    def __init__(self, deep: _Deep, skipped: int) -> None:
        self.deep, self.skipped = deep, skipped

    def __call__(self, call: Call, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.deep.reuses:
            # A copy, as a view would keep the whole input alive.
            self.deep.features = input_tensor[:, : input_tensor.shape[1] - self.skipped].clone()
        return call(input_tensor, *args, **kwargs)

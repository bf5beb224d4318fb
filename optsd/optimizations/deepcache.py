"""Deep features of the UNet kept for a few steps (Ma et al., "DeepCache", CVPR 2024). Approximate, and fast.

From one denoising step to the next the deep layers' output hardly changes. One step in N runs the whole UNet and keeps
what enters the last layer of its last block; the N - 1 steps after it run that layer only, on the kept features and on
the new latents' first convolution. This is the paper's uniform schedule, with the shallowest skip branch.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from torch import Tensor, nn

from optsd.errors import BadInput, Unsupported
from optsd.optimizations.attention import check_unet
from optsd.optimizations.state import PerPrompt, Tally, Turn
from optsd.patching import Patch, Pipeline, Stage, in_reverse, replace_attribute


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
        check_unet(pipe, self.name)
        last = pipe.unet.up_blocks[-1]
        if type(last) not in (UpBlock2D, CrossAttnUpBlock2D) or last.upsamplers is not None:
            raise Unsupported(
                f"{self.name} cannot run the last layer of {type(last).__name__} by itself", "leave deepcache out"
            )

    def apply(self, pipe: Pipeline) -> Patch:
        deep = _Deep(pipe.unet, self.every)
        restores = deep.install()
        return Patch(self.name, tuple(restores), deep.proof, in_reverse(restores.values()))


@dataclass
class _Run:
    """Where one pipeline call stands."""

    index: int = -1
    timestep: float = math.inf
    features: Tensor | None = None  # what entered the last layer of the last up block, beside its skip connection


class _Deep:
    """A UNet that knows, in every call, whether it runs whole or on the features that were kept.

    The features live with the prompt tensor, so a new pipeline call, another thread's call and a prompt that a
    callback swaps all begin with a whole step; so does a timestep that does not fall. One call at a time runs in the
    UNet, as its blocks read from here which kind of step it is.
    """

    def __init__(self, unet: nn.Module, every: int) -> None:
        self.unet, self.every = unet, every
        self.whole = unet.forward
        self.runs, self.tally = PerPrompt(), Tally()
        self.turn = Turn()
        self.reuses = False
        self.features: Tensor | None = None

    def install(self) -> dict[str, Callable[[], None]]:
        """Replace `forward` of the UNet and of its blocks; returns what takes each back, by name."""
        unet: Any = self.unet
        *inner, up = unet.up_blocks
        place = f"unet.up_blocks.{len(inner)}"
        parts: dict[str, tuple[nn.Module, Any]] = {
            **{f"unet.down_blocks.{i}": (block, _Down(self, block)) for i, block in enumerate(unet.down_blocks)},
            **{f"unet.up_blocks.{i}": (block, _Skipped(self, block)) for i, block in enumerate(inner)},
            f"{place}.resnets.{len(up.resnets) - 1}": (up.resnets[-1], _LastLayer(self)),
            place: (up, _LastUp(self, up)),
            "unet": (unet, self),
        }
        if unet.mid_block is not None:
            parts["unet.mid_block"] = (unet.mid_block, _Skipped(self, unet.mid_block))
        return {name: replace_attribute(module, "forward", part.forward) for name, (module, part) in parts.items()}

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("down_intrablock_additional_residuals") is not None:
            raise Unsupported("deepcache skips the layers that a T2I-Adapter writes to", "leave one of them out")
        key = threading.get_ident(), tuple(sample.shape)
        run = self.runs.of(encoder_hidden_states).setdefault(key, _Run())
        now = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        run.index = run.index + 1 if now < run.timestep else 0
        run.timestep = now
        with self.turn.lock:
            self.features = run.features
            self.reuses = run.index % self.every > 0 and run.features is not None
            try:
                output = self.whole(sample, timestep, encoder_hidden_states, *args, **kwargs)
                self.tally.add("shallow" if self.reuses else "whole")
                run.features = self.features
            finally:
                self.reuses, self.features = False, None
        return output

    def proof(self) -> dict[str, Any]:
        return {"whole_steps": self.tally["whole"], "shallow_steps": self.tally["shallow"]}


class _Down:
    """A down block: in a shallow step it hands on its input, and zeros in place of its skip connections."""

    def __init__(self, deep: _Deep, block: Any) -> None:
        self.deep, self.block, self.whole = deep, block, block.forward
        self.skips = len(block.resnets) + (block.downsamplers is not None)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not self.deep.reuses:
            return self.whole(hidden_states, *args, **kwargs)
        return hidden_states, (hidden_states.new_zeros(()),) * self.skips


class _Skipped:
    """A block that a shallow step leaves out. A zero, as a ControlNet may add to it."""

    def __init__(self, deep: _Deep, block: Any) -> None:
        self.deep, self.whole = deep, block.forward

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.deep.reuses:
            return self.whole(hidden_states, *args, **kwargs)
        return hidden_states.new_zeros(())


class _LastUp:
    """The last up block: whole steps keep what enters its last layer, shallow steps run that layer only."""

    def __init__(self, deep: _Deep, block: Any) -> None:
        self.deep, self.block, self.whole = deep, block, block.forward

    def forward(
        self,
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
        attention = getattr(self.block, "attentions", None)
        features = self.deep.features
        if not self.deep.reuses or features is None:
            more = text if attention else {}
            return self.whole(hidden_states, res_hidden_states_tuple, temb, upsample_size=upsample_size, **more)
        # The skip connections are taken from the end, so the last layer's is the first: the first convolution's output.
        hidden_states = torch.cat([features, res_hidden_states_tuple[0]], dim=1)
        hidden_states = self.block.resnets[-1](hidden_states, temb)
        return attention[-1](hidden_states, **text, return_dict=False)[0] if attention else hidden_states


class _LastLayer:
    """The last layer's ResNet block, whose input is the kept features beside the first convolution's output."""

    def __init__(self, deep: _Deep) -> None:
        unet: Any = deep.unet
        layer = unet.up_blocks[-1].resnets[-1]
        self.deep, self.whole = deep, layer.forward
        self.channels = layer.in_channels - unet.conv_in.out_channels

    def forward(self, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.deep.reuses:
            # A copy, as a view would keep the whole input alive.
            self.deep.features = input_tensor[:, : self.channels].clone()
        return self.whole(input_tensor, *args, **kwargs)

"""Compute a UNet in bfloat16 while its callers keep float32: casts where tensors enter and leave."""

import inspect
import weakref
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from optsd import native

ENTERING = ("sample", "down_block_additional_residuals", "mid_block_additional_residual")
"""What is cast besides the text. Not the timestep: bfloat16 cannot tell 999 from 1000, and the UNet makes its sinusoids
in float32 anyway."""


def suits_bfloat16(module: nn.Module) -> bool:
    """Whether bfloat16 between the layers is faster: a float32 model on a CPU that has instructions for it."""
    is_float32_on_cpu = all(
        parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in module.parameters()
    )
    return is_float32_on_cpu and torch.cpu._is_avx512_bf16_supported()


def compute_in_bfloat16(unet: nn.Module) -> None:
    """Turn what is left in float32 into bfloat16, and cast what enters and leaves. Calls stay as they are."""
    # diffusers' own `to` warns about modules to keep in float32, of which a UNet has none.
    nn.Module.to(unet, torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    boundary = Boundary(list(inspect.signature(type(unet).forward).parameters)[1:])
    for module in unet.modules():
        if type(module) in FUSED and not native.refusal():
            module.__class__ = FUSED[type(module)]
    unet.register_forward_pre_hook(boundary.enter, with_kwargs=True)
    unet.register_forward_hook(boundary.leave)
    unet.boundary = boundary  # type: ignore[assignment]


class FusedGEGLU(GEGLU):
    """diffusers' GEGLU; on bfloat16 one pass over memory, where torch takes a strided GELU and a product."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        gated = self.proj(hidden_states)
        if gated.device.type == "cpu" and gated.dtype == torch.bfloat16:
            return torch.ops.optsd.geglu(gated)
        values, gate = gated.chunk(2, dim=-1)
        return values * self.gelu(gate)


class FusedResnetBlock(ResnetBlock2D):
    """diffusers' ResnetBlock2D; on bfloat16 SiLU is computed as the group normalization is, in one pass."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        is_plain = (
            (self.upsample, self.downsample, self.time_embedding_norm) == (None, None, "default")
            and temb is not None
            and self.time_emb_proj is not None
            and all(type(norm) is nn.GroupNorm and norm.affine for norm in (self.norm1, self.norm2))
            and type(self.nonlinearity) is nn.SiLU
        )
        if not is_plain or input_tensor.device.type != "cpu" or input_tensor.dtype != torch.bfloat16:
            return super().forward(input_tensor, temb, *args, **kwargs)
        hidden_states = self.conv1(_normalized(self.norm1, input_tensor))
        activated = temb if self.skip_time_act else self.nonlinearity(temb)
        hidden_states += self.time_emb_proj(activated)[:, :, None, None]
        hidden_states = self.conv2(self.dropout(_normalized(self.norm2, hidden_states)))
        hidden_states += input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return hidden_states if self.output_scale_factor == 1 else hidden_states / self.output_scale_factor


def _normalized(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return torch.ops.optsd.group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


class FusedTransformer(Transformer2DModel):
    """diffusers' Transformer2DModel; tokens become a picture where they are, not in a copy with channels first."""

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        picture = hidden_states.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            picture = self.proj_out(picture)
        return picture + residual


FUSED: dict[type, type] = {
    GEGLU: FusedGEGLU,
    ResnetBlock2D: FusedResnetBlock,
    Transformer2DModel: FusedTransformer,
}


class Boundary:
    """The two casts, and the text's last one: in every step of a call it is the same tensor.

    What others keep for each text tensor, such as a KV cache, thus finds it again in the next step.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        by_place = zip(self.names, args, strict=False)
        return (
            tuple(self._cast_entering(name, value) for name, value in by_place),
            {name: self._cast_entering(name, value) for name, value in kwargs.items()},
        )

    def leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(cast(part, torch.float32) for part in output)
        output.sample = cast(output.sample, torch.float32)
        return output

    def _cast_entering(self, name: str, value: Any) -> Any:
        if name == "encoder_hidden_states" and isinstance(value, Tensor) and value.dtype == torch.float32:
            return self._cast_text(value)
        return cast(value, torch.bfloat16) if name in ENTERING else value

    def _cast_text(self, text: Tensor) -> Tensor:
        if text.is_inference():  # it has no version by which a change could be seen
            return text.to(torch.bfloat16)
        last = self.last
        if last is None or last[0]() is not text or last[1] != text._version:
            last = self.last = (weakref.ref(text), text._version, text.to(torch.bfloat16))
        return last[2]

    def __deepcopy__(self, memo: dict) -> "Boundary":
        return Boundary(self.names)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors, and tuples or lists of them, in that type; everything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(cast(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

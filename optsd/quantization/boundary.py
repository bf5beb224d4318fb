"""What lies between quantized layers: fused blocks, and bfloat16 while the callers of a denoiser keep float32."""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import get_parameter_dtype
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from optsd import anatomy, native
from optsd.calls import Call, become, parts, plain_class
from optsd.errors import Unsupported
from optsd.patching import Interposed
from optsd.quantization import between
from optsd.quantization.kernels import KERNELS
from optsd.quantization.layers import QConv2d, QLinear
from optsd.state import PerPrompt

KEPT_PRECISE = anatomy.NUMBERS
"""What is not cast: bfloat16 cannot tell 999 from 1000, and the denoiser makes its sinusoids in float32 anyway."""


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for it."""
    return torch.cpu._is_avx512_bf16_supported()


def suits_bfloat16(module: nn.Module) -> bool:
    """Whether bfloat16 between the layers is faster: a float32 model on a CPU that has instructions for it.

    Without them it is no faster (docs/quantization.md), and what is not quantized is many times slower in torch.
    """
    is_float32_on_cpu = all(
        parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in module.parameters()
    )
    return is_float32_on_cpu and has_bfloat16()


def drawing_part(component: Any) -> Any:
    """Of what encodes pictures too, as a VAE does, the decoder; else all of it."""
    return component.decoder if hasattr(component, "encoder") and hasattr(component, "decoder") else component


def compute_in_bfloat16(module: nn.Module) -> Interposed:
    """Turn what is left in float32 into bfloat16, and cast what enters and leaves. Calls stay as they are."""
    # diffusers' own `to` warns about modules to keep in float32, of which a UNet has none.
    nn.Module.to(module, torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not native.refusal():
        fuse(module)
    return Interposed(module, "", Boundary())


def fuse(module: nn.Module) -> None:
    """Have what lies between quantized layers computed by kernels of ours, wherever they serve what comes."""
    for each in module.modules():
        if plain_class(each) in FUSED:
            become(each, FUSED[plain_class(each)])


def fuse_on_gpu(module: nn.Module) -> None:
    """The same where the module is on a GPU for which Triton compiles."""
    if not KERNELS["triton"].refusal(anatomy.device(module), bits=8, groups=1):
        fuse(module)


def are_served(x: Tensor) -> bool:
    """Whether what is like x is: of bfloat16 on a CPU, of any type on a GPU, unless a compiler fuses torch's own."""
    if on_cpu(x):
        return x.dtype == torch.bfloat16
    return not torch.compiler.is_compiling() and not KERNELS["triton"].refusal(x.device, bits=8, groups=1)


def on_cpu(x: Tensor) -> bool:
    """Which kernels of ours serve it: the CPU's or the GPU's."""
    return x.device.type == "cpu"


def boundary_of(module: nn.Module) -> "Boundary | None":
    """What casts before the module's calls, if anything does."""
    return next((part for part in parts(module) if isinstance(part, Boundary)), None)


class FusedGEGLU(GEGLU):
    """diffusers' GEGLU in one pass over memory, where torch takes a strided GELU and a product."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        proj: nn.Module = self.proj
        if has_end(proj) and are_served(hidden_states):
            return proj(hidden_states, gated=True)
        gated = proj(hidden_states)
        if are_served(gated):
            return torch.ops.optsd.geglu(gated) if on_cpu(gated) else between.geglu(gated)
        values, gate = gated.chunk(2, dim=-1)
        return values * self.gelu(gate)


class FusedResnetBlock(ResnetBlock2D):
    """diffusers' ResnetBlock2D; SiLU is computed as the group normalization is, in one pass."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        is_plain = (
            (self.upsample, self.downsample) == (None, None)
            and (temb is None) == (self.time_emb_proj is None)  # a decoder knows of no time
            and self.time_embedding_norm in ("default", *(["group"] if temb is None else []))
            and all(_is_plain(norm, input_tensor) for norm in (self.norm1, self.norm2))
            and type(self.nonlinearity) is nn.SiLU
        )
        if not is_plain or not are_served(input_tensor):
            return super().forward(input_tensor, temb, *args, **kwargs)
        hidden_states = _normalized(self.norm1, input_tensor, of=self.conv1)
        if temb is None or self.time_emb_proj is None:
            hidden_states = self.conv1(hidden_states)
        else:
            activated = temb if self.skip_time_act else self.nonlinearity(temb)
            hidden_states = _plus(self.conv1, hidden_states, self.time_emb_proj(activated)[:, :, None, None])
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        hidden_states = _plus(self.conv2, self.dropout(_normalized(self.norm2, hidden_states, of=self.conv2)), shortcut)
        return hidden_states if self.output_scale_factor == 1 else hidden_states / self.output_scale_factor


class FusedTransformerBlock(BasicTransformerBlock):
    """diffusers' BasicTransformerBlock; a sum is computed as the normalization after it or the product before it is."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Any = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        is_plain = (
            (self.norm_type, self.pos_embed, self._chunk_size) == ("layer_norm", None, None)
            and not cross_attention_kwargs
            and are_served(hidden_states)
            and all(_is_of_rows(norm, hidden_states) for norm in (self.norm2, self.norm3))
            and [*map(type, self.ff.net)][1:] == [nn.Dropout, type(self.ff.net[-1])]
            and _is_bare(self.ff, FeedForward)
        )
        if not is_plain or self.attn2 is None:
            inputs = (attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, cross_attention_kwargs)
            return super().forward(hidden_states, *inputs, *args, **kwargs)
        text = encoder_hidden_states if self.only_cross_attention else None
        normal = _layer_norm(self.norm1, hidden_states)
        attended = _attended(self.attn1, normal, text, attention_mask)
        hidden_states, normal = _added(self.norm2, attended, hidden_states)
        attended = _attended(self.attn2, normal, encoder_hidden_states, encoder_attention_mask)
        hidden_states, normal = _added(self.norm3, attended, hidden_states)
        into, dropout, out = self.ff.net
        return _plus(out, dropout(_gated(into, normal, out)), hidden_states)


def _attended(attention: Attention, x: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
    # diffusers looks at the signature of the processor in every call, as long as three small layers take.
    if _is_bare(attention, Attention):
        return attention.processor(attention, x, encoder_hidden_states=text, attention_mask=mask)
    return attention(x, encoder_hidden_states=text, attention_mask=mask)


def _is_of_rows(norm: Any, x: Tensor) -> bool:
    """Whether a kernel of ours computes it: for GPUs, of rows that a block holds."""
    is_whole = _is_bare(norm, nn.LayerNorm) and norm.bias is not None and _lies_with(norm, x)
    return is_whole and (on_cpu(x) or between.are_rows_held(x.shape[-1]))


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return between.layer_norm(x, norm) if not on_cpu(x) and _is_of_rows(norm, x) else norm(x)


def _added(norm: nn.LayerNorm, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    if not on_cpu(x):
        return between.add_layer_norm(x, added, norm)
    return torch.ops.optsd.add_layer_norm(x, added, norm.weight, norm.bias, norm.eps)


def _gated(into: Any, x: Tensor, out: Any) -> Tensor:
    """into(x) for the layer `out`, which on a GPU is given integers where it multiplies them."""
    is_for_gpu = not on_cpu(x) and _is_bare(into, FusedGEGLU) and has_end(out)
    if not is_for_gpu or not between.are_rows_held(out.in_features):
        return into(x)
    return between.geglu_to_integers(into.proj(x))


def _is_bare(module: Any, *kinds: type) -> bool:
    """Whether it is of these classes itself and nobody stands at its calls: no wrapper, hook, compiler or `forward`."""
    if not any(type(module) is kind for kind in kinds):
        return False
    hooked = module._forward_hooks or module._forward_pre_hooks or module._compiled_call_impl
    return not (hooked or "forward" in vars(module))


def has_end(layer: Any) -> bool:
    """Whether it is a quantized layer whose kernel does what follows it in the same pass."""
    return _is_bare(layer, QLinear, QConv2d) and layer.kernel.ends


def _plus(layer: nn.Module, x: Tensor, added: Tensor) -> Tensor:
    """layer(x) + added; what is added to pictures may be batch × channels × 1 × 1."""
    return layer(x, plus=added) if has_end(layer) and added.dtype == x.dtype else layer(x) + added


def _is_plain(norm: Any, x: Tensor) -> bool:
    return _is_bare(norm, nn.GroupNorm) and norm.affine and _lies_with(norm, x)


def _lies_with(norm: Any, x: Tensor) -> bool:
    """Weights that are offloaded lie elsewhere until the norm itself is called."""
    return norm.weight.device == norm.bias.device == x.device


def _normalized(norm: nn.GroupNorm, x: Tensor, silu: bool = True, of: nn.Module | None = None) -> Tensor:
    """`of`: the layer that it is for."""
    if not on_cpu(x):
        return between.group_norm(x, norm, silu, to_integers=has_end(of) and type(of) is QConv2d)
    return torch.ops.optsd.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu)


class FusedTransformer(Transformer2DModel):
    """diffusers' Transformer2DModel; pictures become tokens, and tokens a picture, where they are and not in a copy."""

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        batch, _, height, width = hidden_states.shape
        if _is_plain(self.norm, hidden_states) and are_served(hidden_states):
            hidden_states = _normalized(self.norm, hidden_states, silu=False)
        else:
            hidden_states = self.norm(hidden_states)
        if not self.use_linear_projection:
            hidden_states = self.proj_in(hidden_states)
        channels = hidden_states.shape[1]
        tokens = hidden_states.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        return self.proj_in(tokens) if self.use_linear_projection else tokens, channels

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        picture = hidden_states.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2)
        return picture + residual if self.use_linear_projection else _plus(self.proj_out, picture, residual)


FUSED: dict[type, type] = {
    GEGLU: FusedGEGLU,
    ResnetBlock2D: FusedResnetBlock,
    Transformer2DModel: FusedTransformer,
    BasicTransformerBlock: FusedTransformerBlock,
}


class Boundary:
    """Before the calls of a module that others take for float32: casts what enters to the type inside, and back.

    The text's cast is kept for as long as the text lives: in every step of a call it is the same tensor, so that others
    who keep something for each text, such as a KV cache, find it again.
    """

    def __init__(self) -> None:
        self.texts = PerPrompt()

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        inside = type_inside(call.module)
        if inside == torch.float32:  # `to(float32)` leaves it as it is: only casting layer by layer asks for this
            raise Unsupported(
                "between quantized layers the type is bfloat16, and enable_layerwise_casting asks for float32",
                "give it compute_dtype=torch.bfloat16, or call it before the technique is applied",
            )
        sample = anatomy.argument(call.module, anatomy.SAMPLE, args, kwargs)
        names = anatomy.arguments(plain_class(call.module))
        output = call(
            *(self._entering(name, value, inside) for name, value in zip(names, args, strict=False)),
            **{name: self._entering(name, value, inside) for name, value in kwargs.items()},
        )
        if isinstance(output, Tensor):
            return cast(output, sample.dtype)
        if isinstance(output, tuple):
            return tuple(cast(part, sample.dtype) for part in output)
        output.sample = cast(output.sample, sample.dtype)
        return output

    def converting(self, module: nn.Module, fn: Any) -> Any:
        """What `module.to(…)` does to its tensors: to others it is float32, and `to(float32)` leaves it as it is."""

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            is_inside = tensor.dtype == torch.bfloat16 and converted.dtype == torch.float32
            return converted.to(tensor.dtype) if is_inside else converted

        return convert

    def _entering(self, name: str, value: Any, inside: torch.dtype) -> Any:
        if name in KEPT_PRECISE:
            return value
        if name in anatomy.TEXT and isinstance(value, Tensor) and value.is_floating_point() and value.dtype != inside:
            kept = self.texts.of(value)
            if inside not in kept:
                kept[inside] = value.to(inside)
            return kept[inside]
        return cast(value, inside)


def type_inside(denoiser: Any) -> torch.dtype:
    """The type that a denoiser computes in: that of its plain parameters, or that which they are cast to."""
    return get_parameter_dtype(denoiser)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in that type, in tuples, lists and dictionaries too; everything else as it is."""
    if isinstance(value, dict):
        return {key: each if key in KEPT_PRECISE else cast(each, dtype) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(cast(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

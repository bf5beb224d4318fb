"""The attention kernels, each called by its own name, and a profile that says which kernels really ran.

`torch.nn.functional.scaled_dot_product_attention` chooses a kernel in silence, and `torch.nn.attention.sdpa_kernel`
steers it through switches of the whole process, which two threads would set for each other. The operators below are
the ones that it chooses from; called directly, what runs is what was named, or an error.
"""

import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from optsd import native


class Kernel(Protocol):
    """softmax(scale · Q Kᵀ + mask) V for B×heads×N×d queries and B×heads×M×d keys; masks broadcast to B×heads×N×M."""

    @property
    def name(self) -> str: ...

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        """Why it cannot serve such tensors, or nothing."""

    def operator(self, device: torch.device) -> str:
        """What a profile calls it."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor: ...


@dataclass(frozen=True)
class FlashAttnPackage:
    """The `flash-attn` package's own CUDA kernels (Dao, "FlashAttention-2", 2023)."""

    name: str = "flash-attn"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        return _cuda_flash_refusal(device, dtype, head_dim, masked) or _package_refusal()

    def operator(self, device: torch.device) -> str:
        return "flash_attn::_flash_attn_forward"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        attend = importlib.import_module("flash_attn").flash_attn_func
        # flash-attn wants B×N×heads×d
        rows = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        return attend(*rows, softmax_scale=scale).transpose(1, 2)


@dataclass(frozen=True)
class CpuFlash:
    """This project's own flash attention for CPUs (`optsd.native`), in float32 and bfloat16."""

    name: str = "CPU flash"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if dtype not in native.TYPES:
            return f"it computes in float32 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
        return "it serves no attention mask" if masked else native.refusal()

    def operator(self, device: torch.device) -> str:
        return "optsd::flash_attention"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return torch.ops.optsd.flash_attention(query, key, value, scale)


@dataclass(frozen=True)
class Flash:
    """torch's own flash attention: tiles of the scores, never the whole matrix. On CUDA and on the CPU."""

    name: str = "SDPA flash"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        if device.type == "cpu":
            return "" if dtype.is_floating_point else f"it does not compute in {dtype}"
        return _cuda_flash_refusal(device, dtype, head_dim, masked)

    def operator(self, device: torch.device) -> str:
        suffix = "_for_cpu" if device.type == "cpu" else ""
        return f"aten::_scaled_dot_product_flash_attention{suffix}"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        if query.device.type == "cpu":
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
                query, key, value, attn_mask=mask, scale=scale
            )[0]
        return _padded_to_eight(torch.ops.aten._scaled_dot_product_flash_attention.default, query, key, value, scale)


@dataclass(frozen=True)
class CudnnFlash:
    """cuDNN's flash attention, which uses what Hopper has new: half of torch's time there (docs/techniques.md)."""

    name: str = "cuDNN flash"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        if reason := _cuda_flash_refusal(device, dtype, head_dim, masked):
            return reason
        if torch.version.hip or torch.cuda.get_device_capability(device) != (9, 0):
            return "it is used on GPUs of compute capability 9.0, where it was measured"
        return ""

    def operator(self, device: torch.device) -> str:
        return "aten::_scaled_dot_product_cudnn_attention"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> tuple[Tensor, ...]:
            return torch.ops.aten._scaled_dot_product_cudnn_attention.default(
                query, key, value, None, False, scale=scale
            )

        return _padded_to_eight(attend, query, key, value, scale)


@dataclass(frozen=True)
class MemoryEfficient:
    """torch's memory-efficient CUDA kernel (Rabe & Staats, 2021): slower than flash, but serves float32."""

    name: str = "memory-efficient"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        if device.type != "cuda":
            return f"it runs on CUDA, not on {device.type}"
        return "it is not used with a mask" if masked else ""

    def operator(self, device: torch.device) -> str:
        return "aten::_scaled_dot_product_efficient_attention"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> tuple[Tensor, ...]:
            return torch.ops.aten._scaled_dot_product_efficient_attention.default(
                query, key, value, None, compute_log_sumexp=False, scale=scale
            )

        return _padded_to_eight(attend, query, key, value, scale)


@dataclass(frozen=True)
class Plain:
    """The textbook's three operations, with the whole score matrix in memory. Serves everything."""

    name: str = "eager"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        return ""

    def operator(self, device: torch.device) -> str:
        return "aten::softmax"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        scores = (query * scale) @ key.transpose(-1, -2)
        if mask is not None:
            scores += mask
        return scores.softmax(-1) @ value


@dataclass(frozen=True)
class TorchsChoice:
    """`scaled_dot_product_attention`: torch looks at the tensors and takes one of the kernels above."""

    name: str = "torch's choice"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        return ""

    def operator(self, device: torch.device) -> str:
        return "aten::scaled_dot_product_attention"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


KNOWN_OPERATORS = (
    "flash_attn::_flash_attn_forward",
    "optsd::flash_attention",
    "optsd::sage_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_attention_math",
    "aten::softmax",
    "optsd::quantized_layer",
    "optsd::int8_linear",
    "optsd::int8_conv2d",
    "aten::_int_mm",
)
"""The operators that compute attention's softmax in a UNet, or multiply integers, as a profile spells them."""


def kernels_seen(unet: Any, run: Callable[[], object]) -> dict[str, int]:
    """Which of `KNOWN_OPERATORS` the first UNet call of `run()` runs, by torch's profiler: `{operator: calls}`."""
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def begin(*_: Any) -> None:
        before.remove()
        profile.start()

    def end(*_: Any) -> None:
        after.remove()
        profile.stop()

    before = unet.register_forward_pre_hook(begin)
    after = unet.register_forward_hook(end, always_call=True)
    with torch.no_grad():
        run()
    counts = Counter({event.key: event.count for event in profile.key_averages()})
    return {operator: counts[operator] for operator in KNOWN_OPERATORS if counts[operator]}


def example_inputs(unet: Any, batch: int, latent_size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of a `UNet2DConditionModel` call, SDXL included: zeros of the shapes that its configuration says."""
    config, place = unet.config, {"device": unet.device, "dtype": unet.dtype}
    inputs: dict[str, Any] = {
        "sample": torch.zeros(batch, config.in_channels, *latent_size, **place),
        "timestep": 500,
        "encoder_hidden_states": torch.zeros(batch, 77, config.cross_attention_dim, **place),
    }
    if config.addition_embed_type == "text_time":
        text = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.zeros(batch, text, **place), "time_ids": torch.zeros(batch, 6, **place)}
        inputs["added_cond_kwargs"] = added
    return inputs


def _cuda_flash_refusal(device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
    if device.type != "cuda":
        return f"it runs on CUDA, not on {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"on CUDA it computes in float16 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
    if head_dim > 256:
        return f"it serves heads of up to 256 channels, not {head_dim}"
    return "it serves no attention mask" if masked else ""


@cache
def _package_refusal() -> str:
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:  # built for another torch
        return f"the package flash-attn does not load ({str(error).splitlines()[0]})"
    return ""


def _padded_to_eight(attend, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The CUDA kernels want a head width that is a multiple of 8; zeros add nothing to a product."""
    width = query.shape[-1]
    if missing := -width % 8:
        query, key, value = (F.pad(tensor, (0, missing)) for tensor in (query, key, value))
    return attend(query, key, value, scale=scale)[0][..., :width]

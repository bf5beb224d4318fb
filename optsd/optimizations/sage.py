"""Attention by scores of INT8, after SageAttention (Zhang et al., ICLR 2025, arXiv:2410.02367). Approximate.

What it computes, head by head, in float32:

    keys -= their mean over the tokens               it adds one number to all scores of a query: softmax is the same
    integers = round(token · 127 / its largest)      of every query and every key: ±127, and a scale each
    scores = (integers · integersᵀ) · scales + mask  the products are summed without rounding
    softmax(scores) · values

Keys have much of their size in common, a bias of each channel; without it, the integers are left to what tells keys
apart. SageAttention has one scale for a block of 64 keys or 128 queries. A scale for each token is more accurate, and
needs no block that other kernels would have to have too. Nothing looks at another head, let alone at another picture.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from optsd.optimizations import kernels
from optsd.optimizations.attention import Attend, FirstOf, KernelProcessor, before_attention, check_kernels
from optsd.optimizations.kernels import Kernel
from optsd.patching import Patch, Pipeline, Stage


@dataclass(frozen=True)
class Sage:
    """INT8 attention for heads of any width, with or without a mask: self-, cross- and joint attention alike."""

    name: str = "sage"
    exact: bool = False
    stage: Stage = Stage.ATTENTION
    slot: str = "attention"

    def check(self, pipe: Pipeline) -> None:
        check_kernels(pipe, self.name, SAGE_KERNELS, REMEDY)

    def apply(self, pipe: Pipeline) -> Patch:
        kernel = FirstOf(SAGE_KERNELS, remedy=REMEDY)
        return before_attention(pipe, self.name, Attend(KernelProcessor(kernel), kernel))


REMEDY = "choose flash"


@dataclass(frozen=True)
class CpuSage:
    """This project's own kernel for CPUs (`optsd.native`): the same integers, by tiles, as flash attention has them."""

    name: str = "CPU sage"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        return kernels.CpuFlash().refusal(device, dtype, head_dim, masked=False)

    def operator(self, device: torch.device) -> str:
        return "optsd::sage_attention"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return torch.ops.optsd.sage_attention(query, key, value, mask, scale)


@dataclass(frozen=True)
class Reference:
    """The numerics as they are defined, by torch: with the whole score matrix in memory, and slower than `Plain`."""

    name: str = "sage reference"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> str:
        # Elsewhere it would be slower than what it takes the place of, and use more memory.
        return "" if device.type == "cpu" else f"it runs on the CPU, not on {device.type}"

    def operator(self, device: torch.device) -> str:
        return "aten::softmax"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):  # it would round the sums
            queries, query_scales = quantize(query.float())
            keys, key_scales = quantize(smooth(key))
            scores = multiply(queries, keys) * key_scales.transpose(-1, -2) * (query_scales * scale)
            if mask is not None:
                scores = scores + mask
            return (scores.softmax(-1) @ value.float()).to(query.dtype)


SAGE_KERNELS: tuple[Kernel, ...] = (CpuSage(), Reference())


def smooth(key: Tensor) -> Tensor:
    """… × tokens × d less its mean over the tokens, in float32."""
    return key.float() - key.mean(-2, keepdim=True, dtype=torch.float64).float()


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of -127…127 for float32 … × d, and a scale … × 1 of each row: what is not finite makes their product NaN."""
    scale = (rows.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    return (rows * (1 / scale)).round().nan_to_num().to(torch.int8), scale


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """int8 … × N × d and … × M × d of -127…127 to … × N × M sums of their products, rounded once, to float32."""
    exact = torch.float32 if 127 * 127 * left.shape[-1] <= 2**24 else torch.float64
    return (left.to(exact) @ right.to(exact).transpose(-1, -2)).float()

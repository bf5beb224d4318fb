"""What lies between the products on a GPU, in as few passes as it takes (`triton_between`): norms with SiLU, GEGLU.

torch takes five kernels for a GroupNorm with SiLU of a picture that lies channels last, as quantized layers give it,
one of which turns it around.
"""

import torch
from torch import Tensor, nn

from optsd import native  # noqa: F401 - it defines geglu
from optsd.quantization.blocks import parts_of
from optsd.quantization.operators import operator


def group_norm(x: Tensor, norm: nn.GroupNorm, silu: bool) -> Tensor:
    """batch × channels × height × width, of any order, to the same channels last; statistics in float32."""
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()
    scales = group_scales(channel_moments(x), x[0, 0].numel(), norm.num_groups, norm.weight, norm.bias, norm.eps)
    return scaled(x, scales, silu)


def _empty_moments(x: Tensor) -> Tensor:
    parts, _ = parts_of(x.shape[2] * x.shape[3])
    return x.new_empty(len(x), parts, x.shape[1], 2, dtype=torch.float32)


@operator("channel_moments(Tensor x) -> Tensor", _empty_moments)
def channel_moments(x: Tensor) -> Tensor:
    """Pictures × parts × channels × 2: the mean of each part, and the sum of squares of what differs from it."""
    from optsd.quantization import triton_between  # not every machine has Triton

    return triton_between.channel_moments(x, _empty_moments(x))


@operator(
    "group_scales(Tensor moments, int pixels, int groups, Tensor weight, Tensor bias, float eps) -> Tensor",
    lambda moments, *_: moments.new_empty(len(moments), 2, moments.shape[2]),
)
def group_scales(moments: Tensor, pixels: int, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Pictures × 2 × channels: what each channel is multiplied with, and what is then added."""
    from optsd.quantization import triton_between

    return triton_between.group_scales(moments, pixels, groups, weight, bias, eps)


def _empty_pictures(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@operator("scaled(Tensor x, Tensor scales, bool silu) -> Tensor", _empty_pictures)
def scaled(x: Tensor, scales: Tensor, silu: bool) -> Tensor:
    """Pictures by such scales, channels last, with SiLU after them or without."""
    from optsd.quantization import triton_between

    return triton_between.scaled(x, scales, _empty_pictures(x), silu)


@operator("geglu", None)
def geglu(x: Tensor) -> Tensor:
    """… × 2·n to … × n: the first half times GELU of the second (Shazeer, 2020)."""
    from optsd.quantization import triton_between

    return triton_between.geglu(x.contiguous())

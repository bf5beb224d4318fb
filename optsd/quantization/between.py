"""What lies between the products on a GPU, in as few passes as it takes (`triton_between`): norms with SiLU, GEGLU.

torch takes five kernels for a GroupNorm with SiLU of a picture that lies channels last, as quantized layers give it,
one of which turns it around.
"""

from typing import Any

import torch
from torch import Tensor, nn

from optsd import native  # noqa: F401 - it defines geglu
from optsd.quantization import blocks
from optsd.quantization.operators import compiled, operator
from optsd.quantization.quantizing import carry, empty_rows


def group_norm(x: Tensor, norm: nn.GroupNorm, silu: bool, to_integers: bool = False) -> Tensor:
    """batch × channels × height × width, of any order, to the same channels last; statistics in float32.

    With `to_integers` the result carries the ranges of its pictures.
    """
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()
    pixels = x.shape[2] * x.shape[3]
    scales = group_scales(channel_moments(x), pixels, norm.num_groups, norm.weight, norm.bias, norm.eps)
    to_integers = to_integers and blocks.has_ranges(pixels, x.shape[1])
    out, ranges = scaled(x, scales, silu, to_integers)
    return carry(out, (ranges,)) if to_integers else out


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """… × width, carrying the integers of its rows."""
    normal, *integers = normal_rows(x.contiguous(), norm.weight, norm.bias, norm.eps)
    return carry(normal, tuple(integers))


def add_layer_norm(x: Tensor, added: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """x + added, and its normalization, which carries the integers of its rows."""
    if x.dtype != added.dtype or x.shape != added.shape:  # as autocast leaves them: torch knows the type of the sum
        total = x + added
        return total, layer_norm(total, norm)
    total, normal, *integers = add_normal_rows(x.contiguous(), added.contiguous(), norm.weight, norm.bias, norm.eps)
    return total, carry(normal, tuple(integers))


def geglu_to_integers(x: Tensor) -> Tensor:
    """`geglu`, carrying the integers of its rows."""
    gated, *integers = geglu_rows(x.contiguous())
    return carry(gated, tuple(integers))


def are_rows_held(width: int) -> bool:
    """Whether a block holds such a row in its registers."""
    return 0 < width <= blocks.LONGEST_ROW


def _empty_moments(x: Tensor) -> Tensor:
    parts, _ = blocks.parts_of(x.shape[2] * x.shape[3])
    return x.new_empty(x.shape[0], parts, x.shape[1], 2, dtype=torch.float32)


@operator("channel_moments(Tensor x) -> Tensor", _empty_moments)
def channel_moments(x: Tensor) -> Tensor:
    """Pictures × parts × channels × 2: the mean of each part, and the sum of squares of what differs from it."""
    return compiled("triton_between").channel_moments(x, _empty_moments(x))


def _empty_scales(moments: Tensor, *_: object) -> Tensor:
    return moments.new_empty(moments.shape[0], 2, moments.shape[2])


@operator(
    "group_scales(Tensor moments, int pixels, int groups, Tensor weight, Tensor bias, float eps) -> Tensor",
    _empty_scales,
)
def group_scales(moments: Tensor, *others: Any) -> Tensor:
    """Pictures × 2 × channels: what each channel is multiplied with, and what is then added."""
    return compiled("triton_between").group_scales(moments, *others, _empty_scales(moments))


def _empty_pictures(x: Tensor, _scales: object, _silu: bool, to_integers: bool) -> tuple[Tensor, Tensor]:
    parts = blocks.pieces_of(x.shape[2] * x.shape[3], x.shape[1])
    ranges = x.new_empty(x.shape[0] if to_integers else 0, parts[0] * parts[2], 3, dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), ranges


@operator("scaled(Tensor x, Tensor scales, bool silu, bool to_integers) -> (Tensor, Tensor)", _empty_pictures)
def scaled(x: Tensor, scales: Tensor, silu: bool, to_integers: bool) -> tuple[Tensor, Tensor]:
    """Pictures by such scales, channels last, with SiLU after them or without; and their ranges, if asked for."""
    return compiled("triton_between").scaled(x, scales, silu, *_empty_pictures(x, scales, silu, to_integers))


def _empty_normal(x: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *empty_rows(x, x.numel() // max(x.shape[-1], 1))


def _empty_sum_and_normal(x: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_empty_normal(x)


@operator(
    "normal_rows(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor, Tensor)", _empty_normal
)
def normal_rows(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Layer normalization of rows; their integers, scales and zero points."""
    return compiled("triton_between").layer_norm(x, None, weight, bias, eps, _empty_normal(x))


@operator(
    "add_normal_rows(Tensor x, Tensor added, Tensor weight, Tensor bias, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _empty_sum_and_normal,
)
def add_normal_rows(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    """The sum first, then the same of it."""
    return compiled("triton_between").layer_norm(x, added, weight, bias, eps, _empty_sum_and_normal(x))


def _empty_half(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@operator("geglu", None)
def geglu(x: Tensor) -> Tensor:
    """… × 2·n to … × n: the first half times GELU of the second (Shazeer, 2020)."""
    x = x.contiguous()
    return compiled("triton_between").geglu(x, _empty_half(x))


@operator("geglu_rows(Tensor x) -> (Tensor, Tensor, Tensor, Tensor)", lambda x: _empty_normal(_empty_half(x)))
def geglu_rows(x: Tensor) -> tuple[Tensor, ...]:
    """The same, with the integers, scales and zero points of its rows."""
    return compiled("triton_between").geglu_rows(x, _empty_normal(_empty_half(x)))

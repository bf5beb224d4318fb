"""Quantizing on a GPU: a kernel for rows, two for pictures (`triton_quantize`)."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from optsd.quantization import blocks
from optsd.quantization.operators import compiled, operator
from optsd.quantization.schemes import Activation

NO_MARGINS = (0, 0, 0, 0)


def carry(x: Tensor, found: tuple[Tensor, ...]) -> Tensor:
    """x, with what its maker found in the same pass: the integers of its rows, or the ranges of its pictures.

    Whoever quantizes x takes them, unless it was changed in place since, or is a copy, whose version is another.
    """
    vars(x)["optsd_found"] = None if x.is_inference() else (x._version, found)
    return x


def carried(x: Tensor, count: int) -> Any:
    """What `carry` gave it, if that is so many tensors."""
    kept = getattr(x, "optsd_found", None)
    return kept[1] if kept is not None and kept[0] == x._version and len(kept[1]) == count else None


def rows(x: Tensor, dimensions: int) -> Activation:
    """`schemes.quantize_activation` of what lies on a GPU, to int8: the same integers, scales and zero points."""
    if dimensions == x.ndim - 1 and (found := carried(x, 3)):
        return Activation(*found)
    return Activation(*int8_rows(x.contiguous(), prod(x.shape[:dimensions])))


def pictures(x: Tensor, margins: tuple[int, ...] = NO_MARGINS) -> Activation:
    """The same of batch × channels × height × width, a share each: channels last, in a border of quantized zeros.

    `margins`: left, right, top and bottom.
    """
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()
    found = carried(x, 1)
    return Activation(*int8_pictures(x, found[0] if found else int8_ranges(x), margins))


def empty_rows(x: Tensor, shares: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for integers in the shape of x, scales and zero points."""
    return x.new_empty(x.shape, dtype=torch.int8), *_one_each(x, shares)


def empty_pictures(x: Tensor, ranges: Tensor, margins: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The same for pictures, channels last, with their border."""
    batch, channels, height, width = x.shape
    left, right, top, bottom = margins
    values = x.new_empty(batch, height + top + bottom, width + left + right, channels, dtype=torch.int8)
    return values.permute(0, 3, 1, 2), *_one_each(x, batch)


def empty_ranges(x: Tensor) -> Tensor:
    """Room for pictures × parts × 3: the smallest and the largest number of each part, and 1 where one is NaN."""
    pictures = x.shape[0]
    length = x.numel() // max(pictures, 1)
    return x.new_empty(pictures, -(-length // blocks.numbers_of(length)), 3, dtype=torch.float32)


def _one_each(x: Tensor, shares: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(shares, dtype=torch.float32), x.new_empty(shares, dtype=torch.int32)


@operator("int8_rows(Tensor x, int shares) -> (Tensor, Tensor, Tensor)", empty_rows)
def int8_rows(x: Tensor, shares: int) -> tuple[Tensor, Tensor, Tensor]:
    return compiled("triton_quantize").rows(x, shares, *empty_rows(x, shares))


@operator("int8_ranges(Tensor x) -> Tensor", empty_ranges)
def int8_ranges(x: Tensor) -> Tensor:
    return compiled("triton_quantize").ranges(x, empty_ranges(x))


@operator("int8_pictures(Tensor x, Tensor ranges, int[] margins) -> (Tensor, Tensor, Tensor)", empty_pictures)
def int8_pictures(x: Tensor, ranges: Tensor, margins: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return compiled("triton_quantize").pictures(x, ranges, margins, *empty_pictures(x, ranges, margins))

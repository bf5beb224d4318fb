"""Quantizing on a GPU as operators of torch: what follows tensors without numbers (an estimate, a compiler) knows them.

Each operator is one kernel (`triton_quantize`), so that counting operators counts launches.
"""

from math import prod

import torch
from torch import Tensor

from optsd.quantization.schemes import Activation

LONGEST_ROW = 16_384
"""Numbers that one block holds in its registers; what is longer is read twice."""
PART = 4096  # numbers that one block reads at a time
MOST_PARTS = 1024  # of a share: every block of the second kernel reads their ranges again


def quantize(x: Tensor, dimensions: int) -> Activation:
    """`schemes.quantize_activation` of what lies on a GPU, to int8: the same integers, scales and zero points."""
    shares = prod(x.shape[:dimensions])
    x = without_holes(x, dimensions)
    if x.numel() <= LONGEST_ROW * shares:
        return Activation(*torch.ops.optsd.int8_rows(x, shares))
    return Activation(*torch.ops.optsd.int8_integers(x, torch.ops.optsd.int8_ranges(x, shares)))


def without_holes(x: Tensor, dimensions: int) -> Tensor:
    """x, or a copy of it, whose shares lie one after the other in memory: a picture in whichever order it has."""
    is_picture = dimensions == 1 and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if is_picture or x.is_contiguous() else x.contiguous()


def part_of(length: int) -> int:
    """How many numbers of a share one block finds the range of."""
    return PART * max(1, -(-length // (PART * MOST_PARTS)))


def empty_results(x: Tensor, shares: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for integers in the order of x, scales and zero points."""
    one_each = x.new_empty(shares, dtype=torch.float32), x.new_empty(shares, dtype=torch.int32)
    return torch.empty_like(x, dtype=torch.int8), *one_each


_OPERATORS = torch.library.Library("optsd", "FRAGMENT")
_OPERATORS.define("int8_rows(Tensor x, int shares) -> (Tensor, Tensor, Tensor)")
_OPERATORS.define("int8_ranges(Tensor x, int shares) -> Tensor")
_OPERATORS.define("int8_integers(Tensor x, Tensor ranges) -> (Tensor, Tensor, Tensor)")


@torch.library.impl(_OPERATORS, "int8_rows", "CompositeExplicitAutograd")
def _rows(x: Tensor, shares: int) -> tuple[Tensor, Tensor, Tensor]:
    from optsd.quantization import triton_quantize  # not every machine has Triton

    return triton_quantize.rows(x, shares)


@torch.library.impl(_OPERATORS, "int8_ranges", "CompositeExplicitAutograd")
def _ranges(x: Tensor, shares: int) -> Tensor:
    from optsd.quantization import triton_quantize

    return triton_quantize.ranges(x, shares)


@torch.library.impl(_OPERATORS, "int8_integers", "CompositeExplicitAutograd")
def _integers(x: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from optsd.quantization import triton_quantize

    return triton_quantize.integers(x, ranges)


torch.library.register_fake("optsd::int8_rows", empty_results, lib=_OPERATORS)


@torch.library.register_fake("optsd::int8_ranges", lib=_OPERATORS)
def _ranges_shape(x: Tensor, shares: int) -> Tensor:
    length = x.numel() // shares
    return x.new_empty(shares, -(-length // part_of(length)), 3, dtype=torch.float32)


@torch.library.register_fake("optsd::int8_integers", lib=_OPERATORS)
def _integers_shape(x: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return empty_results(x, len(ranges))

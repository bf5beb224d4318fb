"""The GPU's quantizer of activations: range, scale and integers in one kernel for rows, in two for pictures.

torch takes some twenty for it, eight of which read or write the whole tensor. Imported only where it runs (or in
Triton's interpreter).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from optsd.quantization.quantizing import PART, empty_results, part_of
from optsd.quantization.schemes import ROUNDER, SMALLEST_SCALE, STEPS


def rows(x: Tensor, shares: int) -> tuple[Tensor, Tensor, Tensor]:
    """int8 in the shape and order of x, float32 scales and int32 zero points, in one pass over shares that fit.

    x: float16, bfloat16 or float32, without holes; its shares are equal and lie one after the other.
    """
    values, scale, zero_point = empty_results(x, shares)
    length = x.numel() // max(shares, 1)
    if x.numel():
        block = triton.next_power_of_2(length)
        launch = _rows[(shares,)]
        with torch.cuda.device_of(x):  # Triton launches on the current GPU, whichever one holds the tensors
            launch(x, values, scale, zero_point, length, block, num_warps=min(max(block // 512, 1), 8))
    return values, scale, zero_point


def ranges(x: Tensor, shares: int) -> Tensor:
    """shares × parts × 3: the smallest and the largest number of each part of each share, and 1 where one is NaN."""
    length = x.numel() // shares
    part = part_of(length)
    parts = -(-length // part)
    found = torch.empty(shares, parts, 3, dtype=torch.float32, device=x.device)
    launch = _ranges[(parts, shares)]
    with torch.cuda.device_of(x):
        launch(x, found, length, parts, part, PART, num_warps=8)
    return found


def integers(x: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `rows` gives them, of the ranges that `ranges` has found."""
    shares, parts, _ = found.shape
    values, scale, zero_point = empty_results(x, shares)
    length = x.numel() // shares
    launch = _integers[(-(-length // PART), shares)]
    columns = triton.next_power_of_2(parts)
    with torch.cuda.device_of(x):
        launch(x, found, values, scale, zero_point, length, parts, columns, PART, num_warps=8)
    return values, scale, zero_point


@triton.jit
def _rows(
    x,  # shares × length, any float
    values,  # int8, the same
    scale,  # float32, shares
    zero_point,  # int32, shares
    length,
    BLOCK: tl.constexpr,
):
    share = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    there = place < length
    start = share.to(tl.int64) * length
    numbers = tl.load(x + start + place, there, other=0.0).to(tl.float32)
    step, zero = _scale(_least(numbers), _most(numbers), _strange(numbers))
    tl.store(scale + share, step)
    tl.store(zero_point + share, zero.to(tl.int32))
    tl.store(values + start + place, _rounded(numbers, step, zero), there)


@triton.jit
def _ranges(x, found, length, parts, part, BLOCK: tl.constexpr):
    """The smallest and the largest of each part of each share, 0 among them, and whether one is no number."""
    number, share = tl.program_id(0), tl.program_id(1)
    start = share.to(tl.int64) * length
    lowest, highest, strange = 0.0, 0.0, 0.0
    for first in range(0, part, BLOCK):
        place = number * part + first + tl.arange(0, BLOCK)
        numbers = tl.load(x + start + place, place < length, other=0.0).to(tl.float32)
        lowest = tl.minimum(lowest, _least(numbers))
        highest = tl.maximum(highest, _most(numbers))
        strange = tl.maximum(strange, _strange(numbers))
    target = found + (share * parts + number) * 3
    tl.store(target, lowest)
    tl.store(target + 1, highest)
    tl.store(target + 2, strange)


@triton.jit
def _integers(
    x, found, values, scale, zero_point, length, parts, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The integers of one block; each block takes the range of its whole share from the parts."""
    number, share = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, COLUMNS)
    source = found + (share * parts + column) * 3
    lowest = _least(tl.load(source, column < parts, other=0.0))
    highest = _most(tl.load(source + 1, column < parts, other=0.0))
    strange = _most(tl.load(source + 2, column < parts, other=0.0))
    step, zero = _scale(lowest, highest, strange)
    if number == 0:
        tl.store(scale + share, step)
        tl.store(zero_point + share, zero.to(tl.int32))
    place = number * BLOCK + tl.arange(0, BLOCK)
    start = share.to(tl.int64) * length
    numbers = tl.load(x + start + place, place < length, other=0.0).to(tl.float32)
    tl.store(values + start + place, _rounded(numbers, step, zero), place < length)


_STEPS, _SMALLEST, _ROUNDER = tl.constexpr(STEPS), tl.constexpr(SMALLEST_SCALE), tl.constexpr(ROUNDER)


# `tl.min` and its like are these reductions of Triton's own; its interpreter knows them only so, where another test has
# imported Triton before.
@triton.jit
def _least(numbers):
    return tl.reduce(numbers, 0, tl.standard._elementwise_min)


@triton.jit
def _most(numbers):
    return tl.reduce(numbers, 0, tl.standard._elementwise_max)


@triton.jit
def _strange(numbers):
    """1 where one is no number, which a minimum passes over."""
    return _most((numbers != numbers).to(tl.float32))


@triton.jit
def _scale(lowest, highest, strange):
    """Scale and zero point, as floats; NaN where something is no number."""
    lowest, highest = tl.minimum(lowest, 0.0), tl.maximum(highest, 0.0)
    step = tl.maximum(tl.math.div_rn(highest - lowest, 1.0 * _STEPS), _SMALLEST)
    zero = tl.ceil(tl.math.div_rn(-lowest, step)) - 128.0
    return tl.where(strange > 0, float("nan"), step), tl.where(strange > 0, 0.0, zero)


@triton.jit
def _rounded(numbers, step, zero):
    """To even, by an addition after which the integer is in the low bits."""
    shifted = tl.math.div_rn(numbers, tl.full(numbers.shape, 0.0, tl.float32) + step) + zero
    whole = (shifted + _ROUNDER) - _ROUNDER
    return tl.minimum(tl.maximum(whole, -128.0), 127.0).to(tl.int8)

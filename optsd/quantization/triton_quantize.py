"""The GPU's quantizer of activations: range, scale and integers in one kernel for rows, in two for pictures.

torch takes some twenty for it, eight of which read or write the whole tensor. Imported only where it runs (or in
Triton's interpreter).
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from optsd.quantization.blocks import LONGEST_ROW, NUMBERS, numbers_of
from optsd.quantization.launches import LAUNCHES, Launch
from optsd.quantization.schemes import ROUNDER, SMALLEST_SCALE, STEPS

ONE_WARP = 1024  # numbers
PIXELS, CHANNELS = 32, 64  # of a picture, that one block makes integers of


def rows(x: Tensor, shares: int, values: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The last three, filled: int8 in the shape of x, float32 scales and int32 zero points.

    x: float16, bfloat16 or float32, contiguous; its shares are equal and lie one after the other.
    """
    if count := x.numel():
        of_rows(shares, count // shares, x.dtype, x.device)(x, values, scale, zero_point)
    return values, scale, zero_point


@functools.lru_cache(LAUNCHES)
def of_rows(shares: int, length: int, dtype: torch.dtype, device: torch.device) -> Launch:
    block = min(triton.next_power_of_2(length), LONGEST_ROW)
    # One warp a row while its registers hold it: then none waits for another.
    together = max(ONE_WARP // block, 1)
    warps = min(max(block // ONE_WARP, 1), 8)
    return Launch(_rows, (-(-shares // together),), shares, length, together, block, num_warps=warps)


def ranges(x: Tensor, found: Tensor) -> Tensor:
    """`found`, filled: pictures × parts × 3, as `quantizing.empty_ranges` says."""
    if count := x.numel():
        of_ranges(found.shape[0], found.shape[1], count // found.shape[0], x.dtype, x.device)(x, found)
    return found


@functools.lru_cache(LAUNCHES)
def of_ranges(shares: int, parts: int, length: int, dtype: torch.dtype, device: torch.device) -> Launch:
    return Launch(_ranges, (parts, shares), length, parts, numbers_of(length), NUMBERS, num_warps=8)


def pictures(
    x: Tensor, found: Tensor, margins: tuple[int, ...], values: Tensor, scale: Tensor, zero_point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The last three, filled, of the ranges that `ranges` has found: int8 of batch × channels × height × width, as
    `quantizing.pictures` says.
    """
    if values.numel():
        size = (*x.shape, *x.stride(), *margins, found.shape[1])
        of_pictures(size, x.dtype, x.device)(x, found, values, scale, zero_point)
    return values, scale, zero_point


@functools.lru_cache(LAUNCHES)
def of_pictures(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Launch:
    batch, channels, height, width, *strides, left, right, top, bottom, parts = size
    tall, wide = height + top + bottom, width + left + right
    grid = (tall, triton.cdiv(wide, PIXELS) * triton.cdiv(channels, CHANNELS), batch)
    numbers = (channels, height, width, *strides, left, top, tall, wide, parts)
    return Launch(_pictures, grid, *numbers, triton.next_power_of_2(parts), PIXELS, CHANNELS, num_warps=4)


@triton.jit
def _rows(
    x,  # shares × length, any float
    values,  # int8, the same
    scale,  # float32, shares
    zero_point,  # int32, shares
    shares,
    length,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    share = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)
    there = share < shares
    start = share[:, None] * length
    place = tl.arange(0, BLOCK)[None, :]
    known = there[:, None] & (place < length)
    numbers = tl.load(x + start + place, known, other=0.0).to(tl.float32)
    lowest, highest, strange = _least(numbers, 1), _most(numbers, 1), _strange(numbers, 1)
    for first in range(BLOCK, length, BLOCK):  # a row that no block holds
        more = tl.load(x + start + first + place, there[:, None] & (first + place < length), other=0.0).to(tl.float32)
        lowest, highest = tl.minimum(lowest, _least(more, 1)), tl.maximum(highest, _most(more, 1))
        strange = tl.maximum(strange, _strange(more, 1))
    step, zero = _scale(lowest, highest, strange)
    tl.store(scale + share, step, there)
    tl.store(zero_point + share, zero.to(tl.int32), there)
    tl.store(values + start + place, _rounded(numbers, step[:, None], zero[:, None]), known)
    for first in range(BLOCK, length, BLOCK):
        beyond = there[:, None] & (first + place < length)
        more = tl.load(x + start + first + place, beyond, other=0.0).to(tl.float32)
        tl.store(values + start + first + place, _rounded(more, step[:, None], zero[:, None]), beyond)


@triton.jit
def _ranges(x, found, length, parts, part, BLOCK: tl.constexpr):
    """The smallest and the largest of each part of each share, 0 among them, and whether one is no number."""
    number, share = tl.program_id(0), tl.program_id(1)
    start = share.to(tl.int64) * length
    lowest, highest, strange = 0.0, 0.0, 0.0
    for first in range(0, part, BLOCK):
        place = number * part + first + tl.arange(0, BLOCK)
        numbers = tl.load(x + start + place, place < length, other=0.0).to(tl.float32)
        lowest = tl.minimum(lowest, _least(numbers, 0))
        highest = tl.maximum(highest, _most(numbers, 0))
        strange = tl.maximum(strange, _strange(numbers, 0))
    target = found + (share * parts + number) * 3
    tl.store(target, lowest)
    tl.store(target + 1, highest)
    tl.store(target + 2, strange)


@triton.jit
def _pictures(
    x,  # pictures of any float, in any order
    found,  # float32, pictures × parts × 3
    values,  # int8, pictures × tall × wide × channels
    scale,  # float32, pictures
    zero_point,  # int32, pictures
    channels,
    height,
    width,
    by_picture,
    by_channel,
    by_row,
    by_column,
    left,
    top,
    tall,
    wide,
    parts,
    COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A piece of one line of one picture; each block takes the range of its picture from the parts."""
    line, piece, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = tl.arange(0, COLUMNS)
    source = found + (share * parts + column) * 3
    lowest = _least(tl.load(source, column < parts, other=0.0), 0)
    highest = _most(tl.load(source + 1, column < parts, other=0.0), 0)
    strange = _most(tl.load(source + 2, column < parts, other=0.0), 0)
    step, zero = _scale(lowest, highest, strange)
    if (line == 0) & (piece == 0):
        tl.store(scale + share, step)
        tl.store(zero_point + share, zero.to(tl.int32))
    pieces = (wide + PIXELS - 1) // PIXELS
    channel = (piece // pieces) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = (piece % pieces) * PIXELS + tl.arange(0, PIXELS)
    row, place = tl.full(pixel.shape, 0, tl.int32) + line - top, pixel - left
    inside = (row >= 0) & (row < height) & (place >= 0) & (place < width)
    known = (channel < channels)[None, :]
    start = x + share.to(tl.int64) * by_picture + (line - top) * by_row
    numbers = tl.load(
        start + place[:, None] * by_column + channel[None, :] * by_channel, inside[:, None] & known, other=0.0
    )
    target = values + (share.to(tl.int64) * tall + line) * wide * channels
    integers = _rounded(numbers.to(tl.float32), step, zero)
    tl.store(target + pixel[:, None] * channels + channel[None, :], integers, (pixel < wide)[:, None] & known)


_STEP, _SMALLEST, _ROUNDER = tl.constexpr(1 / STEPS), tl.constexpr(SMALLEST_SCALE), tl.constexpr(ROUNDER)


# `tl.min` and its like are these reductions of Triton's own; its interpreter knows them only so, where another test has
# imported Triton before.
@triton.jit
def _least(numbers, AXIS: tl.constexpr):
    return tl.reduce(numbers, AXIS, tl.standard._elementwise_min)


@triton.jit
def _most(numbers, AXIS: tl.constexpr):
    return tl.reduce(numbers, AXIS, tl.standard._elementwise_max)


@triton.jit
def _strange(numbers, AXIS: tl.constexpr):
    """1 where one is no number, which a minimum passes over."""
    return _most((numbers != numbers).to(tl.float32), AXIS)


@triton.jit
def _scale(lowest, highest, strange):
    """Scale and zero point, as floats; NaN where something is no number."""
    lowest, highest = tl.minimum(lowest, 0.0), tl.maximum(highest, 0.0)
    step = tl.maximum((highest - lowest) * _STEP, _SMALLEST)
    zero = tl.ceil(tl.math.div_rn(-lowest, step)) - 128.0
    return tl.where(strange > 0, float("nan"), step), tl.where(strange > 0, 0.0, zero)


@triton.jit
def _rounded(numbers, step, zero):
    """To even, by an addition after which the integer is in the low bits."""
    # x / s by way of 1 / s, and what that leaves (Markstein, 1990): the same to the bit as a division, which has a
    # branch for strange numbers that makes one wait for another.
    inverse = tl.math.div_rn(tl.full(step.shape, 1.0, tl.float32), step)
    quotient = numbers * inverse
    quotient = tl.fma(tl.fma(-quotient, step, numbers), inverse, quotient)
    whole = (quotient + zero + _ROUNDER) - _ROUNDER
    return tl.minimum(tl.maximum(whole, -128.0), 127.0).to(tl.int8)

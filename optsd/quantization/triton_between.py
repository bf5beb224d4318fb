"""The kernels of `between`. Imported only where they run (or in Triton's interpreter)."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from optsd.quantization.blocks import CHANNELS, PIXELS, parts_of, pieces_of
from optsd.quantization.launches import LAUNCHES, Launch
from optsd.quantization.triton_quantize import _least, _most, _rounded, _scale, _strange

ROWS, WIDTH = 4, 256  # of GEGLU
ONE_WARP = 512  # numbers of a row


def channel_moments(x: Tensor, found: Tensor) -> Tensor:
    of_moments((*x.shape, *_strides(x)), x.dtype, x.device)(x, found)
    return found


@functools.lru_cache(LAUNCHES)
def of_moments(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Launch:
    batch, channels, height, width, *strides = size
    parts, part = parts_of(height * width)
    grid = (parts, triton.cdiv(channels, CHANNELS), batch)
    return Launch(_moments, grid, channels, height * width, part, *strides, PIXELS, CHANNELS, num_warps=4)


def group_scales(
    moments: Tensor, pixels: int, groups: int, weight: Tensor, bias: Tensor, eps: float, found: Tensor
) -> Tensor:
    dtypes = weight.dtype, bias.dtype
    of_scales(moments.shape, pixels, groups, eps, dtypes, moments.device)(moments, found, weight, bias)
    return found


@functools.lru_cache(LAUNCHES)
def of_scales(
    size: tuple[int, ...], pixels: int, groups: int, eps: float, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> Launch:
    batch, parts, channels, _ = size
    own = channels // groups
    blocks = triton.next_power_of_2(parts), triton.next_power_of_2(own)
    numbers = (parts, parts_of(pixels)[1], pixels, channels, own, eps)
    return Launch(_scales, (groups, batch), *numbers, *blocks, num_warps=4)


def scaled(x: Tensor, scales: Tensor, silu: bool, out: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    of_scaled((*x.shape, *_strides(x)), silu, ranges.shape[0] > 0, x.dtype, x.device)(x, scales, out, ranges)
    return out, ranges


@functools.lru_cache(LAUNCHES)
def of_scaled(size: tuple[int, ...], silu: bool, has_ranges: bool, dtype: torch.dtype, device: torch.device) -> Launch:
    batch, channels, height, width, *strides = size
    pieces, pixels, across = pieces_of(height * width, channels)
    grid = (pieces, across, batch)
    numbers = (channels, height * width, *strides)
    return Launch(_scaled, grid, *numbers, silu, has_ranges, pixels, CHANNELS, num_warps=8)


def layer_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, results: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`results`, filled: the sum if there is one, what is normal, its integers, scales and zero points."""
    width = x.shape[-1]
    if count := x.numel():
        dtypes = x.dtype, weight.dtype, bias.dtype
        launch = of_layer_norm(count // width, width, eps, added is not None, dtypes, x.device)
        total = results[0]  # not written where nothing is added
        launch(x, x if added is None else added, weight, bias, total, *results[-4:])
    return results


@functools.lru_cache(LAUNCHES)
def of_layer_norm(
    rows: int, width: int, eps: float, adds: bool, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> Launch:
    together, block, warps = _of_row(width)
    return Launch(_layer_norm, (triton.cdiv(rows, together),), rows, width, eps, adds, together, block, num_warps=warps)


def _of_row(width: int) -> tuple[int, int, int]:
    """Rows that a block takes together, numbers of each, and warps: one a row while its registers hold it."""
    block = triton.next_power_of_2(width)
    return max(ONE_WARP // block, 1), block, min(max(block // ONE_WARP, 1), 8)


def geglu(x: Tensor, out: Tensor) -> Tensor:
    if out.numel():
        of_geglu(out.numel() // out.shape[-1], out.shape[-1], x.dtype, x.device)(x, out)
    return out


@functools.lru_cache(LAUNCHES)
def of_geglu(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Launch:
    return Launch(_geglu, (triton.cdiv(rows, ROWS), triton.cdiv(width, WIDTH)), rows, width, ROWS, WIDTH, num_warps=4)


def geglu_rows(x: Tensor, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`results`, filled: GEGLU, its integers, scales and zero points."""
    if count := results[0].numel():
        width = results[0].shape[-1]
        of_geglu_rows(count // width, width, x.dtype, x.device)(x, *results)
    return results


@functools.lru_cache(LAUNCHES)
def of_geglu_rows(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Launch:
    together, block, warps = _of_row(width)
    return Launch(_geglu_rows, (triton.cdiv(rows, together),), rows, width, together, block, num_warps=warps)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of a picture, a channel and a pixel: the lines of a picture lie one after the other in either order."""
    return x.stride(0), x.stride(1), 1 if x.is_contiguous() else x.shape[1]


@triton.jit
def _moments(
    x,
    found,  # float32, pictures × parts × channels × 2
    channels,
    pixels,
    part,
    by_picture,
    by_channel,
    by_pixel,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums of what differs from the first pixel: squares of large numbers would leave nothing of small differences."""
    number, piece, picture = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = piece * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    begin, end = number * part, tl.minimum(number * part + part, pixels)
    start = x + picture.to(tl.int64) * by_picture + channel * by_channel
    first = tl.load(start + begin * by_pixel, known, other=0.0).to(tl.float32)
    sums = tl.full((PIXELS, CHANNELS), 0.0, tl.float32)
    squares = tl.full((PIXELS, CHANNELS), 0.0, tl.float32)
    for at in range(begin, end, PIXELS):
        pixel = at + tl.arange(0, PIXELS)
        there = (pixel < end)[:, None] & known[None, :]
        numbers = tl.load(start[None, :] + pixel[:, None] * by_pixel, there, other=0.0).to(tl.float32)
        apart = tl.where(there, numbers - first[None, :], 0.0)
        sums += apart
        squares += apart * apart
    count = (end - begin).to(tl.float32)
    total = tl.reduce(sums, 0, tl.standard._sum_combine)
    square = tl.reduce(squares, 0, tl.standard._sum_combine)
    target = found + ((picture * tl.num_programs(0) + number) * channels + channel) * 2
    tl.store(target, first + total / count, known)
    tl.store(target + 1, tl.maximum(square - total * total / count, 0.0), known)


@triton.jit
def _scales(
    moments,  # float32, pictures × parts × channels × 2
    found,  # float32, pictures × 2 × channels
    weight,
    bias,
    parts,
    part,
    pixels,
    channels,
    own,
    eps,
    PARTS: tl.constexpr,
    OWN: tl.constexpr,
):
    """Means and squares of parts make those of the whole (Chan et al., 1983)."""
    group, picture = tl.program_id(0), tl.program_id(1)
    number, place = tl.arange(0, PARTS), tl.arange(0, OWN)
    channel = group * own + place
    known = (number < parts)[:, None] & (place < own)[None, :]
    source = moments + ((picture * parts + number)[:, None] * channels + channel[None, :]) * 2
    means = tl.load(source, known, other=0.0)
    squares = tl.load(source + 1, known, other=0.0)
    counts = tl.minimum(pixels - number * part, part).to(tl.float32)[:, None]
    total = 1.0 * pixels * own
    mean = _sum(tl.where(known, means * counts, 0.0)) / total
    apart = means - mean
    variance = _sum(tl.where(known, squares + counts * apart * apart, 0.0)) / total
    inverse = 1.0 / tl.sqrt(variance + eps)
    factor = tl.load(weight + channel, place < own, other=0.0).to(tl.float32) * inverse
    offset = tl.load(bias + channel, place < own, other=0.0).to(tl.float32) - mean * factor
    target = found + picture * 2 * channels + channel
    tl.store(target, factor, place < own)
    tl.store(target + channels, offset, place < own)


@triton.jit
def _scaled(
    x,
    scales,  # float32, pictures × 2 × channels
    out,  # pictures × pixels × channels
    ranges,  # float32, pictures × parts × 3; not written without HAS_RANGES
    channels,
    pixels,
    by_picture,
    by_channel,
    by_pixel,
    SILU: tl.constexpr,
    HAS_RANGES: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    picture = tl.program_id(2)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    start = x + picture.to(tl.int64) * by_picture
    numbers = tl.load(start + pixel[:, None] * by_pixel + channel[None, :] * by_channel, known, other=0.0)
    source = scales + picture * 2 * channels + channel
    factor = tl.load(source, channel < channels, other=0.0)
    offset = tl.load(source + channels, channel < channels, other=0.0)
    result = numbers.to(tl.float32) * factor[None, :] + offset[None, :]
    if SILU:
        result = result / (1.0 + tl.exp(-result))
    rounded = result.to(out.dtype.element_ty)
    target = out + picture.to(tl.int64) * pixels * channels + pixel[:, None] * channels + channel[None, :]
    tl.store(target, rounded, known)
    if HAS_RANGES:  # of what is written, for who makes integers of it
        seen = tl.where(known, rounded.to(tl.float32), 0.0)
        number = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        place = ranges + (picture * tl.num_programs(0) * tl.num_programs(1) + number) * 3
        tl.store(place, _least(_least(seen, 1), 0))
        tl.store(place + 1, _most(_most(seen, 1), 0))
        tl.store(place + 2, _most(_strange(seen, 1), 0))


@triton.jit
def _layer_norm(
    x,
    added,  # the same; not read without ADDS
    weight,
    bias,
    total,  # x + added; not written without ADDS
    normal,
    values,  # int8
    scale,  # float32, rows
    zero_point,  # int32, rows
    rows,
    width,
    eps,
    ADDS: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalization of whole rows, of which integers are made while they are in registers."""
    row, place = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER), tl.arange(0, BLOCK)
    there, within = row < rows, place < width
    known = there[:, None] & within[None, :]
    at = row[:, None] * width + place[None, :]
    numbers = tl.load(x + at, known, other=0.0)
    if ADDS:
        numbers = (numbers.to(tl.float32) + tl.load(added + at, known, other=0.0).to(tl.float32)).to(numbers.dtype)
        tl.store(total + at, numbers, known)
    numbers = numbers.to(tl.float32)
    mean = tl.reduce(numbers, 1, tl.standard._sum_combine) / width
    apart = tl.where(known, numbers - mean[:, None], 0.0)
    variance = tl.reduce(apart * apart, 1, tl.standard._sum_combine) / width
    factor = tl.load(weight + place, within, other=0.0).to(tl.float32)
    offset = tl.load(bias + place, within, other=0.0).to(tl.float32)
    result = apart * (1.0 / tl.sqrt(variance + eps))[:, None] * factor[None, :] + offset[None, :]
    rounded = result.to(normal.dtype.element_ty)
    tl.store(normal + at, rounded, known)
    _integers(rounded, known, there, row, at, values, scale, zero_point)


@triton.jit
def _integers(numbers, known, there, row, at, values, scale, zero_point):
    """Rows that are about to be written, as `triton_quantize` makes integers of them when they are read."""
    numbers = numbers.to(tl.float32)  # 0 beyond the row
    step, zero = _scale(_least(numbers, 1), _most(numbers, 1), _strange(numbers, 1))
    tl.store(scale + row, step, there)
    tl.store(zero_point + row, zero.to(tl.int32), there)
    tl.store(values + at, _rounded(numbers, step[:, None], zero[:, None]), known)


@triton.jit
def _gated(value, gate):
    return value * gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))


@triton.jit
def _geglu(x, out, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    known = (row < rows)[:, None] & (place < width)[None, :]
    source = x + row[:, None] * 2 * width + place[None, :]
    value = tl.load(source, known, other=0.0).to(tl.float32)
    gate = tl.load(source + width, known, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * width + place[None, :], _gated(value, gate).to(out.dtype.element_ty), known)


@triton.jit
def _geglu_rows(
    x,  # rows × 2 · width
    out,  # rows × width
    values,  # int8
    scale,  # float32, rows
    zero_point,  # int32, rows
    rows,
    width,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same of whole rows, of which integers are made as well."""
    row, place = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER), tl.arange(0, BLOCK)
    there = row < rows
    known = there[:, None] & (place < width)[None, :]
    source = x + row[:, None] * 2 * width + place[None, :]
    value = tl.load(source, known, other=0.0).to(tl.float32)
    gate = tl.load(source + width, known, other=0.0).to(tl.float32)
    rounded = _gated(value, gate).to(out.dtype.element_ty)
    at = row[:, None] * width + place[None, :]
    tl.store(out + at, rounded, known)
    _integers(rounded, known, there, row, at, values, scale, zero_point)


@triton.jit
def _sum(numbers):
    return tl.reduce(tl.reduce(numbers, 1, tl.standard._sum_combine), 0, tl.standard._sum_combine)

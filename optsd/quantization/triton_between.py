"""The kernels of `between`. Imported only where they run (or in Triton's interpreter)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from optsd.quantization.blocks import PIXELS, parts_of

CHANNELS = 64  # that one block takes
ROWS, WIDTH = 4, 256  # of GEGLU


def channel_moments(x: Tensor, found: Tensor) -> Tensor:
    batch, channels = x.shape[:2]
    parts, part = parts_of(x[0, 0].numel())
    grid = (parts, triton.cdiv(channels, CHANNELS), batch)
    with torch.cuda.device_of(x):  # Triton launches on the current GPU, whichever one holds the tensors
        _moments[grid](x, found, channels, x[0, 0].numel(), part, *_strides(x), PIXELS, CHANNELS, num_warps=4)
    return found


def group_scales(moments: Tensor, pixels: int, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    batch, parts, channels, _ = moments.shape
    found = moments.new_empty(batch, 2, channels)
    own = channels // groups
    blocks = triton.next_power_of_2(parts), triton.next_power_of_2(own)
    with torch.cuda.device_of(moments):
        _scales[(groups, batch)](
            moments, found, weight, bias, parts, parts_of(pixels)[1], pixels, channels, own, eps, *blocks, num_warps=4
        )
    return found


def scaled(x: Tensor, scales: Tensor, out: Tensor, silu: bool) -> Tensor:
    batch, channels = x.shape[:2]
    pixels = x[0, 0].numel()
    grid = (triton.cdiv(pixels, PIXELS), triton.cdiv(channels, CHANNELS), batch)
    with torch.cuda.device_of(x):
        _scaled[grid](x, scales, out, channels, pixels, *_strides(x), silu, PIXELS, CHANNELS, num_warps=4)
    return out


def geglu(x: Tensor) -> Tensor:
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    rows = out.numel() // max(width, 1)
    if out.numel():
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, WIDTH))
        with torch.cuda.device_of(x):
            _geglu[grid](x, out, rows, width, ROWS, WIDTH, num_warps=4)
    return out


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
    channels,
    pixels,
    by_picture,
    by_channel,
    by_pixel,
    SILU: tl.constexpr,
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
    target = out + picture.to(tl.int64) * pixels * channels + pixel[:, None] * channels + channel[None, :]
    tl.store(target, result.to(out.dtype.element_ty), known)


@triton.jit
def _geglu(x, out, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    known = (row < rows)[:, None] & (place < width)[None, :]
    source = x + row[:, None] * 2 * width + place[None, :]
    value = tl.load(source, known, other=0.0).to(tl.float32)
    gate = tl.load(source + width, known, other=0.0).to(tl.float32)
    result = value * gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + row[:, None] * width + place[None, :], result.to(out.dtype.element_ty), known)


@triton.jit
def _sum(numbers):
    return tl.reduce(tl.reduce(numbers, 1, tl.standard._sum_combine), 0, tl.standard._sum_combine)

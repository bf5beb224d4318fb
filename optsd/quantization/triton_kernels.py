"""The GPU's int8 product, of rows and of pictures, as one Triton kernel; and INT4's integers, unpacked for it.

Imported only where it runs (or in Triton's interpreter).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from optsd.quantization import tiles
from optsd.quantization.schemes import Activation, Pair, Weights, Window
from optsd.quantization.tiles import Tile

GROUP = 8  # tiles one below the other that share their weights in the cache, before the next column begins
UNPACKED = 64  # inputs, and outputs, that one block unpacks


def conv2d(image: Activation, weights: Weights, window: Window, size: Pair, dtype: torch.dtype) -> Tensor:
    """batch × channels × height × width to batch × outputs × `size`, channels last in memory.

    The picture has its border already, and lies with the channels last: no window leaves it. Each picture has its scale
    and its zero point, on its device. A row of a matrix is a picture of one pixel.
    """
    values, integers = image.values.permute(0, 2, 3, 1), weights.integers
    _, height, width, channels = values.shape
    batch, outputs = len(values), len(integers)
    out = torch.empty(batch, *size, outputs, dtype=dtype, device=values.device)
    positions = batch * size[0] * size[1]
    taps = window.kernel_size[0] * window.kernel_size[1]

    def launch(tile: Tile) -> None:
        grid = (triton.cdiv(positions, tile.rows) * triton.cdiv(outputs, tile.columns),)
        _conv2d[grid](
            values,
            integers,
            weights.scale,
            weights.column_sums,
            weights.scale if weights.bias is None else weights.bias,
            image.scale,
            image.zero_point,
            out,
            positions,
            outputs,
            channels,
            height * width,
            width,
            size[0] * size[1],
            size[1],
            *window.stride,
            *window.dilation,
            window.kernel_size[1],
            taps,
            taps == 1 and size == (height, width),
            weights.bias is not None,
            channels % tile.depth == 0,
            tile.rows,
            tile.columns,
            tile.depth,
            GROUP,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    if positions:
        with torch.cuda.device_of(values):  # Triton launches on the current GPU, whichever one holds the tensors
            launch(tiles.choose(values.device, positions, outputs, channels, taps, launch))
    return out.permute(0, 3, 1, 2)


def int4_integers(packed: Tensor, multipliers: Tensor, inputs: int) -> Tensor:
    """int8, outputs × inputs, of INT4 as it is stored (`schemes.Int4Weight`)."""
    half, outputs = packed.shape
    values = torch.empty(outputs, inputs, dtype=torch.int8, device=packed.device)
    grid = (triton.cdiv(half, UNPACKED), triton.cdiv(outputs, UNPACKED))
    with torch.cuda.device_of(packed):
        _unpack[grid](
            packed, multipliers, values, half, outputs, inputs, 2 * half // len(multipliers), UNPACKED, num_warps=4
        )
    return values


@triton.jit
def _conv2d(
    image,  # int8, batch × height × width × channels, its border included
    integers,  # int8, outputs × (taps · channels)
    scale,  # float32, outputs
    column_sums,  # int32, outputs
    bias,  # float32, outputs; not read without HAS_BIAS
    image_scale,  # float32, batch
    zero_point,  # int32, batch
    out,  # batch × rows × columns × outputs
    positions,  # batch · rows · columns
    outputs,
    channels,
    pixels,  # of a picture, its border included
    width,
    windows,  # rows · columns
    columns,
    stride_y,
    stride_x,
    dilation_y,
    dilation_x,
    tap_columns,
    taps,
    POINTWISE: tl.constexpr,  # a window is the pixel at its place
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,  # whether BLOCK_K divides the channels
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Blocks that run at the same time share what they read: GROUP tiles down, then the next column of tiles.
    tall, wide = (positions + BLOCK_M - 1) // BLOCK_M, (outputs + BLOCK_N - 1) // BLOCK_N
    program, group = tl.program_id(0), GROUP * wide
    first = (program // group) * GROUP
    height = tl.minimum(tall - first, GROUP)
    position = (first + (program % group) % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = ((program % group) // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    # What lies beyond the end reads the last one's numbers, and is not written: reading asks nothing.
    here, there = tl.minimum(position, positions - 1), tl.minimum(output, outputs - 1)
    batch = here // windows
    if POINTWISE:
        pixel = here.to(tl.int64)
    else:
        place = here % windows
        pixel = batch.to(tl.int64) * pixels + (place // columns) * stride_y * width + (place % columns) * stride_x
    channel = tl.arange(0, BLOCK_K)
    left = image + pixel[:, None] * channels + channel[None, :]
    right = integers + there[None, :].to(tl.int64) * (taps * channels) + channel[:, None]
    steps = (channels + BLOCK_K - 1) // BLOCK_K
    sums = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
    for step in range(0, taps * steps):
        if POINTWISE:
            at, tap, begin = step * BLOCK_K, 0, step * BLOCK_K
        else:
            tap, begin = step // steps, (step % steps) * BLOCK_K
            at = ((tap // tap_columns) * dilation_y * width + (tap % tap_columns) * dilation_x) * channels + begin
        if EVEN:
            window, weight = tl.load(left + at), tl.load(right + tap * channels + begin)
        else:
            known = channel < channels - begin
            window = tl.load(left + at, known[None, :], other=0)
            weight = tl.load(right + tap * channels + begin, known[:, None], other=0)
        sums = tl.dot(window, weight, sums, out_dtype=tl.int32)
    by_picture, zero = tl.load(image_scale + batch), tl.load(zero_point + batch)
    column_sum, factor = tl.load(column_sums + there), tl.load(scale + there)
    result = (sums - zero[:, None] * column_sum[None, :]).to(tl.float32) * (factor[None, :] * by_picture[:, None])
    if HAS_BIAS:
        result += tl.load(bias + there)[None, :]
    target = out + position[:, None].to(tl.int64) * outputs + output[None, :]
    tl.store(target, result.to(out.dtype.element_ty), (position < positions)[:, None] & (output < outputs)[None, :])


@triton.jit
def _unpack(
    packed,  # int8, half × outputs: input k in the low bits, input k + half in the high ones
    multipliers,  # int8, groups × outputs
    values,  # int8, outputs × inputs
    half,
    outputs,
    inputs,
    group_size,
    BLOCK: tl.constexpr,
):
    low = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = (low < half)[:, None] & (output < outputs)[None, :]
    both = tl.load(packed + low[:, None] * outputs + output[None, :], known, other=0)
    for part in tl.static_range(2):
        k = low + part * half
        number = (both >> 4) if part else ((both << 4) >> 4)  # arithmetic: the sign comes back
        group = multipliers + (k // group_size)[:, None] * outputs + output[None, :]
        number = (number * tl.load(group, known, other=0)).to(tl.int8)
        target = values + output[None, :].to(tl.int64) * inputs + k[:, None]
        tl.store(target, number, known & (k < inputs)[:, None])

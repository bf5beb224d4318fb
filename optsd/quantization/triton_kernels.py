"""The GPU's int8 product, of rows and of pictures, as one Triton kernel; and INT4's integers, unpacked for it.

Imported only where it runs (or in Triton's interpreter).
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from optsd.quantization import tiles
from optsd.quantization.launches import LAUNCHES, Launch
from optsd.quantization.schemes import Pair
from optsd.quantization.tiles import Tile

GROUP = 8  # tiles one below the other that share their weights in the cache, before the next column begins
UNPACKED = 64  # inputs, and outputs, that one block unpacks
NOTHING, LIKE_OUT, OF_PICTURES = 0, 1, 2  # what is added in the end


def linear(
    values: Tensor,
    row_scale: Tensor,
    zero_point: Tensor,
    integers: Tensor,
    scale: Tensor,
    column_sums: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    out: Tensor,
) -> Tensor:
    """`out`, filled: … × outputs, of … × inputs, each row with a scale of its own. `plus`: like `out`."""
    outputs, inputs = integers.shape
    size = (out.numel() // max(outputs, 1), outputs, inputs, *(1,) * 10)  # a row is a picture of one pixel
    added = NOTHING if plus is None else LIKE_OUT
    return _multiply(values, row_scale, zero_point, integers, scale, column_sums, bias, plus, out, size, added)


def conv2d(
    image: Tensor,
    image_scale: Tensor,
    zero_point: Tensor,
    integers: Tensor,
    scale: Tensor,
    column_sums: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    kernel_size: Pair,
    stride: Pair,
    dilation: Pair,
    out: Tensor,
) -> Tensor:
    """`out`, filled: batch × outputs × rows × columns, of batch × channels × height × width; both channels last.

    The picture has its border already: no window leaves it. Each picture has its scale and its zero point. `plus`: like
    `out`, or batch × outputs × 1 × 1.
    """
    batch, outputs, rows, columns = out.shape
    numbers = (*image.shape[1:], rows, columns, *stride, *dilation, *kernel_size)
    size = (batch * rows * columns, outputs, *numbers)
    added = NOTHING if plus is None else LIKE_OUT if plus.shape == out.shape else OF_PICTURES
    return _multiply(image, image_scale, zero_point, integers, scale, column_sums, bias, plus, out, size, added)


def _multiply(
    values: Tensor,
    scale_of_values: Tensor,
    zero_point: Tensor,
    integers: Tensor,
    scale: Tensor,
    column_sums: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    out: Tensor,
    size: tuple[int, ...],
    added: int,
) -> Tensor:
    if out.numel():
        product = of_product(size, bias is not None, added, out.dtype, out.device)
        # What is not read is some other tensor.
        weights = (integers, scale, column_sums, scale if bias is None else bias)
        product(values, *weights, scale_of_values, zero_point, out if plus is None else plus, out)
    return out


@functools.lru_cache(LAUNCHES)
def of_product(
    size: tuple[int, ...], has_bias: bool, added: int, dtype: torch.dtype, device: torch.device
) -> "Product":
    return Product(size, has_bias, added, device)


class Product:
    """The kernel for one shape, with the tile that is the fastest for it."""

    def __init__(self, size: tuple[int, ...], has_bias: bool, added: int, device: torch.device) -> None:
        self.size, self.ends, self.device = size, (has_bias, added), device
        self.launch: Launch | None = None

    def __call__(self, *tensors: Tensor) -> None:
        launch = self.launch
        if launch is None:
            positions, outputs, channels, *_, rows, columns = self.size
            shape = (positions, outputs, channels, rows * columns)
            with torch.cuda.device_of(tensors[0]):
                launch = self.of(tiles.choose(self.device, *shape, lambda tile: self.of(tile)(*tensors)))
            # While a graph is recorded nothing was timed.
            if self.device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
                self.launch = launch
        launch(*tensors)

    def of(self, tile: Tile) -> Launch:
        positions, outputs, channels, height, width, *size, stride_y, stride_x, down, across, rows, columns = self.size
        grid = (triton.cdiv(positions, tile.rows) * triton.cdiv(outputs, tile.columns),)
        numbers = (positions, outputs, channels, height * width, width, size[0] * size[1], size[1])
        moves = (stride_y, stride_x, down, across, columns, rows * columns)
        is_pointwise = rows * columns == 1 and size == [height, width]
        known = (is_pointwise, *self.ends, channels % tile.depth == 0, tile.rows, tile.columns, tile.depth, GROUP)
        return Launch(_conv2d, grid, *numbers, *moves, *known, num_warps=tile.warps, num_stages=tile.stages)


def int4_integers(packed: Tensor, multipliers: Tensor, inputs: int) -> Tensor:
    """int8, outputs × inputs, of INT4 as it is stored (`schemes.Int4Weight`)."""
    half, outputs = packed.shape
    values = torch.empty(outputs, inputs, dtype=torch.int8, device=packed.device)
    of_unpacking(half, outputs, inputs, 2 * half // len(multipliers), packed.device)(packed, multipliers, values)
    return values


@functools.lru_cache(LAUNCHES)
def of_unpacking(half: int, outputs: int, inputs: int, group_size: int, device: torch.device) -> Launch:
    grid = (triton.cdiv(half, UNPACKED), triton.cdiv(outputs, UNPACKED))
    return Launch(_unpack, grid, half, outputs, inputs, group_size, UNPACKED, num_warps=4)


@triton.jit
def _conv2d(
    image,  # int8, batch × height × width × channels, its border included
    integers,  # int8, outputs × (taps · channels)
    scale,  # float32, outputs
    column_sums,  # int32, outputs
    bias,  # float32, outputs; not read without HAS_BIAS
    image_scale,  # float32, batch
    zero_point,  # int32, batch
    plus,  # like out, or batch × outputs; not read without ADDED
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
    ADDED: tl.constexpr,  # 0: nothing; 1: what is like out; 2: a number a picture and output
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
    above = (first + (program % group) % height) * BLOCK_M
    position = above + tl.arange(0, BLOCK_M)
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
    # 64 bits for the block alone: as many for each number would take the registers.
    begin = above.to(tl.int64) * outputs
    at = (position - above)[:, None] * outputs + output[None, :]
    known = (position < positions)[:, None] & (output < outputs)[None, :]
    rounded = result.to(out.dtype.element_ty)
    if ADDED == 1:  # rounded twice, as in a sum of its own
        rounded += tl.load(plus + begin + at, known, other=0.0)
    if ADDED == 2:
        rounded += tl.load(plus + batch[:, None] * outputs + there[None, :])
    tl.store(out + begin + at, rounded, known)


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

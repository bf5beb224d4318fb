"""The GPU's int8 convolution as one Triton kernel. Imported only where it runs (or in Triton's interpreter)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from optsd.quantization.kernels import Pair, Weights, Window
from optsd.quantization.schemes import Activation

TILES = ((128, 128, 64, 8), (64, 64, 64, 8))
"""Rows, columns, depth and warps: tall for the many pixels of large pictures, small where few would fill no GPU.

Four warps for the small one would spill registers on compute capability 8.0 and 12.0.
"""


def conv2d(image: Activation, weights: Weights, window: Window, size: Pair, dtype: torch.dtype) -> Tensor:
    """batch × channels × height × width to batch × outputs × `size`, channels last in memory.

    Each picture has its scale and its zero point, on its device.
    """
    values = image.values.permute(0, 2, 3, 1).contiguous()
    integers = weights.integers
    batch, height, width, channels = values.shape
    rows, columns = size
    outputs = len(integers)
    out = torch.empty(batch, rows, columns, outputs, dtype=dtype, device=values.device)
    positions = batch * rows * columns
    block_m, block_n, block_k, warps = TILES[0 if positions >= 4096 else 1]
    grid = (-(-positions // block_m), -(-outputs // block_n))
    launch = _conv2d[grid]
    with torch.cuda.device_of(values):  # Triton launches on the current GPU, whichever one holds the tensors
        launch(
            values,
            integers,
            *integers.stride(),
            weights.scale,
            weights.column_sums,
            weights.scale if weights.bias is None else weights.bias,
            image.scale,
            image.zero_point,
            out,
            positions,
            height,
            width,
            channels,
            rows,
            columns,
            outputs,
            *window.stride,
            *window.dilation,
            window.margins[2],
            window.margins[0],
            window.kernel_size[0],
            window.kernel_size[1],
            weights.bias is not None,
            block_m,
            block_n,
            block_k,
            num_warps=warps,
        )
    return out.permute(0, 3, 1, 2)


@triton.jit
def _conv2d(
    image,  # int8, batch × height × width × channels
    integers,  # int8, outputs × (kernel rows · kernel columns · channels)
    by_output,  # its strides: INT4 unpacks with the outputs side by side
    by_input,
    scale,  # float32, outputs
    column_sums,  # int32, outputs
    bias,  # float32, outputs; not read without HAS_BIAS
    image_scale,  # float32, batch
    zero_point,  # int32, batch
    out,  # batch × rows × columns × outputs
    positions,
    height,
    width,
    channels,
    rows,
    columns,
    outputs,
    stride_y,
    stride_x,
    dilation_y,
    dilation_x,
    top,
    left,
    KERNEL_ROWS: tl.constexpr,
    KERNEL_COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = position % columns
    row = (position // columns) % rows
    batch = position // (columns * rows)
    zero = tl.load(zero_point + batch, position < positions, other=0)
    quantized_zero = zero.to(tl.int8)
    sums = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
    for y in range(KERNEL_ROWS):
        for x in range(KERNEL_COLUMNS):
            in_row = row * stride_y - top + y * dilation_y
            in_column = column * stride_x - left + x * dilation_x
            inside = (in_row >= 0) & (in_row < height) & (in_column >= 0) & (in_column < width) & (position < positions)
            pixel = ((batch.to(tl.int64) * height + in_row) * width + in_column) * channels
            tap = (y * KERNEL_COLUMNS + x) * channels
            for first in range(0, channels, BLOCK_K):
                channel = first + tl.arange(0, BLOCK_K)
                there = channel < channels
                window = tl.load(image + pixel[:, None] + channel[None, :], inside[:, None] & there[None, :], other=0)
                window = tl.where(inside[:, None], window, quantized_zero[:, None])  # the border is a quantized 0
                weight = tl.load(
                    integers + output[None, :] * by_output + (tap + channel)[:, None] * by_input,
                    (output < outputs)[None, :] & there[:, None],
                    other=0,
                )
                sums = tl.dot(window, weight, sums, out_dtype=tl.int32)
    is_output = output < outputs
    column_sum = tl.load(column_sums + output, is_output, other=0)
    by_picture = tl.load(image_scale + batch, position < positions, other=0.0)
    factor = tl.load(scale + output, is_output, other=0.0)[None, :] * by_picture[:, None]
    result = (sums - zero[:, None] * column_sum[None, :]).to(tl.float32) * factor
    if HAS_BIAS:
        result += tl.load(bias + output, is_output, other=0.0)[None, :]
    target = out + position[:, None].to(tl.int64) * outputs + output[None, :]
    tl.store(target, result.to(out.dtype.element_ty), (position < positions)[:, None] & is_output[None, :])

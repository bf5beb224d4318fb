"""The arithmetic of INT8 and INT4: rounding, scales, groups, packing. Plain functions of tensors, on any device.

Weights are matrices here, `outputs × inputs`; a convolution's inputs are its window, rows × columns × channels, so
that a row of the matrix meets a window of a channels-last picture.

Activations (W8A8 and W4A8 alike): q = round(x / s) + z in -128…127, with a scale s and a zero point z for each row of
a matrix (a token) and each picture of a convolution, taken from its smallest and largest value, so that the skewed
range of SiLU and GELU is used in full. Of a batch no picture looks at another: alone it is painted the same.
INT8 weights: q = round(w / s) in -127…127, one scale for each output.
INT4 weights: two levels, after QServe (Lin et al., 2024). w ≈ s · m · q with q in -8…7, an integer m in 1…16 for each
group of inputs, and one scale s for each output. m · q is an integer in -128…112: the weight unpacks to int8, and the
multiplication is INT8's own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optsd import native
from optsd.errors import BadInput

INT8_LIMIT = 127
INT4_LOWEST, INT4_HIGHEST = -8, 7
MULTIPLIER_LIMIT = 16  # 16 · -8 = -128 is the lowest int8
SHRINKAGE = (1.0, 0.9, 0.8, 0.7)  # how much of a group's largest weight its multiplier is made for; the best is kept


@dataclass(frozen=True)
class Int8Weight:
    values: Tensor  # int8, outputs × inputs
    scale: Tensor  # float32, outputs

    def dequantize(self) -> Tensor:
        """float32, outputs × inputs."""
        return self.values.float() * self.scale[:, None]


@dataclass(frozen=True)
class Int4Weight:
    """`packed[k, o]` holds input k of output o in its low half and input k + padded inputs / 2 in its high half.

    Whole halves of the matrix, and outputs side by side, make unpacking five passes over contiguous memory.
    """

    packed: Tensor  # int8, padded inputs / 2 × outputs
    multipliers: Tensor  # int8, groups × outputs
    scale: Tensor  # float32, outputs
    inputs: int

    def unpack(self) -> Tensor:
        """int8, padded inputs × outputs. The rows that pad the inputs to whole groups are zero."""
        return unpack_int4(self.packed, self.multipliers)

    def dequantize(self) -> Tensor:
        """float32, outputs × inputs."""
        return (self.unpack()[: self.inputs].float() * self.scale).t().contiguous()


def quantize_int8(weight: Tensor) -> Int8Weight:
    """`outputs × inputs` of any float type to int8. An output whose weights are all zero has scale 1.

    Raises BadInput for NaN or infinite weights.
    """
    weight, largest = _checked(weight)
    scale = _scale(largest, INT8_LIMIT)
    values = torch.round(weight / scale[:, None]).clamp_(-INT8_LIMIT, INT8_LIMIT).to(torch.int8)
    return Int8Weight(values, scale)


def quantize_int4(weight: Tensor, group_size: int) -> Int4Weight:
    """`outputs × inputs` of any float type to packed INT4; the inputs are padded with zeros to whole groups.

    Raises BadInput for NaN or infinite weights, or a group size that is no even number of 2 or more.
    """
    if group_size < 2 or group_size % 2:
        raise BadInput(f"INT4 cannot use groups of {group_size}", "choose an even group size, such as 32")
    weight, largest = _checked(weight)
    outputs, inputs = weight.shape
    groups = -(-inputs // group_size)
    scale = _scale(largest, MULTIPLIER_LIMIT * INT4_HIGHEST)
    weight = torch.nn.functional.pad(weight / scale[:, None], (0, groups * group_size - inputs))
    weight = weight.view(outputs, groups, group_size)
    largest = weight.abs().amax(-1)  # outputs × groups
    best = torch.full_like(largest, torch.inf)
    multipliers = torch.ones_like(largest)
    values = torch.zeros_like(weight, dtype=torch.int8)
    for share in SHRINKAGE:
        candidate = torch.round(largest * share / INT4_HIGHEST).clamp_(1, MULTIPLIER_LIMIT)
        rounded = torch.round(weight / candidate[..., None]).clamp_(INT4_LOWEST, INT4_HIGHEST)
        error = (rounded * candidate[..., None] - weight).square().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        multipliers = torch.where(better, candidate, multipliers)
        values = torch.where(better[..., None], rounded.to(torch.int8), values)
    packed = pack_int4(values.view(outputs, -1).t().contiguous())
    return Int4Weight(packed, multipliers.t().to(torch.int8).contiguous(), scale, inputs)


def pack_int4(values: Tensor) -> Tensor:
    """int8 in -8…7, `2·n × outputs`, two to a byte: `n × outputs`. `unpack_int4` is the inverse."""
    low, high = values.chunk(2)
    return (low & 15) | (high << 4)


def unpack_int4(packed: Tensor, multipliers: Tensor | None = None) -> Tensor:
    """int8, `2·n × outputs` from `n × outputs`, multiplied by each group's integer."""
    half, outputs = packed.shape
    values = packed.new_empty(2 * half, outputs)
    low, high = values[:half], values[half:]
    torch.bitwise_left_shift(packed, 4, out=low)
    torch.bitwise_right_shift(low, 4, out=low)  # arithmetic: the sign of the low half comes back
    torch.bitwise_right_shift(packed, 4, out=high)
    if multipliers is not None:
        values.view(len(multipliers), -1, outputs).mul_(multipliers[:, None])
    return values


@dataclass(frozen=True)
class Activation:
    """A tensor quantized on the fly: x ≈ (values - zero_point) · scale, where both belong to a share of the tensor.

    Shares are equal and lie one after the other: the rows of a matrix, the pictures of a batch.
    """

    values: Tensor  # int8 or uint8, the shape and memory format of x
    scale: Tensor  # float32, shares
    zero_point: Tensor  # int32, shares

    @property
    def per_share(self) -> int:
        """How many of the first dimension make a share."""
        return len(self.values) // max(len(self.scale), 1)

    def dequantize(self) -> Tensor:
        """float32 of the shape of x."""
        shares = self.values.reshape(len(self.scale), -1)
        return ((shares.float() - self.zero_point[:, None]) * self.scale[:, None]).view(self.values.shape)

    def as_rows(self) -> "Activation":
        """The same with everything but the last dimension in one."""
        return Activation(self.values.reshape(-1, self.values.shape[-1]), self.scale, self.zero_point)


Pair = tuple[int, int]  # rows, columns


@dataclass(frozen=True)
class Window:
    """How a convolution moves over a picture."""

    kernel_size: Pair
    stride: Pair
    dilation: Pair
    margins: tuple[int, int, int, int]  # of zeros: left, right, top, bottom
    groups: int

    def moves(self, size: Pair) -> tuple[int, ...]:
        """All but the groups as plain numbers, and the size of the result."""
        return (*self.kernel_size, *self.stride, *self.dilation, *self.margins, *size)


@dataclass(frozen=True)
class Weights:
    """A layer's weights as a kernel takes them."""

    integers: Tensor  # what the kernel's `pack` returned, or int8, outputs × inputs (any strides)
    scale: Tensor  # float32, outputs
    column_sums: Tensor  # int32, outputs: the sum of each output's integers
    bias: Tensor | None  # float32, outputs
    multipliers: Tensor | None = None  # of INT4 for a kernel that unpacks it: then `integers` is `Int4Weight.packed`


ROUNDER = 1.5 * 2**23
"""Adding it to a float32 leaves that number, rounded to even, in the low bits of its representation."""


def quantize_activation(x: Tensor, dimensions: int, signed: bool = True) -> Activation:
    """x of any float type to int8, each share of it by its own range, which always includes 0.

    `dimensions`: how many of the first ones count the shares: 1 of pictures, all but the last of rows. `signed`: False
    gives uint8, the same integers 128 higher. On the CPU NaN or infinity raises BadInput. On a GPU, where looking would
    stall it, both become NaN in the output of their share.
    """
    shares = math.prod(x.shape[:dimensions])
    if native.serves(x) and (dimensions <= 1 or x.is_contiguous()):
        return Activation(*native.quantize(x, shares, signed))
    within = tuple(range(dimensions, x.ndim))
    lowest, highest = x.amin(within, keepdim=True).clamp(max=0), x.amax(within, keepdim=True).clamp(min=0)
    if x.device.type != "cpu":
        # Times the reciprocal: so torch divides by a number on a GPU, whatever is written, and on a CPU it does not.
        scale = ((highest.float() - lowest.float()) * (1 / STEPS)).clamp(min=SMALLEST_SCALE)
        zero_point = torch.ceil(-lowest.float() / scale) - (128 if signed else 0)
        values = torch.round(x.float() / scale + zero_point)
        values = values.clamp_(-128, 127).to(torch.int8) if signed else values.clamp_(0, 255).to(torch.uint8)
        return Activation(values, scale.view(shares), zero_point.view(shares).to(torch.int32))
    step = (highest.double() - lowest.double()) / STEPS
    if not (step < torch.inf).all():
        raise native.not_finite(lowest.amin().item(), highest.amax().item())
    step = step.clamp(min=SMALLEST_SCALE)
    zero = torch.ceil(-lowest.double() / step) - (128 if signed else 0)
    # One addition shifts and rounds: the integer is the low byte of the sum, with a sign or without.
    values = (x * (1 / step).float()).add_((zero + ROUNDER).float()).view(torch.int32).to(torch.int8)
    values = values if signed else values.view(torch.uint8)
    return Activation(values, step.float().view(shares), zero.view(shares).to(torch.int32))


STEPS = 254
"""From the smallest to the largest value. 255 would fit exactly, and a rounding error would wrap the largest to 0."""
SMALLEST_SCALE = 1e-30


def check_weights(weight: Tensor) -> Tensor:
    """The largest of each output, `outputs × inputs` or more. Raises BadInput for NaN or infinite weights."""
    largest = weight.detach().float().abs().flatten(1).amax(-1)
    if not torch.isfinite(largest).all():
        raise BadInput("a weight is NaN or infinite", "repair the checkpoint, or leave that layer in high precision")
    return largest


def _checked(weight: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight.detach().float()
    return weight, check_weights(weight)


def _scale(largest: Tensor, limit: int) -> Tensor:
    # Weights below float32's smallest normal number would divide to infinity: they count as zero.
    scale = largest / limit
    return torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))

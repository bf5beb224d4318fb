"""How quantized layers are computed: one small interface, several kernels, the same integers under each of them.

A kernel computes y = s·S·(Σ (q - z)·w) + b, where q and z are the activation's integers and zero point, w the weights'
integers, s and S their scales. The sums are exact int32; only the last multiplication and addition are rounded.
"""

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from optsd.errors import BadInput, Unsupported
from optsd.quantization.schemes import Activation

Pair = tuple[int, int]  # rows, columns


@dataclass(frozen=True)
class Window:
    """How a convolution moves over a picture."""

    kernel_size: Pair
    stride: Pair
    dilation: Pair
    margins: tuple[int, int, int, int]  # of zeros: left, right, top, bottom
    groups: int

    @property
    def is_pointwise(self) -> bool:
        """True for a 1×1 convolution over every pixel: a Linear layer."""
        return self.kernel_size == self.stride == (1, 1) and not any(self.margins) and self.groups == 1


@dataclass(frozen=True)
class Weights:
    """A layer's weights as a kernel takes them."""

    integers: Tensor  # what the kernel's `pack` returned, or int8, outputs × inputs (any strides)
    scale: Tensor  # float32, outputs
    column_sums: Tensor  # int32, outputs: the sum of each output's integers
    bias: Tensor | None  # float32, outputs


class Kernel(Protocol):
    name: str

    def refusal(self, device: torch.device, bits: int, groups: int) -> str:
        """Why it cannot compute such a layer there, or an empty string."""

    def pack(self, integers: Tensor, window: Window | None) -> Tensor:
        """int8, outputs × inputs, in the order in which the kernel reads them. As many bytes, or nearly."""

    def unpack(self, packed: Tensor, window: Window | None) -> Tensor:
        """The inverse of `pack`."""

    def linear(self, rows: Activation, weights: Weights, dtype: torch.dtype) -> Tensor:
        """M × inputs to M × outputs."""

    def conv2d(self, image: Activation, weights: Weights, window: Window, dtype: torch.dtype) -> Tensor:
        """batch × channels × height × width to the same, channels last in memory."""


class MatmulKernel:
    """What kernels share that can multiply plain int8 matrices: a convolution is a multiplication of its windows."""

    name = ""

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """int8 M×K times int8 K×N: exact int32 M×N."""
        raise NotImplementedError

    def pack(self, integers: Tensor, window: Window | None) -> Tensor:
        return integers

    def unpack(self, packed: Tensor, window: Window | None) -> Tensor:
        return packed

    def linear(self, rows: Activation, weights: Weights, dtype: torch.dtype) -> Tensor:
        sums = self.matmul(rows.values, weights.integers.t())
        factor = weights.scale * rows.scale
        offset = (weights.column_sums * factor).mul_(-rows.zero_point)
        if weights.bias is not None:
            offset += weights.bias
        return torch.addcmul(offset, sums, factor, out=torch.empty_like(sums, dtype=dtype))

    def conv2d(self, image: Activation, weights: Weights, window: Window, dtype: torch.dtype) -> Tensor:
        padded = pad(image, window.margins)
        parts = []
        for values, share in zip(padded.chunk(window.groups, -1), split(weights, window.groups), strict=True):
            rows, size = windows(values, window)
            parts.append(self.linear(Activation(rows, image.scale, image.zero_point), share, dtype))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return out.view(len(padded), *size, -1).permute(0, 3, 1, 2)


class Reference(MatmulKernel):
    """float64, which holds every int32 sum exactly. For any device; slow."""

    name = "reference"

    def refusal(self, device: torch.device, bits: int, groups: int) -> str:
        return ""

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        return (left.double() @ right.double()).to(torch.int32)


class IntMM(MatmulKernel):
    """`torch._int_mm`: oneDNN on the CPU (VNNI or AMX where there is one), cuBLASLt's tensor cores on a GPU."""

    name = "int_mm"

    def refusal(self, device: torch.device, bits: int, groups: int) -> str:
        if device.type == "cpu":
            return "" if _is_exact_on_cpu() else "on this CPU torch._int_mm saturates its sums at 16 bits"
        if device.type != "cuda":
            return f"torch._int_mm does not run on {device.type}"
        if torch.cuda.get_device_capability(device) < (7, 5):
            return "the GPU has no int8 tensor cores (compute capability 7.5)"
        return ""

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        if left.device.type == "cpu":
            return torch._int_mm(left, right)
        # cuBLASLt wants more than 16 rows, and inputs and outputs in multiples of 8.
        rows, inputs = left.shape
        outputs = right.shape[1]
        more = (max(17 - rows, 0), -inputs % 8, -outputs % 8)
        if any(more):
            left = functional.pad(left, (0, more[1], 0, more[0]))
            right = functional.pad(right, (0, more[2], 0, more[1]))
        return torch._int_mm(left, right)[:rows, :outputs]


class OneDNN:
    """oneDNN's int8 layers by way of torch: weights in oneDNN's own order, scales and bias applied as they are summed.

    Such tensors are opaque: they have a size but no address, and come back through `unpack`.
    """

    name = "onednn"

    def refusal(self, device: torch.device, bits: int, groups: int) -> str:
        if device.type != "cpu":
            return f"oneDNN's int8 layers do not run on {device.type}"
        if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
            return "this build of torch has no oneDNN"
        if not torch.cpu._is_vnni_supported():
            return "the CPU has no VNNI, without which oneDNN saturates its sums at 16 bits"
        if bits != 8:
            return "it wants its weights ahead of time, and INT4 is unpacked at each use"
        if groups != 1:
            return "convolutions in groups are left to torch._int_mm"
        return ""

    def pack(self, integers: Tensor, window: Window | None) -> Tensor:
        if window is None or window.is_pointwise:
            return torch.ops.onednn.qlinear_prepack(integers.contiguous(), None)
        return torch.ops.onednn.qconv_prepack(
            _as_kernels(integers, window),
            torch.ones(len(integers)),
            1.0,
            1,  # any zero point but 0: the sums that correct for it are then kept beside the weights
            window.stride,
            self._padding(window)[0],
            window.dilation,
            1,
            None,
        )

    def unpack(self, packed: Tensor, window: Window | None) -> Tensor:
        if window is None or window.is_pointwise:
            return packed.to_dense().t().contiguous()
        return packed.to_dense().permute(0, 2, 3, 1).flatten(1).contiguous()

    def linear(self, rows: Activation, weights: Weights, dtype: torch.dtype) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            *self._arguments(rows, rows.values, weights), 1.0, 0, dtype, "none", [], ""
        )

    def conv2d(self, image: Activation, weights: Weights, window: Window, dtype: torch.dtype) -> Tensor:
        padding, margins = self._padding(window)
        values = pad(image, margins).permute(0, 3, 1, 2)
        return torch.ops.onednn.qconv2d_pointwise(
            *self._arguments(image, values, weights),
            window.stride,
            padding,
            window.dilation,
            1,
            1.0,
            0,
            dtype,
            "none",
            [],
            "",
        )

    @staticmethod
    def _arguments(x: Activation, values: Tensor, weights: Weights) -> tuple:
        # int8 plus 128 is uint8, which is what it takes: the same bits with the first one flipped.
        shifted = values.view(torch.uint8).bitwise_xor(128)
        no_zero_points = torch.zeros_like(weights.column_sums, dtype=torch.int64)
        return shifted, x.scale, x.zero_point + 128, weights.integers, weights.scale, no_zero_points, weights.bias

    @staticmethod
    def _padding(window: Window) -> tuple[Pair, tuple[int, int, int, int]]:
        """What oneDNN pads (the same on both sides), and what has to be padded before."""
        left, right, top, bottom = window.margins
        if (left, top) == (right, bottom):
            return (top, left), (0, 0, 0, 0)
        return (0, 0), window.margins


KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in (OneDNN(), IntMM(), Reference())}
"""In the order in which `choose` tries them."""


def choose(device: torch.device, name: str = "auto", bits: int = 8, groups: int = 1) -> Kernel:
    """The first kernel that computes such a layer there, or the one that is asked for.

    Raises BadInput for an unknown name, Unsupported for one that cannot run there.
    """
    if name not in ("auto", *KERNELS):
        raise BadInput(f"unknown kernel {name!r}", f"choose from auto, {', '.join(KERNELS)}")
    if name == "auto":
        return next(kernel for kernel in KERNELS.values() if not kernel.refusal(device, bits, groups))
    if reason := KERNELS[name].refusal(device, bits, groups):
        raise Unsupported(f"kernel {name} cannot run INT{bits} on {device}: {reason}", "use auto")
    return KERNELS[name]


def pad(image: Activation, margins: tuple[int, int, int, int]) -> Tensor:
    """batch × height × width × channels with a border of quantized zeros."""
    values = image.values.permute(0, 2, 3, 1)
    if not any(margins):
        return values.contiguous()
    left, right, top, bottom = margins
    batch, height, width, channels = values.shape
    padded = values.new_empty(batch, height + top + bottom, width + left + right, channels)
    if isinstance(image.zero_point, Tensor):
        padded.copy_(image.zero_point)
    else:
        padded.fill_(image.zero_point)
    padded[:, top : top + height, left : left + width] = values
    return padded


def windows(x: Tensor, window: Window) -> tuple[Tensor, Pair]:
    """The windows of a padded batch × height × width × channels, and the output's size.

    Each is a row of rows × columns × channels. Raises BadInput where not one window fits.
    """
    size = output_size(x.shape[1:3], window)
    x = x.contiguous()
    batch, channels = x.shape[0], x.shape[3]
    by_image, by_row, by_column, by_channel = x.stride()
    steps = (by_row * window.stride[0], by_column * window.stride[1])
    within = (by_row * window.dilation[0], by_column * window.dilation[1])
    view = x.as_strided((batch, *size, *window.kernel_size, channels), (by_image, *steps, *within, by_channel))
    return view.reshape(batch * size[0] * size[1], -1), size


def output_size(padded: torch.Size, window: Window) -> Pair:
    """Rows and columns of what a convolution gives. Raises BadInput where not one window fits."""
    rows, columns = (
        (length - step * (extent - 1) - 1) // hop + 1
        for length, extent, hop, step in zip(padded, window.kernel_size, window.stride, window.dilation, strict=True)
    )
    if rows < 1 or columns < 1:
        raise BadInput(
            f"a picture of {padded[0]}×{padded[1]}, padding included, is smaller than the convolution's window",
            "use a larger one",
        )
    return rows, columns


def split(weights: Weights, groups: int) -> list[Weights]:
    """The weights of each group of a convolution."""
    if groups == 1:
        return [weights]
    biases = [None] * groups if weights.bias is None else weights.bias.chunk(groups)
    parts = (weights.integers.chunk(groups), weights.scale.chunk(groups), weights.column_sums.chunk(groups), biases)
    return [Weights(*part) for part in zip(*parts, strict=True)]


@functools.cache
def _is_exact_on_cpu() -> bool:
    """Some int8 code for CPUs without VNNI adds pairs of products in 16 bits: tried with the largest products."""
    largest = torch.full((32, 64), -128, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t().contiguous()) == 128 * 128 * 64).all())


def _as_kernels(integers: Tensor, window: Window) -> Tensor:
    """outputs × (rows·columns·channels) as Conv2d keeps its weights: outputs × channels × rows × columns."""
    return integers.unflatten(1, (*window.kernel_size, -1)).permute(0, 3, 1, 2).contiguous()

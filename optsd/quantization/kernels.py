"""How quantized layers are computed: one small interface, several kernels, the same integers under each of them.

A kernel computes y = s·S·(Σ (q - z)·w) + b, where q and z are the activation's integers and zero point, w the weights'
integers, s and S their scales; s and z are those of the row or the picture, S of the output. The sums are exact int32;
only what follows them is rounded.
"""

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from optsd import native
from optsd.errors import BadInput, Unsupported
from optsd.quantization import between, quantizing
from optsd.quantization.operators import compiled, operator
from optsd.quantization.schemes import Activation, Pair, Weights, Window, quantize_activation


class Kernel:
    """What a kernel must do, and what most of them do alike: a convolution is a multiplication of its windows."""

    name = ""
    signed = True  # whether it takes activations as int8, not uint8
    unpacks_int4 = False  # whether it takes INT4 as it is stored
    ends = False  # whether `layer` takes `plus` and `gated`

    def refusal(self, device: torch.device, bits: int, groups: int) -> str:
        """Why it cannot compute such a layer there, or an empty string."""
        raise NotImplementedError

    def layer(self, x: Tensor, weights: Weights, window: Window | None) -> Tensor:
        """x of any float type, quantized on the fly, to that type: a convolution with a window, without one linear."""
        activation = self.quantize(x, 1 if window else x.ndim - 1)
        if window is not None:
            return self.conv2d(activation, weights, window, x.dtype)
        return self.linear(activation.as_rows(), weights, x.dtype).view(*x.shape[:-1], len(weights.scale))

    def quantize(self, x: Tensor, dimensions: int) -> Activation:
        """See `schemes.quantize_activation`."""
        return quantize_activation(x, dimensions, self.signed)

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """int8 M×K times int8 K×N: exact int32 M×N."""
        raise NotImplementedError

    def pack(self, integers: Tensor) -> Tensor:
        """int8, outputs × inputs, in the order in which the kernel reads them."""
        return integers

    def unpack(self, packed: Tensor, outputs: int, inputs: int) -> Tensor:
        """The inverse of `pack`."""
        return packed

    def linear(self, rows: Activation, weights: Weights, dtype: torch.dtype) -> Tensor:
        """M × inputs to M × outputs of `dtype`; a share may be several rows."""
        sums = self.matmul(rows.values, weights.integers.t())
        shares = sums.view(len(rows.scale), rows.per_share, len(weights.scale))
        shares.addcmul_(rows.zero_point[:, None, None], weights.column_sums, value=-1)
        factor = weights.scale * rows.scale[:, None, None]
        offset = torch.zeros_like(weights.scale) if weights.bias is None else weights.bias
        return torch.addcmul(offset, shares, factor, out=torch.empty_like(shares, dtype=dtype)).view(sums.shape)

    def conv2d(self, image: Activation, weights: Weights, window: Window, dtype: torch.dtype) -> Tensor:
        """batch × channels × height × width to the same of `dtype`, channels last in memory.

        Raises BadInput for a picture smaller than the window.
        """
        size = output_size(_padded_size(image.values, window), window)
        parts = [
            self.linear(Activation(rows, image.scale, image.zero_point), share, dtype)
            for rows, share in zip(windows(image, window, size), split(weights, window.groups), strict=True)
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return out.view(len(image.values), *size, -1).permute(0, 3, 1, 2)


class Reference(Kernel):
    """float64, which holds every int32 sum exactly. For any device; slow."""

    name = "reference"

    def refusal(self, device: torch.device, bits: int, groups: int) -> str:
        return ""

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        return (left.double() @ right.double()).to(torch.int32)


class IntMM(Kernel):
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
            if 1 in (*left.shape, *right.shape):
                # The stride of a dimension of 1 may be anything, and torch 2.11 multiplies by it all the same.
                left, right = (each.clone(memory_format=torch.contiguous_format) for each in (left, right))
            return torch._int_mm(left, right)
        rows, outputs = len(left), right.shape[1]
        return torch._int_mm(*for_cublas(left, right))[:rows, :outputs]


class Native(Kernel):
    """The CPU's own kernel (optsd.native): windows are never written out, INT4 is unpacked in the processor's cache."""

    name = "native"
    signed = False
    unpacks_int4 = True
    ends = True

    def refusal(self, device: torch.device, bits: int, groups: int) -> str:
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if torch.cpu._is_amx_tile_supported():
            return "the CPU has AMX, which oneDNN uses and this kernel does not"
        return native.refusal() if groups == 1 else "convolutions in groups are left to torch._int_mm"

    def pack(self, integers: Tensor) -> Tensor:
        return native.pack(integers)

    def unpack(self, packed: Tensor, outputs: int, inputs: int) -> Tensor:
        return native.unpack(packed, outputs, inputs)

    def layer(
        self,
        x: Tensor,
        weights: Weights,
        window: Window | None,
        plus: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor:
        """As ever; and in the same pass `plus` is added, or with `gated` GEGLU computed: half the outputs are gates."""
        # Range, integers and product in one operator: what lies between three takes longer than a small layer.
        is_narrow = gated and len(weights.scale) % (2 * native.GATED)
        if x.shape[1 if window else -1] % 4 or is_narrow or not native.serves(x):
            out = super().layer(x, weights, window)
            if gated:
                values, gate = out.chunk(2, -1)
                out = values * functional.gelu(gate)
            return out if plus is None else out + plus
        if plus is not None:
            if window is None:  # of a pointwise convolution it may be one for all pixels
                plus = plus.expand(*x.shape[:-1], len(weights.scale))
            of_pictures = window is not None and plus.shape[2:] != (1, 1)
            layout = torch.channels_last if of_pictures else torch.contiguous_format
            plus = plus.to(x.dtype).contiguous(memory_format=layout)
        return self._run(x, weights, window, None, None, plus=plus, gated=gated)

    def linear(self, rows: Activation, weights: Weights, dtype: torch.dtype) -> Tensor:
        # padded with anything: the weights there are 0
        values = functional.pad(rows.values, (0, -rows.values.shape[1] % 4))
        of_rows = (each.repeat_interleave(rows.per_share) for each in (rows.scale, rows.zero_point))
        return self._run(values, weights, None, *of_rows).to(dtype)

    def conv2d(self, image: Activation, weights: Weights, window: Window, dtype: torch.dtype) -> Tensor:
        if image.values.shape[1] % 4:
            return super().conv2d(image, weights, window, dtype)
        return self._run(image.values, weights, window, image.scale, image.zero_point).to(dtype)

    def _run(
        self, x: Tensor, weights: Weights, window: Window | None, *scale_and_zero_point: Tensor | None, **end: Any
    ) -> Tensor:
        moves: tuple[int, ...] = ()
        if window is None:
            x = x.contiguous()
        else:
            x = x.contiguous(memory_format=torch.channels_last)
            moves = window.moves(output_size(_padded_size(x, window), window))
        parts = (weights.integers, weights.multipliers, weights.scale, weights.column_sums, weights.bias)
        return torch.ops.optsd.quantized_layer(x, *parts, moves, *scale_and_zero_point, **end)


class Triton(Kernel):
    """One GPU kernel for both: it gathers a convolution's windows as it multiplies, so they are never written out."""

    name = "triton"
    unpacks_int4 = True
    ends = True

    def refusal(self, device: torch.device, bits: int, groups: int) -> str:
        if device.type != "cuda":
            return f"Triton does not run on {device.type}"
        if not _has_triton():
            return "triton is not installed"
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            return "Triton multiplies integers from compute capability 8.0 on"
        return _triton_problem() if groups == 1 else "convolutions in groups are left to torch._int_mm"

    def layer(
        self,
        x: Tensor,
        weights: Weights,
        window: Window | None,
        plus: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor:
        """As ever, with `plus` added in the same pass; GEGLU, with `gated`, in one of its own."""
        if window is not None:
            image = quantizing.pictures(x, window.margins)
            if plus is not None:
                plus = (
                    plus.expand(x.shape[0], *plus.shape[1:]).to(x.dtype).contiguous(memory_format=torch.channels_last)
                )
            return self._pictures(image, weights, window, x.dtype, plus)
        if plus is not None:
            plus = plus.expand(*x.shape[:-1], weights.scale.shape[0]).to(x.dtype).contiguous()
        out = self.linear(quantizing.rows(x, x.ndim - 1), weights, x.dtype, plus)
        return between.geglu(out) if gated else out

    def linear(self, rows: Activation, weights: Weights, dtype: torch.dtype, plus: Tensor | None = None) -> Tensor:
        """… × inputs, each row a share of its own, to … × outputs; `plus`: the same."""
        parts = (_int8(weights, rows.values.shape[-1]), weights.scale, weights.column_sums, weights.bias)
        return int8_linear(rows.values, rows.scale, rows.zero_point, *parts, plus, dtype)

    def conv2d(self, image: Activation, weights: Weights, window: Window, dtype: torch.dtype) -> Tensor:
        bordered = pad(image, window.margins).permute(0, 3, 1, 2)
        return self._pictures(Activation(bordered, image.scale, image.zero_point), weights, window, dtype)

    def _pictures(
        self, image: Activation, weights: Weights, window: Window, dtype: torch.dtype, plus: Tensor | None = None
    ) -> Tensor:
        """`image`: with its border, channels last."""
        inputs = image.values.shape[1] * window.kernel_size[0] * window.kernel_size[1]
        parts = (_int8(weights, inputs), weights.scale, weights.column_sums, weights.bias)
        moves = (window.kernel_size, window.stride, window.dilation)
        return int8_conv2d(image.values, image.scale, image.zero_point, *parts, plus, *moves, dtype)


def _int8(weights: Weights, inputs: int) -> Tensor:
    """outputs × inputs."""
    if weights.multipliers is None:
        return weights.integers
    return int4_integers(weights.integers, weights.multipliers, inputs)


def _empty_rows(values: Tensor, *others: Any) -> Tensor:
    integers, dtype = others[2], others[-1]
    return values.new_empty(*values.shape[:-1], integers.shape[0], dtype=dtype)


@operator(
    "int8_linear(Tensor values, Tensor row_scale, Tensor zero_point, Tensor integers, Tensor scale, "
    "Tensor column_sums, Tensor? bias, Tensor? plus, ScalarType dtype) -> Tensor",
    _empty_rows,
)
def int8_linear(*given: Any) -> Tensor:
    return compiled("triton_kernels").linear(*given[:-1], _empty_rows(*given))


def _empty_pictures(image: Tensor, *others: Any) -> Tensor:
    _, _, integers, *_, kernel_size, stride, dilation, dtype = others
    batch, _, *padded = image.shape
    size = output_size(padded, Window(kernel_size, stride, dilation, (0, 0, 0, 0), groups=1))
    return image.new_empty(batch, *size, integers.shape[0], dtype=dtype).permute(0, 3, 1, 2)


@operator(
    "int8_conv2d(Tensor image, Tensor image_scale, Tensor zero_point, Tensor integers, Tensor scale, "
    "Tensor column_sums, Tensor? bias, Tensor? plus, int[] kernel_size, int[] stride, int[] dilation, "
    "ScalarType dtype) -> Tensor",
    _empty_pictures,
)
def int8_conv2d(*given: Any) -> Tensor:
    return compiled("triton_kernels").conv2d(*given[:-1], _empty_pictures(*given))


@operator(
    "int4_integers(Tensor packed, Tensor multipliers, int inputs) -> Tensor",
    lambda packed, _, inputs: packed.new_empty(packed.shape[1], inputs),
)
def int4_integers(packed: Tensor, multipliers: Tensor, inputs: int) -> Tensor:
    return compiled("triton_kernels").int4_integers(packed, multipliers, inputs)


def _padded_size(image: Tensor, window: Window) -> torch.Size:
    left, right, top, bottom = window.margins
    return torch.Size((image.shape[2] + top + bottom, image.shape[3] + left + right))


KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in (Native(), Triton(), IntMM(), Reference())}
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


def for_cublas(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """int8 M×K and K×N as cuBLASLt takes them on every GPU, with zeros where there were too few.

    It wants more than 16 rows, inputs and outputs in multiples of 8, and each output's weights side by side: another
    order is refused by one GPU or another. 17 rows have given wrong sums in the past; 32 are a tile.
    """
    rows, inputs, by_output = len(left), -left.shape[1] % 8, right.t()
    if inputs or rows <= 16:
        left = functional.pad(left, (0, inputs, 0, 32 - rows if rows <= 16 else 0))
    if inputs or len(by_output) % 8:
        by_output = functional.pad(by_output, (0, inputs, 0, -len(by_output) % 8))
    return left.contiguous(), by_output.contiguous().t()


def pad(image: Activation, margins: tuple[int, int, int, int]) -> Tensor:
    """batch × height × width × channels with a border of quantized zeros."""
    values = image.values.permute(0, 2, 3, 1)
    if not any(margins):
        return values.contiguous()
    left, right, top, bottom = margins
    batch, height, width, channels = values.shape
    padded = values.new_empty(batch, height + top + bottom, width + left + right, channels)
    padded.copy_(image.zero_point[:, None, None, None])
    padded[:, top : top + height, left : left + width] = values
    return padded


def windows(image: Activation, window: Window, size: Pair) -> list[Tensor]:
    """For each group, its share of the `size` windows: rows of rows × columns × channels each."""
    return [_windows(part, window, size) for part in pad(image, window.margins).chunk(window.groups, -1)]


def _windows(x: Tensor, window: Window, size: Pair) -> Tensor:
    x = x.contiguous()
    batch, _, _, channels = x.shape
    by_image, by_row, by_column, by_channel = x.stride()
    steps = (by_row * window.stride[0], by_column * window.stride[1])
    within = (by_row * window.dilation[0], by_column * window.dilation[1])
    view = x.as_strided((batch, *size, *window.kernel_size, channels), (by_image, *steps, *within, by_channel))
    return view.reshape(batch * size[0] * size[1], -1)


def output_size(padded: Sequence[int], window: Window) -> Pair:
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
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _triton_problem() -> str:
    """Why Triton cannot start: at its first launch it compiles its driver, with a C compiler and Python's headers."""
    if not torch.cuda.is_available():  # an estimate
        return ""
    try:
        importlib.import_module("triton").runtime.driver.active.get_current_target()
    except Exception as error:  # noqa: BLE001 - a compiler's or a loader's, of any class
        return f"triton cannot start ({(str(error) or type(error).__name__).splitlines()[0]})"
    return ""


@functools.cache
def _is_exact_on_cpu() -> bool:
    """Some int8 code for CPUs without VNNI adds pairs of products in 16 bits: tried with the largest products."""
    largest = torch.full((32, 64), -128, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t().contiguous()) == 128 * 128 * 64).all())

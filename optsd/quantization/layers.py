"""Linear and Conv2d layers whose weights are integers and which multiply integers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair as pair

from optsd.quantization import kernels, schemes
from optsd.quantization.schemes import Activation, Int4Weight, Int8Weight


class QuantizedLayer(nn.Module):
    """What QLinear and QConv2d share: integer weights in buffers, and the multiplication.

    `weight` gives the dequantized weights, computed anew at each look: what reads `weight.dtype` or `.device` works,
    what trains or replaces weights does not.
    """

    values: Tensor  # of INT8 only
    packed: Tensor  # of INT4 only, as are its multipliers
    multipliers: Tensor
    scale: Tensor
    column_sums: Tensor
    bias: Tensor | None

    def __init__(self, weight: Int8Weight | Int4Weight, bias: Tensor | None, dtype: torch.dtype, kernel: str) -> None:
        super().__init__()
        self.dtype, self.kernel, self.kernel_calls = dtype, kernel, 0
        if isinstance(weight, Int8Weight):
            self.bits, self.inputs = 8, weight.values.shape[1]
            self.register_buffer("values", weight.values)
        else:
            self.bits, self.inputs = 4, weight.inputs
            self.register_buffer("packed", weight.packed)
            self.register_buffer("multipliers", weight.multipliers)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("column_sums", self.integers().sum(0, dtype=torch.int32), persistent=False)

    def integers(self) -> Tensor:
        """The weights as int8, inputs × outputs; INT4 is unpacked anew at each call and kept nowhere."""
        if self.bits == 8:
            return self.values.t()
        return schemes.unpack_int4(self.packed, self.multipliers)[: self.inputs]

    def dequantized(self) -> Tensor:
        """The weights as the layer computes with them, outputs × inputs, in the layer's own type."""
        return (self.integers().float() * self.scale).t().to(self.dtype)

    def multiply(
        self, rows: Tensor, activation: Activation, integers: Tensor, outputs: slice, dtype: torch.dtype
    ) -> Tensor:
        """(rows - zero point) · integers, scaled back, plus the bias: M×K and K×N to M×N of `dtype`."""
        self.kernel_calls += 1
        sums = kernels.choose(rows.device, self.kernel).matmul(rows, integers)
        factor = self.scale[outputs] * activation.scale
        offset = (self.column_sums[outputs] * factor).mul_(-activation.zero_point)
        if self.bias is not None:
            offset += self.bias[outputs]
        return torch.addcmul(offset, sums, factor, out=torch.empty_like(sums, dtype=dtype))

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantizedLayer":
        # `module.to(dtype)` changes the type of what comes out, never that of the scales.
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.scale.device)).dtype
        scale, bias = self.scale, self.bias
        super()._apply(fn, recurse)
        self.scale = scale.to(self.scale.device)
        self.bias = None if bias is None else bias.to(self.scale.device)
        return self


class QLinear(QuantizedLayer):
    """A Linear layer: `… × in_features` of any float type to `… × out_features` of that type."""

    def __init__(
        self, weight: Int8Weight | Int4Weight, bias: Tensor | None, dtype: torch.dtype, kernel: str = "auto"
    ) -> None:
        super().__init__(weight, bias, dtype, kernel)
        self.in_features, self.out_features = self.inputs, len(weight.scale)

    @property
    def weight(self) -> Tensor:
        return self.dequantized()

    def forward(self, x: Tensor) -> Tensor:
        activation = schemes.quantize_activation(x)
        rows = activation.values.reshape(-1, self.in_features)
        out = self.multiply(rows, activation, self.integers(), slice(None), x.dtype)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, bits={self.bits}"


class QConv2d(QuantizedLayer):
    """A Conv2d layer with every field of `nn.Conv2d`. Pictures come out channels-last."""

    def __init__(
        self,
        weight: Int8Weight | Int4Weight,
        layer: nn.Conv2d,
        bias: Tensor | None,
        dtype: torch.dtype,
        kernel: str = "auto",
    ) -> None:
        super().__init__(weight, bias, dtype, kernel)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode, self.groups = layer.padding, layer.padding_mode, layer.groups
        self.margins = tuple(layer._reversed_padding_repeated_twice)  # left, right, top, bottom

    @property
    def weight(self) -> Tensor:
        rows, columns = self.kernel_size
        return self.dequantized().unflatten(1, (rows, columns, -1)).permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        margins = self.margins
        if self.padding_mode != "zeros":
            x, margins = functional.pad(x, margins, mode=self.padding_mode), (0, 0, 0, 0)
        activation = schemes.quantize_activation(x)
        image = activation.values.permute(0, 2, 3, 1)
        if any(margins):
            image = _pad(image, margins, activation.zero_point)
        integers = self.integers()
        share, width = self.in_channels // self.groups, self.out_channels // self.groups
        parts = []
        for group in range(self.groups):
            part = image if self.groups == 1 else image[..., group * share : (group + 1) * share]
            rows, size = kernels.windows(part, pair(self.kernel_size), pair(self.stride), pair(self.dilation))
            outputs = slice(group * width, (group + 1) * width)
            parts.append(self.multiply(rows, activation, integers[:, outputs], outputs, x.dtype))
        out = parts[0] if self.groups == 1 else torch.cat(parts, 1)
        return out.view(len(x), *size, self.out_channels).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"bits={self.bits}"
        )


def _pad(image: Tensor, margins: tuple[int, ...], zero_point: int | Tensor) -> Tensor:
    """batch × height × width × channels with a border of quantized zeros."""
    left, right, top, bottom = margins
    batch, height, width, channels = image.shape
    padded = image.new_empty(batch, height + top + bottom, width + left + right, channels)
    padded.copy_(zero_point) if isinstance(zero_point, Tensor) else padded.fill_(zero_point)
    padded[:, top : top + height, left : left + width] = image
    return padded


def quantize_layer(layer: nn.Linear | nn.Conv2d, bits: int, group_size: int, kernel: str = "auto") -> QuantizedLayer:
    """The layer with integer weights, on the same device. Raises BadInput for NaN or infinite weights."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Conv2d):
        weight = weight.permute(0, 2, 3, 1)  # outputs × rows × columns × channels
    matrix = weight.reshape(len(weight), -1)
    quantized = schemes.quantize_int8(matrix) if bits == 8 else schemes.quantize_int4(matrix, group_size)
    if isinstance(layer, nn.Conv2d):
        return QConv2d(quantized, layer, layer.bias, weight.dtype, kernel)
    return QLinear(quantized, layer.bias, weight.dtype, kernel)

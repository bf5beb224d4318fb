"""Linear and Conv2d layers whose weights are integers and which multiply integers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair as pair

from optsd.errors import Unsupported
from optsd.quantization import kernels, schemes
from optsd.quantization.schemes import Int4Weight, Int8Weight, Weights, Window

CHANGE_BEFORE = "load weights, and fuse LoRAs, before quantizing; a LoRA that is not fused works after it too"


class QuantizedLayer(nn.Module):
    """What QLinear and QConv2d share: integer weights in buffers, in the order that the kernel wants.

    `weight` gives the dequantized weights, computed anew at each look: what reads `weight.dtype` or `.device` works,
    what writes to it, as fusing a LoRA does, raises Unsupported.
    """

    values: Tensor  # of INT8 only, packed by the kernel
    packed: Tensor  # of INT4 only, as are its multipliers
    multipliers: Tensor
    scale: Tensor
    column_sums: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Int8Weight | Int4Weight,
        bias: Tensor | None,
        dtype: torch.dtype,
        kernel: str,
        window: Window | None = None,
    ) -> None:
        """`bias`: of any float type. `dtype`: that of `weight`, for those who look. Raises BadInput or Unsupported."""
        nn.Module.__init__(self)  # not that of nn.Linear or nn.Conv2d, which makes weights
        self.dtype, self.kernel_calls, self.window, self.asked = dtype, 0, window, kernel
        self.saves_plain = False  # whether `state_dict` gives numbers in place of the integers
        self.bits = 8 if isinstance(weight, Int8Weight) else 4
        self.kernel = self._choose(weight.scale.device)
        if isinstance(weight, Int8Weight):
            self.inputs = weight.values.shape[1]
            self.register_buffer("values", self.kernel.pack(weight.values))
            sums = weight.values.sum(1, dtype=torch.int32)
        else:
            self.inputs = weight.inputs
            self.register_buffer("packed", weight.packed)
            self.register_buffer("multipliers", weight.multipliers)
            sums = self.integers().sum(1, dtype=torch.int32)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("column_sums", sums, persistent=False)

    @property
    def group_size(self) -> int:
        """Inputs that share a multiplier; of INT8, where there is none, the usual number."""
        return 2 * len(self.packed) // len(self.multipliers) if self.bits == 4 else 32

    def integers(self) -> Tensor:
        """The weights as int8, outputs × inputs; INT4 is unpacked anew at each call and kept nowhere."""
        if self.bits == 8:
            return self.kernel.unpack(self.values, len(self.scale), self.inputs)
        return schemes.unpack_int4(self.packed, self.multipliers)[: self.inputs].t()

    def dequantized(self) -> Tensor:
        """The weights that the layer computes with, outputs × inputs, rounded to the layer's type."""
        return (self.integers().float() * self.scale[:, None]).to(self.dtype)

    def weights(self) -> Weights:
        """What the kernel takes."""
        if not torch.compiler.is_compiling():  # it would be read anew for each number
            vars(self)["kernel_calls"] += 1  # nn.Module's own way takes longer, as it does for buffers
        buffers: dict[str, Any] = self._buffers
        by_output = (buffers["scale"], buffers["column_sums"], buffers["bias"])
        if self.bits == 4 and self.kernel.unpacks_int4:
            return Weights(self.packed, *by_output, self.multipliers)
        return Weights(self.values if self.bits == 8 else self.integers(), *by_output)

    def _choose(self, device: torch.device) -> kernels.Kernel:
        return kernels.choose(device, self.asked, self.bits, self.window.groups if self.window else 1)

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantizedLayer":
        # `module.to(dtype)` changes the type that `weight` shows, never that of the scales; and packed weights cannot
        # move: they are unpacked before, and packed after as the kernel there wants them.
        example = fn(torch.empty(0, dtype=self.dtype, device=self.scale.device))
        self.dtype = example.dtype
        if example.device == self.scale.device:
            return self
        if self.bits == 8:
            self.values = self.integers()
        kept = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            setattr(self, name, buffer.to(example.device))
        self.kernel = self._choose(example.device)
        if self.bits == 8:
            self.values = self.kernel.pack(self.values)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}weight" in state_dict:
            raise Unsupported(f"{prefix}weight cannot be loaded into a quantized layer", CHANGE_BEFORE)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.saves_plain:
            weight: Any = self.weight
            destination[f"{prefix}weight"] = weight.as_subclass(Tensor)
            if self.bias is not None:
                destination[f"{prefix}bias"] = self.bias.to(self.dtype)
            return
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.bits == 8:
            destination[f"{prefix}values"] = self.integers()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: packed weights lie as one processor wants them, so plain ones travel."""
        state = self.__dict__.copy()
        state["_buffers"] = dict(state["_buffers"])
        if self.bits == 8:
            state["_buffers"]["values"] = self.integers()
        state["kernel"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.kernel = self._choose(self.scale.device)
        if self.bits == 8:
            self.values = self.kernel.pack(self.values)


class ReadOnly(Tensor):
    """Weights that are computed from integers: nothing would come of writing to them, so it is refused."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place or name in WRITES or isinstance((kwargs or {}).get("out"), ReadOnly):
            raise Unsupported("the weights of a quantized layer cannot be changed", CHANGE_BEFORE)
        with torch._C.DisableTorchFunctionSubclass():
            output = function(*args, **(kwargs or {}))
        # `.data` and views share what they are taken from: they are as little to be written to.
        shares = isinstance(output, Tensor) and name in ("__get__", "detach", "view", "__getitem__")
        return output.as_subclass(ReadOnly) if shares else output


WRITES = ("__set__", "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__")


class QLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """A Linear layer: `… × in_features` of any float type to `… × out_features` of that type.

    It is an `nn.Linear` to those who ask, as adapters do before they wrap a layer.
    """

    def __init__(
        self, weight: Int8Weight | Int4Weight, bias: Tensor | None, dtype: torch.dtype, kernel: str = "auto"
    ) -> None:
        super().__init__(weight, bias, dtype, kernel)
        self.in_features, self.out_features = self.inputs, len(weight.scale)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.dequantized().as_subclass(ReadOnly)

    def forward(self, x: Tensor, **end: Any) -> Tensor:  # type: ignore[override]
        return self.kernel.layer(x, self.weights(), None, **end)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, bias={bias}, bits={self.bits}, kernel={self.kernel.name}"


class QConv2d(QuantizedLayer, nn.Conv2d):
    """A Conv2d layer with every field of `nn.Conv2d`. Pictures come out channels-last."""

    window: Window

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # peft makes the convolutions of an adapter by the class of the layer that it adapts: those are plain.
        return nn.Conv2d(*args, **kwargs) if args and isinstance(args[0], int) else super().__new__(cls)

    def __init__(
        self,
        weight: Int8Weight | Int4Weight,
        layer: nn.Conv2d,
        bias: Tensor | None,
        dtype: torch.dtype,
        kernel: str = "auto",
    ) -> None:
        """`layer` gives the fields; its weights and bias are not looked at."""
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        self.border = (left, right, top, bottom)
        # Only zeros can be added after quantization: what is copied from the picture is copied before.
        margins = self.border if layer.padding_mode == "zeros" else (0, 0, 0, 0)
        window = Window(pair(layer.kernel_size), pair(layer.stride), pair(layer.dilation), margins, layer.groups)
        super().__init__(weight, bias, dtype, kernel, window)
        self.is_pointwise = window == Window((1, 1), (1, 1), window.dilation, (0, 0, 0, 0), 1)
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode = layer.padding, layer.padding_mode

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        matrix = self.dequantized().unflatten(1, (*self.window.kernel_size, -1))
        return matrix.permute(0, 3, 1, 2).contiguous().as_subclass(ReadOnly)

    def forward(self, x: Tensor, **end: Any) -> Tensor:  # type: ignore[override]
        if self.padding_mode != "zeros":
            x = functional.pad(x, self.border, mode=self.padding_mode)
        if self.is_pointwise:  # a linear layer of pixels: each has a range of its own, as a token has
            end = {name: value.movedim(-3, -1) for name, value in end.items()}
            return self.kernel.layer(x.movedim(-3, -1).contiguous(), self.weights(), None, **end).movedim(-1, -3)
        return self.kernel.layer(x, self.weights(), self.window, **end)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"bits={self.bits}, kernel={self.kernel.name}"
        )


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

"""The field's own quantizers, as variants beside ours: bitsandbytes and torchao. They convert Linear layers only.

In SD v1.5's UNet those are 31 % of the weights; the convolutions stay as they are, and the proof counts them.
"""

import importlib
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import nn

from optsd import anatomy
from optsd.calls import plain_class, take_over
from optsd.errors import NothingMatched, Unsupported
from optsd.patching import Patch, Pipeline, Stage
from optsd.quantization.convert import check_convertible

FAILURES = (RuntimeError, NotImplementedError, ImportError, AssertionError, ValueError, TypeError, AttributeError)
"""What these libraries raise, each at its own place, where a device, a type or a kernel of theirs is missing."""


@dataclass(frozen=True)
class Peer:
    """What the four share; each gives its library and converts one layer."""

    name: str = ""
    library: str = ""
    exact: bool = field(default=False, init=False)
    stage: Stage = field(default=Stage.WEIGHTS, init=False)
    slot: str = field(default="weights", init=False)

    def convert(self, layer: nn.Linear) -> nn.Module:
        """The layer as the library quantizes it."""
        raise NotImplementedError

    def leaves(self, name: str, device: torch.device) -> bool:
        """Whether the layer of that name stays as it is, because the library could not run it there."""
        return False

    def check(self, pipe: Pipeline) -> None:
        """Raise Unsupported where the library is missing or its kernels do not run here: one small layer is tried."""
        module = anatomy.denoiser(pipe)
        check_convertible(module, anatomy.denoiser_name(pipe))
        remedy = f"leave {self.name} out, or run it where {self.library} supports it"
        try:
            importlib.import_module(self.library)
        except ImportError as error:
            raise Unsupported(f"{self.name} needs {self.library} ({error})", f"pip install {self.library}") from error
        device, dtype = anatomy.device(module), module.dtype
        try:
            tried = self.convert(nn.Linear(128, 128, device=device, dtype=dtype).requires_grad_(False))
            with torch.no_grad():
                finite = torch.isfinite(tried(torch.ones(32, 128, device=device, dtype=dtype))).all().item()
        except FAILURES as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise Unsupported(
                f"{self.library} cannot run {self.name} on {device} in {dtype}: {reason}", remedy
            ) from error
        if not finite:
            raise Unsupported(f"{self.library}'s {self.name} gives NaN on {device} in {dtype}", remedy)

    def apply(self, pipe: Pipeline) -> Patch:
        module, prefix = anatomy.denoiser(pipe), anatomy.denoiser_name(pipe)
        check_convertible(module, prefix)
        layers = {name: child for name, child in module.named_modules() if plain_class(child) is nn.Linear}
        done: list[str] = []
        device = anatomy.device(module)
        for name, layer in layers.items():
            if self.leaves(name, device):
                continue
            parent, _, attribute = name.rpartition(".")
            converted = self.convert(layer.requires_grad_(False))
            # torchao leaves what does not fit its groups as it was, without a word.
            if plain_class(converted) is nn.Linear and type(converted.weight.data) is torch.Tensor:
                continue
            setattr(module.get_submodule(parent), attribute, converted)
            if converted is not layer:
                take_over(converted, layer)
            done.append(f"{prefix}.{name}")
        if not done:
            raise NothingMatched(f"{self.library} converted no layer of the {prefix}", "choose another variant")
        proof = {
            f"{self.name}_linear": len(done),
            f"{self.name}_linear_left": len(layers) - len(done),
            f"{self.name}_conv2d_left": sum(isinstance(child, nn.Conv2d) for child in module.modules()),
        }
        return Patch(self.name, tuple(done), proof.copy, why_lossy=f"{self.library} has replaced the original weights")


@dataclass(frozen=True)
class Int8Bnb(Peer):
    """LLM.int8() (Dettmers et al., 2022): int8 by rows, outlier columns in 16 bits."""

    name: str = "int8-bnb"
    library: str = "bitsandbytes"

    def convert(self, layer: nn.Linear) -> nn.Module:
        import bitsandbytes

        device = layer.weight.device
        new = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False, device="meta"
        )
        # It quantizes when it moves from the CPU to a device, which may be the CPU.
        new.weight = bitsandbytes.nn.Int8Params(layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
        new.bias = layer.bias
        return new.to(device)


@dataclass(frozen=True)
class Int4Bnb(Peer):
    """NF4 weights (QLoRA, Dettmers et al., 2023), multiplied in the layer's own type."""

    name: str = "int4-bnb"
    library: str = "bitsandbytes"

    def convert(self, layer: nn.Linear) -> nn.Module:
        import bitsandbytes

        device = layer.weight.device
        new = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            quant_type="nf4",
            device="meta",
        )
        new.weight = bitsandbytes.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
        new.bias = layer.bias
        return new.to(device)


@dataclass(frozen=True)
class Int8Torchao(Peer):
    """torchao's `Int8DynamicActivationInt8WeightConfig`: W8A8, made to be compiled."""

    name: str = "int8-torchao"
    library: str = "torchao"

    def leaves(self, name: str, device: torch.device) -> bool:
        # torch._int_mm, by which it multiplies on a GPU, refuses 16 rows and fewer: those of as many pictures.
        return device.type == "cuda" and any(fnmatch(name, pattern) for pattern in anatomy.ONE_ROW)

    def convert(self, layer: nn.Linear) -> nn.Module:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(layer, Int8DynamicActivationInt8WeightConfig())
        return layer


@dataclass(frozen=True)
class Int4Torchao(Peer):
    """torchao's `Int4WeightOnlyConfig`: groups of 32, multiplied in bfloat16."""

    name: str = "int4-torchao"
    library: str = "torchao"

    def convert(self, layer: nn.Linear) -> nn.Module:
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        quantize_(layer, Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d"))
        return layer

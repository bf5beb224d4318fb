"""INT8 and INT4 weights with integer multiplication, in Linear and Conv2d layers alike."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from optsd.errors import BadInput, Unsupported
from optsd.patching import Patch, Pipeline, Stage
from optsd.quantization import kernels
from optsd.quantization.convert import KEPT, Conversion, check_convertible, convert
from optsd.quantization.layers import QLinear

COMPONENTS = ("unet", "text_encoder", "vae")
WHY_LOSSY = "the original weights were released, that is where the memory is saved"


@dataclass(frozen=True)
class Int8:
    """8-bit weights, one scale an output; activations quantized on the fly; integer multiplication (W8A8).

    `keep`: shell patterns of layer names that stay in high precision. `components`: of `unet`, `text_encoder`, `vae`.
    `kernel`: `auto`, or one of `optsd.quantization.kernels.KERNELS`.
    """

    keep: tuple[str, ...] = KEPT
    components: tuple[str, ...] = ("unet",)
    kernel: str = "auto"
    name: str = "int8"
    exact: bool = False
    stage: Stage = Stage.WEIGHTS
    slot: str = "weights"

    def check(self, pipe: Pipeline) -> None:
        check_components(pipe, self.name, self.components, self.kernel)

    def apply(self, pipe: Pipeline) -> Patch:
        return quantize(pipe, self.name, self.components, bits=8, keep=self.keep, kernel=self.kernel)


@dataclass(frozen=True)
class Int4:
    """4-bit weights in groups along the inputs, two to a byte, unpacked to int8 at each use (W4A8).

    Smaller groups cost a byte each and lose less. The other fields are `Int8`'s.
    """

    group_size: int = 32
    keep: tuple[str, ...] = KEPT
    components: tuple[str, ...] = ("unet",)
    kernel: str = "auto"
    name: str = "int4"
    exact: bool = False
    stage: Stage = Stage.WEIGHTS
    slot: str = "weights"

    def check(self, pipe: Pipeline) -> None:
        check_components(pipe, self.name, self.components, self.kernel)

    def apply(self, pipe: Pipeline) -> Patch:
        return quantize(
            pipe,
            self.name,
            self.components,
            bits=4,
            group_size=self.group_size,
            keep=self.keep,
            kernel=self.kernel,
        )


def check_components(pipe: Pipeline, technique: str, components: tuple[str, ...], kernel: str) -> None:
    """Raise unless every component is there, not quantized yet, and the kernel runs on its device."""
    if not components or set(components) - set(COMPONENTS):
        raise BadInput(f"{technique} cannot quantize {components!r}", f"choose from {', '.join(COMPONENTS)}")
    for name in components:
        module = getattr(pipe, name, None)
        if module is None:
            raise Unsupported(f"{technique}: {type(pipe).__name__} has no {name}", "leave it out of the components")
        check_convertible(module, name)
        kernels.choose(module.device, kernel)


def quantize(pipe: Pipeline, technique: str, components: tuple[str, ...], **scheme: Any) -> Patch:
    """Convert the components and return what was done. Raises NothingMatched, or BadInput for broken weights."""
    done = [convert(getattr(pipe, name), name=name, **scheme) for name in components]
    device = getattr(pipe, components[0]).device
    kernel = kernels.choose(device, scheme["kernel"]).name
    touched = tuple(layer for conversion in done for layer in conversion.converted)
    return Patch(technique, touched, lambda: read_proof(done, technique, kernel), why_lossy=WHY_LOSSY)


def read_proof(done: list[Conversion], technique: str, kernel: str) -> dict[str, Any]:
    layers = [layer for conversion in done for layer in conversion.converted.values()]
    kinds = Counter("linear" if isinstance(layer, QLinear) else "conv2d" for layer in layers)
    return {
        f"{technique}_linear": kinds["linear"],
        f"{technique}_conv2d": kinds["conv2d"],
        "left_in_high_precision": {name: why for conversion in done for name, why in conversion.left.items()},
        "integer_kernel": kernel,
        "integer_kernel_calls": sum(layer.kernel_calls for layer in layers),
    }

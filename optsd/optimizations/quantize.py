"""INT8 and INT4 weights with integer multiplication, in Linear and Conv2d layers alike."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from optsd import anatomy, native
from optsd.calls import plain_class
from optsd.errors import BadInput, Unsupported
from optsd.patching import Change, Patch, Pipeline, Stage
from optsd.quantization import kernels
from optsd.quantization import rules as by_layer
from optsd.quantization.boundary import (
    FUSED,
    compute_in_bfloat16,
    drawing_part,
    fuse_on_gpu,
    suits_bfloat16,
    type_inside,
)
from optsd.quantization.convert import KEPT, Conversion, check_convertible, check_finite, check_rules, convert
from optsd.quantization.layers import QLinear, QuantizedLayer
from optsd.quantization.rules import BITS, Rule

COMPONENTS = ("denoiser", "text_encoder", "vae")
WHY_LOSSY = "the original weights were released, that is where the memory is saved"


@dataclass(frozen=True)
class Quantize:
    """What `Int8` and `Int4` share.

    `rules`: which layers of the denoiser get another precision. `whole`: all text encoders and the decoder are
    quantized too, to 8 bits, as 4 cost more there than in a denoiser. `keep`: shell patterns of layer names that stay
    in high precision whatever the rules say. `components`: of `denoiser`, `text_encoder` and `vae`. `kernel`: `auto`,
    or one of `optsd.quantization.kernels.KERNELS`. `between`: the type of what passes between the denoiser's layers:
    `auto` (bfloat16 for a float32 one on a CPU that has instructions for it) or `same`.
    """

    rules: tuple[Rule, ...] = ()
    whole: bool = False
    keep: tuple[str, ...] = KEPT
    components: tuple[str, ...] = ("denoiser",)
    kernel: str = "auto"
    between: str = "auto"
    group_size: int = 32  # INT4 only
    bits: int = field(default=8, init=False)
    exact: bool = field(default=False, init=False)
    stage: Stage = field(default=Stage.WEIGHTS, init=False)
    slot: str = field(default="weights", init=False)

    @property
    def name(self) -> str:
        return by_layer.spelled(f"int{self.bits}", self.rules, self.whole)

    @classmethod
    def from_text(cls, text: str) -> "Quantize":
        """`all:up_blocks.*=int4:mid_block.*=float`. Raises BadInput."""
        whole, rules = by_layer.read(text)
        return cls(rules, whole)

    def check(self, pipe: Pipeline) -> None:
        if self.between not in ("auto", "same"):
            raise BadInput(f"{self.name} cannot compute between={self.between!r}", "choose auto or same")
        if not self.components or set(self.components) - {*COMPONENTS, *anatomy.DENOISERS}:
            raise BadInput(f"{self.name} cannot quantize {self.components!r}", f"choose from {', '.join(COMPONENTS)}")
        for name, module in self._modules(pipe).items():
            check_convertible(module, name)
            own, keep, rules = self._how(name)
            check_rules(module, own, keep, name, rules)
            for bits in {own, *(BITS[rule.precision] for rule in rules if rule.precision in BITS)}:
                kernels.choose(anatomy.device(module), self.kernel, bits)

    def apply(self, pipe: Pipeline) -> Patch:
        modules = self._modules(pipe)
        if len(modules) > 1:  # the weights of one must not be gone when another's turn out to be broken
            for name, module in modules.items():
                check_finite(module, self._how(name)[1], name)
        done = []
        for name, module in modules.items():
            bits, keep, rules = self._how(name)
            done.append(convert(module, bits, self.group_size, keep, self.kernel, name, rules))
        changes: list[Change] = [*done]
        module = anatomy.denoiser(pipe)
        for component in (module, anatomy.decoder(pipe)):
            part = drawing_part(component)
            if self.between == "auto" and component in modules.values() and suits_bfloat16(part):
                changes.append(compute_in_bfloat16(part))
        if module in modules.values():
            fuse_on_gpu(module)
        touched = tuple(layer for conversion in done for layer in conversion.converted)
        proof = partial(read_proof, module, done, self.bits)
        return Patch(self.name, touched, proof, tuple(changes), why_lossy=WHY_LOSSY)

    def _how(self, component: str) -> tuple[int, tuple[str, ...], tuple[Rule, ...]]:
        """The bits of its layers, which are kept, and the rules."""
        if component in anatomy.DENOISERS:
            return self.bits, self.keep, self.rules
        if not self.whole:
            return self.bits, self.keep, ()
        more = (*anatomy.ENCODING, *anatomy.DECODERS_ENDS) if component == anatomy.DECODER else anatomy.PRECISE_IN_TEXT
        return 8, (*self.keep, *more), ()

    def _modules(self, pipe: Pipeline) -> dict[str, nn.Module]:
        """The components by the pipeline's own names. Raises Unsupported for one that it lacks."""
        more = (*anatomy.text_encoders(pipe), anatomy.DECODER) if self.whole else ()
        names = [anatomy.denoiser_name(pipe) if name == "denoiser" else name for name in (*self.components, *more)]
        modules = {name: anatomy.component(pipe, name) for name in names}
        if missing := [name for name, module in modules.items() if module is None]:
            raise Unsupported(
                f"{self.name}: {type(pipe).__name__} has no {missing[0]}", "leave it out of the components"
            )
        return modules


@dataclass(frozen=True)
class Int8(Quantize):
    """8-bit weights, one scale an output; activations quantized on the fly; integer multiplication (W8A8)."""


@dataclass(frozen=True)
class Int4(Quantize):
    """4-bit weights in groups along the inputs, two to a byte, unpacked to int8 at each use (W4A8).

    Smaller groups cost a byte each and lose less.
    """

    bits: int = field(default=4, init=False)


def read_proof(denoiser: nn.Module, done: list[Conversion], own: int) -> dict[str, Any]:
    """`own`: the technique's bits, whose numbers of layers come first, whatever the rules gave the others."""
    layers = [layer for conversion in done for layer in conversion.converted.values()]
    numbers = Counter((layer.bits, "linear" if isinstance(layer, QLinear) else "conv2d") for layer in layers)
    given = dict.fromkeys([own, *sorted({layer.bits for layer in layers})])
    return {
        **{f"int{bits}_{kind}": numbers[bits, kind] for bits in given for kind in ("linear", "conv2d")},
        **({"quantized": {each.name: len(each.converted) for each in done}} if len(done) > 1 else {}),
        "left_in_high_precision": {name: why for conversion in done for name, why in conversion.left.items()},
        "between_layers": str(type_inside(denoiser)).removeprefix("torch."),
        "fused_blocks": sum(plain_class(module) in FUSED.values() for module in denoiser.modules()),
        "activations_quantized_by": _quantizer(layers),
        "integer_kernel": ", ".join(sorted({layer.kernel.name for layer in layers})),
        "integer_kernel_calls": sum(layer.kernel_calls for layer in layers),
    }


def _quantizer(layers: list[QuantizedLayer]) -> str:
    if any(layer.scale.device.type != "cpu" for layer in layers):
        return "optsd.triton" if any(layer.kernel.name == "triton" for layer in layers) else "torch"
    if reason := native.refusal():
        return f"torch ({reason})"
    return f"optsd.native ({native.instruction_set().name})"

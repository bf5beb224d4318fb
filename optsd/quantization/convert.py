"""Quantize a module's Linear and Conv2d layers in place, and say which were left and why."""

import inspect
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from optsd import anatomy
from optsd.calls import Call, interpose, plain_class, take_over
from optsd.errors import BadInput, NothingMatched, Unsupported
from optsd.quantization import rules as by_layer
from optsd.quantization.layers import QuantizedLayer, quantize_layer
from optsd.quantization.rules import BITS, Rule
from optsd.quantization.schemes import check_weights

KEPT = (*anatomy.FIRST_AND_LAST, *anatomy.EMBEDDINGS, *anatomy.MODULATION)
"""Layers that stay in high precision unless a filter says otherwise: `optsd sensitivity` measures what each costs."""


@dataclass(frozen=True)
class Conversion:
    """What was done to one module: the names of the converted layers, and of those left with the reason.

    A change of a pipeline that cannot be taken back: it holds while the quantized layers are where they were put.
    """

    module: nn.Module
    name: str
    converted: dict[str, QuantizedLayer]
    left: dict[str, str]

    def holds(self) -> bool:
        return all(
            layer in anatomy.at(self.module, place.removeprefix(f"{self.name}.").removesuffix(f".{anatomy.ADAPTED}"))
            for place, layer in self.converted.items()
        )

    def revert(self) -> None:
        raise NotImplementedError("quantization is lossy: its patch refuses to be undone")


def check_convertible(module: nn.Module, name: str) -> None:
    """Raise Unsupported for a module that is offloaded, or quantized already, by this library or by another."""
    for layer, child in module.named_modules(prefix=name):
        if isinstance(child, QuantizedLayer):
            raise Unsupported(f"{name} is quantized already ({layer})", "load the pipeline again, then quantize once")
        for parameter in child.parameters(recurse=False):
            if parameter.is_meta:
                raise Unsupported(f"the weights of {layer} are offloaded", "quantize first, then turn on offloading")
            library = type(parameter.data).__module__.split(".")[0], type(parameter).__module__.split(".")[0]
            foreign = next((origin for origin in library if origin != "torch"), "")
            if foreign or not (parameter.is_floating_point() or parameter.is_complex()):
                raise Unsupported(
                    f"{layer} has been quantized by {foreign or 'another library'}",
                    "load the model in float16, bfloat16 or float32 first",
                )


def convert(
    module: nn.Module,
    bits: int,
    group_size: int = 32,
    keep: tuple[str, ...] = KEPT,
    kernel: str = "auto",
    name: str = "unet",
    rules: Collection[Rule] = (),
) -> Conversion:
    """Replace each Linear and Conv2d whose name matches none of the shell patterns in `keep`; the old weights go.

    `rules` say which get other bits, or stay. `name` is what messages call the module. Raises Unsupported (quantized
    already), NothingMatched, or BadInput (NaN or infinite weights, which name their layer; the module is then as it
    was).
    """
    check_convertible(module, name)
    check_rules(module, bits, keep, name, rules)
    layers, left = convertible(module, (*keep, *(rule.pattern for rule in rules if rule.precision == "float")))
    converted: dict[str, QuantizedLayer] = {}
    replacements: dict[nn.Module, QuantizedLayer] = {}
    for layer, original in layers.items():
        precision = by_layer.decide(_adapted(layer), rules, f"int{bits}")
        try:
            quantized = quantize_layer(original, BITS[precision], group_size, kernel)
        except BadInput as error:
            raise BadInput(f"{name}.{layer}: {error.problem}", error.remedy) from error
        replacements[original] = converted[f"{name}.{layer}"] = quantized
    if not converted:
        raise NothingMatched(f"{name} has no Linear or Conv2d layer to quantize", "keep fewer layers")
    # diffusers registers some layers under two names (`conv` and `Conv2d_0`): each place gets the new one.
    for parent in list(module.modules()):
        for attribute, child in list(parent._modules.items()):  # named_children() names a shared layer once
            if child in replacements:
                setattr(parent, attribute, replacements[child])
    for old, new in replacements.items():
        take_over(new, old)
    keep_pictures_apart(module)
    keep_others_right(module)
    return Conversion(module, name, converted, {f"{name}.{layer}": why for layer, why in left.items()})


def convertible(module: nn.Module, keep: Collection[str]) -> tuple[dict[str, nn.Linear | nn.Conv2d], dict[str, str]]:
    """The Linear and Conv2d layers that can be quantized, and why the others are left; by their names in the module."""
    layers: dict[str, nn.Linear | nn.Conv2d] = {}
    left: dict[str, str] = {}
    adapters = [f"{layer}." for layer, child in module.named_modules() if anatomy.is_adapter(child)]
    for layer, child in module.named_modules():
        if not isinstance(child, nn.Linear | nn.Conv2d):
            continue
        adapter = max((prefix for prefix in adapters if layer.startswith(prefix)), default="")
        if adapter and not layer.endswith(anatomy.ADAPTED):
            left[layer] = "it belongs to an adapter, which is small and comes and goes"
        elif pattern := next((pattern for pattern in keep if fnmatchcase(_adapted(layer), pattern)), None):
            left[layer] = f"kept by {pattern!r}"
        elif plain_class(child) not in (nn.Linear, nn.Conv2d):
            left[layer] = f"a {type(child).__name__} may compute something else"
        else:
            layers[layer] = child
    return layers, left


def check_rules(module: nn.Module, bits: int, keep: Collection[str], name: str, rules: Collection[Rule]) -> None:
    """Raise NothingMatched for a rule that would change nothing in this module."""
    layers, left = convertible(module, keep)
    by_layer.check(rules, f"int{bits}", [*map(_adapted, layers)], [*map(_adapted, left)], name)


def check_finite(module: nn.Module, keep: Collection[str], name: str) -> None:
    """Raise BadInput, naming the layer, for weights that `convert` would refuse. Changes nothing."""
    for layer, child in convertible(module, keep)[0].items():
        try:
            check_weights(child.weight)
        except BadInput as error:
            raise BadInput(f"{name}.{layer}: {error.problem}", error.remedy) from error


def _adapted(layer: str) -> str:
    """A layer's own name, where an adapter wraps it too: patterns are of the model, whatever was loaded into it."""
    return layer.removesuffix(f".{anatomy.ADAPTED}")


def keep_pictures_apart(module: nn.Module) -> None:
    """Compute what is left of Linear and Conv2d layers for one picture after the other, on the CPU.

    There the last bits of a product depend on how many rows it has. That is nothing by itself, but the quantized layers
    round: one bit can make another integer, and some layers later the picture is another by as much as quantization
    changes it at all.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not isinstance(layer, QuantizedLayer):
            interpose(layer, OneByOne())


class OneByOne:
    """Before the calls of a Linear or Conv2d layer: each picture of a batch in a call of its own."""

    replayable = True  # it decides by shapes alone

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Tensor:
        x: Any = next(iter((*args, *kwargs.values())), None)
        dimensions = 4 if isinstance(call.module, nn.Conv2d) else 2  # with fewer it is no batch
        is_batch = isinstance(x, Tensor) and x.device.type == "cpu" and x.ndim >= dimensions and len(x) > 1
        if not is_batch or len(args) + len(kwargs) > 1:
            return call(*args, **kwargs)
        return torch.cat([call(one) for one in x.split(1)])


def keep_others_right(module: nn.Module) -> None:
    """Others' methods that read the weights of all layers, so that what they make of quantized ones is right."""
    module.save_pretrained = SavedPlain(module)  # type: ignore[assignment]
    module.state_dict = Described(module)  # type: ignore[method-assign]
    if hasattr(type(module), "fuse_qkv_projections"):
        module.fuse_qkv_projections = FusedQuantized(module)  # type: ignore[assignment]


class SavedPlain:
    """In place of `save_pretrained`: writes the weights as numbers of the layers' type, a folder as any other.

    It loads without this library, and no smaller than before: `optsd.quantization.save` keeps the integers.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.whole = module, module.save_pretrained
        self.__signature__ = inspect.signature(self.whole)  # pipelines look what it takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layers = [layer for layer in self.module.modules() if isinstance(layer, QuantizedLayer)]
        for layer in layers:
            layer.saves_plain = True
        try:
            return self.whole(*args, **kwargs)
        finally:
            for layer in layers:
                layer.saves_plain = False


class Described:
    """In place of `state_dict`: gives a dictionary of which one may also ask a quantized layer's weight by name.

    diffusers does, to learn a layer's shape before it loads a LoRA for FLUX.1. What is saved or counted is as it was.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.whole = module, module.state_dict

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self.whole(*args, **kwargs)
        if args or kwargs.get("destination") is not None:
            return found
        known = WithWeights(found)
        known.module, known._metadata = self.module, found._metadata  # torch's, with the versions of layers
        return known


class WithWeights(OrderedDict[str, Tensor]):
    """A state dictionary that computes the weights of quantized layers where it is asked for one. A copy does not."""

    module: nn.Module | None = None
    _metadata: Any = None

    def __reduce__(self) -> Any:
        return OrderedDict, (list(self.items()),)

    def __missing__(self, name: str) -> Tensor:
        place, _, kind = name.rpartition(".")
        for layer in (place, f"{place}.{anatomy.ADAPTED}"):
            try:
                found = self.module.get_submodule(layer) if self.module is not None else None
            except AttributeError:
                continue
            if kind == "weight" and isinstance(found, QuantizedLayer):
                return cast("Tensor", found.weight)
        raise KeyError(name)


class FusedQuantized:
    """In place of `fuse_qkv_projections`: the layers that diffusers makes of quantized ones are quantized again.

    Their weights are integers times the scale of each output already, so of INT8 they become the same integers. Of
    layers of several precisions they get the highest, and stay in high precision where one of them is.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.whole = module, module.fuse_qkv_projections

    def __call__(self) -> None:
        self.whole()
        for attention in list(self.module.modules()):
            for name, parts in anatomy.FUSED_PROJECTIONS.items():
                layer: Any = getattr(attention, name, None)
                origins = [getattr(attention, part, None) for part in parts]
                known = [origin for origin in origins if isinstance(origin, QuantizedLayer)]
                if plain_class(layer) is nn.Linear and len(known) == len(origins):
                    best = max(known, key=lambda origin: origin.bits)
                    setattr(attention, name, quantize_layer(layer, best.bits, best.group_size, best.asked))

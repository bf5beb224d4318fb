"""Query, key and value in one matrix product; of cross-attention key and value, which share their input.

The layers stay what they are, under their names: only their weights lie one after the other in memory, so that one
product over the whole piece gives what three would. Whatever puts a layer or its weights elsewhere (an adapter,
quantization, another type or device) is met by three products, or by laying the weights together again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optsd import anatomy
from optsd.calls import Call
from optsd.errors import Unsupported
from optsd.patching import Interposed, Patch, Pipeline, Stage
from optsd.state import LastPrompt


@dataclass(frozen=True)
class JoinedProjections:
    """Lay the weights of each attention layer's projections together, for the processors that make use of it.

    Only plain ones do. A transformer's joint attention normalizes each projection by itself: none is joined, and the
    proof says so.
    """

    name: str = "flash-enhanced (projections)"
    exact: bool = True
    stage: Stage = Stage.STRUCTURE
    slot: str = "projections"

    def check(self, pipe: Pipeline) -> None:
        if any(anatomy.has_fused_processor(layer) for _, layer in anatomy.attentions(pipe)):
            raise Unsupported(f"{self.name}: diffusers has fused them already", "choose flash, or unfuse them first")

    def apply(self, pipe: Pipeline) -> Patch:
        root, prefix = anatomy.denoiser(pipe), anatomy.denoiser_name(pipe)
        layers = dict(self._layers(pipe))
        together = Together(root, [name.removeprefix(f"{prefix}.") for name in layers])
        together.lay()
        return Patch(self.name, tuple(layers), together.proof, (Interposed(root, "", together), together))

    def _layers(self, pipe: Pipeline) -> Iterator[tuple[str, Any]]:
        return (each for each in anatomy.attentions(pipe) if anatomy.has_plain_processor(each[1]))


class Together:
    """Before the denoiser's calls: lays the weights together, again for each prompt, as others may have moved them."""

    def __init__(self, root: nn.Module, places: list[str]) -> None:
        self.root, self.places, self.prompt = root, places, LastPrompt()

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        if self.prompt.is_new(anatomy.argument(call.module, anatomy.TEXT, args, kwargs)):
            self.lay()
        return call(*args, **kwargs)

    def lay(self) -> None:
        for layer in self._layers():
            lay_together(layer)

    def holds(self) -> bool:
        return True

    def revert(self) -> None:
        """Give each layer weights of its own again."""
        for layer in self._layers():
            if (group := projections(layer)) and lie_together(group):
                for parameter in (parameter for each in group for parameter in each.parameters()):
                    parameter.data = parameter.data.clone()

    def proof(self) -> dict[str, Any]:
        """`joined_projections` counts the layers whose projections are one product now."""
        plain = [layer for layer in self._layers() if anatomy.has_plain_processor(layer)]
        joined = [layer for layer in plain if (group := projections(layer)) and lie_together(group)]
        counts: dict[str, Any] = {
            "joined_projections": len(joined),
            "separate_projections": len(self.places) - len(joined),
        }
        return counts if self.places else counts | {"projections_left": "no attention layer has a plain processor"}

    def _layers(self) -> list[Any]:
        return [layer for place in self.places for layer in anatomy.at(self.root, place)[-1:]]


def projections(attention: Any) -> list[nn.Linear]:
    """The layers of an attention layer that read the same input, if all of them are plain: else none."""
    names = ("to_k", "to_v") if anatomy.is_cross(attention) else ("to_q", "to_k", "to_v")
    layers: list[Any] = [getattr(attention, name, None) for name in names]
    if not all(map(_is_plain, layers)) or any(layer.weight.is_meta for layer in layers):
        return []  # adapted, quantized, hooked, or offloaded for the moment
    return layers if len({layer.bias is None for layer in layers}) == 1 else []


def _is_plain(layer: Any) -> bool:
    """Whether a call of it is a product with its weight and nothing else: no hook, and no `forward` of its own."""
    hooked = layer is not None and (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))
    return type(layer) is nn.Linear and not hooked


def lay_together(attention: Any) -> None:
    """Give the projections' weights, and their biases, one piece of memory each."""
    group = projections(attention)
    if not group or lie_together(group):
        return
    rows = [layer.out_features for layer in group]
    for kind in ("weight", "bias") if group[0].bias is not None else ("weight",):
        piece = torch.cat([getattr(layer, kind).data for layer in group])
        for layer, part in zip(group, piece.split(rows), strict=True):
            getattr(layer, kind).data = part


def lie_together(layers: list[nn.Linear]) -> bool:
    """Whether each one's weight begins, in the same memory, where the one before it ends."""
    kinds = ("weight", "bias") if layers[0].bias is not None else ("weight",)
    return all(
        _follows(getattr(before, kind), getattr(after, kind)) for kind in kinds for before, after in pairwise(layers)
    )


def _follows(before: Tensor, after: Tensor) -> bool:
    return bool(
        before.untyped_storage()._cdata == after.untyped_storage()._cdata
        and before.storage_offset() + before.numel() == after.storage_offset()
        and before.is_contiguous()
        and after.is_contiguous()
    )


def project_together(x: Tensor, layers: list[Any]) -> tuple[Tensor, ...]:
    """What each layer gives for x, B×N×width to B×N×outputs: in one product where their weights lie together."""
    # A gradient would reach the first layer's weight alone.
    if not all(map(_is_plain, layers)) or torch.is_grad_enabled() or anatomy.is_compiling() or not lie_together(layers):
        return tuple(layer(x) for layer in layers)
    first, rows = layers[0], [layer.out_features for layer in layers]
    size = (sum(rows), first.in_features)
    weight = first.weight.as_strided(size, (first.in_features, 1))
    bias = None if first.bias is None else first.bias.as_strided(size[:1], (1,))
    return functional.linear(x, weight, bias).split(rows, dim=-1)

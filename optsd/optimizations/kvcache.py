"""The keys and values of the text, computed once a pipeline call and used in every denoising step."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from optsd.errors import NothingMatched, Unsupported
from optsd.optimizations.attention import attentions, check_attention
from optsd.optimizations.state import PerPrompt, Tally
from optsd.patching import Patch, Pipeline, Stage, in_reverse, replace_attribute


@dataclass(frozen=True)
class KVCache:
    """Keep what the text projections of cross-attention return for as long as the text embeddings live.

    The text does not change between steps, so its keys and values do not either: with S steps, S - 1 of S computations
    are spared, to the bit. In SD v1.5 they are 0.37 % of the UNet's multiplications, so expect no more than that.
    """

    name: str = "kvcache"
    exact: bool = True
    stage: Stage = Stage.REUSE
    slot: str = "text keys and values"

    def check(self, pipe: Pipeline) -> None:
        check_attention(pipe, self.name)
        if getattr(pipe.unet, "encoder_hid_proj", None) is not None:
            raise Unsupported(
                "kvcache: this UNet projects the text anew in every step, so no tensor lives as long as the call",
                "leave kvcache out",
            )
        for name, attention in _cross_attentions(pipe):
            if attention.norm_cross is not None:
                raise Unsupported(
                    f"kvcache: {name} normalizes the text anew in every step, so no tensor lives as long as the call",
                    "leave kvcache out",
                )

    def apply(self, pipe: Pipeline) -> Patch:
        store, tally = PerPrompt(), Tally()
        layers = {
            f"{name}.{projection}": layer
            for name, attention in _cross_attentions(pipe)
            for projection, layer in _text(attention)
        }
        if not layers:
            raise NothingMatched("kvcache found no cross-attention in the UNet", "choose a model that is told a text")
        restores = [
            replace_attribute(layer, "forward", CachedText(layer, store, tally).forward) for layer in layers.values()
        ]

        def read_proof() -> dict[str, Any]:
            return {"text_layers": len(layers), "text_computed": tally["computed"], "text_reused": tally["reused"]}

        return Patch(self.name, tuple(layers), read_proof, in_reverse(restores))


class CachedText:
    """One text projection's `forward`, remembered for each prompt.

    It takes the place of the method, not of the module: names, weights and `state_dict` stay what they were, and any
    layer (quantized, with a LoRA around it) and any attention processor can be used.
    """

    def __init__(self, layer: nn.Module, store: PerPrompt, tally: Tally) -> None:
        self.layer, self.store, self.tally = layer, store, tally
        self.compute = layer.forward

    @torch.compiler.disable
    def forward(self, text: Tensor) -> Tensor:
        """B×tokens×width -> B×tokens×(heads·d), the very tensor of the first step."""
        if torch.is_grad_enabled():  # training: each pass needs its own graph
            return self.compute(text)
        known = self.store.of(text)
        weights = self._weights()
        entry = known.get(self)
        if entry is None or not _same(entry[0], weights):
            # Two threads with one prompt may both come here; they compute the same.
            entry = known[self] = (weights, self.compute(text))
            self.tally.add("computed")
        else:
            self.tally.add("reused")
        return entry[1]

    def _weights(self) -> list[tuple[Tensor, int]]:
        """The layer's tensors and their versions: weights that are loaded in mid-run make what was kept worthless."""
        tensors = (*self.layer._parameters.values(), *self.layer._buffers.values())
        return [(each, 0 if each.is_inference() else each._version) for each in tensors if each is not None]


def _same(seen: list[tuple[Tensor, int]], now: list[tuple[Tensor, int]]) -> bool:
    return len(seen) == len(now) and all(a is b and m == n for (a, m), (b, n) in zip(seen, now, strict=True))


def _cross_attentions(pipe: Pipeline) -> list[tuple[str, Attention]]:
    return [(name, attention) for name, attention in attentions(pipe) if attention.is_cross_attention]


def _text(attention: Attention) -> list[tuple[str, nn.Module]]:
    """The projections that read the text: one if keys and values were joined, else two."""
    found = ((name, getattr(attention, name, None)) for name in ("to_kv", "to_k", "to_v"))
    return [(name, layer) for name, layer in found if layer is not None]

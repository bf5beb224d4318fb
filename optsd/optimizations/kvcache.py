"""The keys and values of the text, computed once a pipeline call and used in every denoising step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optsd import anatomy
from optsd.calls import Call, interpose, parts, withdraw
from optsd.errors import NothingMatched, Unsupported
from optsd.optimizations.attention import check_attention
from optsd.patching import Interposed, Patch, Pipeline, Stage
from optsd.state import LastPrompt, PerPrompt, Tally


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
        anatomy.check_unet(pipe, self.name, "as transformers make the text anew in every step")
        check_attention(pipe, self.name)
        unet = anatomy.denoiser(pipe)
        if anatomy.projects_text(unet):
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
        root, prefix = anatomy.denoiser(pipe), anatomy.denoiser_name(pipe)
        texts = Texts(root, [name.removeprefix(f"{prefix}.") for name, _ in _cross_attentions(pipe)])
        touched = tuple(f"{prefix}.{place}" for place in texts.layers())
        if not touched:
            raise NothingMatched("kvcache found no cross-attention in the UNet", "choose a model that is told a text")
        texts.cover()
        return Patch(self.name, touched, texts.proof, (Interposed(root, "", texts), texts))


class Texts:
    """Before the denoiser's calls: sees to it that the projections of the text are cached.

    Others may have put new ones there since the last prompt, as diffusers does when it fuses projections.
    """

    keeps_text = True  # the tensor itself is the key: `graph` must not put another one in its place
    features: Tensor | None = None

    def __init__(self, root: nn.Module, attentions: list[str]) -> None:
        self.root, self.attentions = root, attentions
        self.cached, self.prompt = CachedText(), LastPrompt()

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        if self.prompt.is_new(anatomy.argument(call.module, anatomy.TEXT, args, kwargs)):
            self.cover()
        return call(*args, **kwargs)

    def kind(self, text: Tensor | None) -> Any:
        """For `graph`: a step is recorded anew for each text, which the recording keeps alive."""
        if text is None or text.is_inference():  # whose changes in place nothing counts
            return object()
        return id(text), text._version

    def layers(self) -> dict[str, nn.Module]:
        """The layers that read the text now, by place; of an adapted one, the layer inside the adapters."""
        places = [
            f"{place}.{name}"
            for place in self.attentions
            for attention in anatomy.at(self.root, place)[:1]
            for name in anatomy.text_projections(attention)
        ]
        return {place: found[-1] for place in places if (found := anatomy.at(self.root, place))}

    def cover(self) -> None:
        for layer in self.layers().values():
            if self.cached not in parts(layer):
                interpose(layer, self.cached)

    def holds(self) -> bool:
        return all(self.cached in parts(layer) for layer in self.layers().values())

    def revert(self) -> None:
        for module in list(self.root.modules()):
            withdraw(module, self.cached)

    def proof(self) -> dict[str, Any]:
        tally = self.cached.tally
        return {
            "text_layers": len(self.layers()),
            "text_computed": tally["computed"],
            "text_reused": tally["reused"],
        }


class CachedText:
    """Before the text projections' calls: what each gave is remembered for each prompt.

    Names, weights and `state_dict` stay what they were, and any layer (quantized, with a LoRA around it) and any
    attention processor can be used. Of an adapted layer the layer itself is cached; the adapter computes in every step.
    """

    replayable = True  # `Texts.kind` tells

    def __init__(self) -> None:
        self.store, self.tally = PerPrompt(), Tally()

    @torch.compiler.disable
    def __call__(self, call: Call, text: Tensor) -> Tensor:
        """B×tokens×width -> B×tokens×(heads·d), the very tensor of the first step."""
        if torch.is_grad_enabled():  # training: each pass needs its own graph
            return call(text)
        known = self.store.of(text)
        weights = _weights(call.module)
        entry = known.get(call.module)
        if entry is None or not _same(entry[0], weights):
            # Two threads with one prompt may both come here; they compute the same.
            entry = known[call.module] = (weights, call(text))
            self.tally.add("computed")
        else:
            self.tally.add("reused")
        return entry[1]


def _weights(layer: nn.Module) -> list[tuple[Tensor | None, int]]:
    """The layer's tensors and their versions: weights that are loaded in mid-run make what was kept worthless.

    One that lies on no device is offloaded: it is another tensor in every step, of the same weights.
    """
    tensors = (*layer._parameters.values(), *layer._buffers.values())
    return [
        (None, 0) if each.is_meta else (each, 0 if each.is_inference() else each._version)
        for each in tensors
        if each is not None
    ]


def _same(seen: list[tuple[Tensor | None, int]], now: list[tuple[Tensor | None, int]]) -> bool:
    return len(seen) == len(now) and all(a is b and m == n for (a, m), (b, n) in zip(seen, now, strict=True))


def _cross_attentions(pipe: Pipeline) -> list[tuple[str, Any]]:
    return [(name, layer) for name, layer in anatomy.attentions(pipe) if anatomy.is_cross(layer)]

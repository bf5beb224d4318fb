"""The guide's "enhanced pipeline with error handling" and its memory settings, on top of flash attention.

`flash-enhanced` is four techniques that are applied at their own stages, so that quantization meets the joined
projections, and everything else meets the retries last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from optsd.errors import NothingMatched, Unsupported
from optsd.optimizations import kernels
from optsd.optimizations.attention import (
    FLASH_KERNELS,
    KernelProcessor,
    attentions,
    check_attention,
    check_unet,
    is_out_of_memory,
    set_processor,
)
from optsd.optimizations.state import PerPrompt, Tally
from optsd.patching import Optimization, Patch, Pipeline, Stage, in_reverse, replace_attribute

FALLBACKS = (*FLASH_KERNELS, kernels.MemoryEfficient(), kernels.Plain())
"""The declared order: flash-attn, CPU flash, SDPA flash, memory-efficient, eager."""


def flash_enhanced() -> tuple[Optimization, ...]:
    """What the name `flash-enhanced` stands for."""
    return JoinedProjections(), FlashOrNext(), SlicedDecoding(), HalvedBatch()


@dataclass(frozen=True)
class JoinedProjections:
    """Query, key and value in one matrix product; of cross-attention, key and value, which share their input."""

    name: str = "flash-enhanced (projections)"
    exact: bool = True
    stage: Stage = Stage.STRUCTURE
    slot: str = "projections"

    def check(self, pipe: Pipeline) -> None:
        check_attention(pipe, self.name)

    def apply(self, pipe: Pipeline) -> Patch:
        restores, touched = [], []
        for name, attention in attentions(pipe):
            separate = ("to_k", "to_v") if attention.is_cross_attention else ("to_q", "to_k", "to_v")
            layers = [getattr(attention, each) for each in separate]
            # Another class (quantized, with a LoRA around it) has weights that cannot be joined row by row.
            if all(type(layer) is nn.Linear for layer in layers):
                restores.append(_join(attention, separate, layers))
                touched.append(name)
        if not touched:
            raise NothingMatched(f"{self.name} found no plain projections in the UNet", "apply it before quantizing")
        return Patch(self.name, tuple(touched), lambda: {"joined_projections": len(touched)}, in_reverse(restores))


def _join(attention: Attention, separate: tuple[str, ...], layers: list[nn.Linear]) -> Callable[[], None]:
    """Stack the layers' rows in one Linear. They are put aside as views of it, so that weights are held once."""
    joined = "to_kv" if len(layers) == 2 else "to_qkv"
    first = layers[0].weight
    rows = [layer.out_features for layer in layers]
    with torch.device("meta"):
        linear = nn.Linear(layers[0].in_features, sum(rows), bias=layers[0].bias is not None)
    for kind in ("weight", "bias") if linear.bias is not None else ("weight",):
        stacked = torch.cat([getattr(layer, kind).data for layer in layers])
        setattr(linear, kind, nn.Parameter(stacked, requires_grad=first.requires_grad))
        for layer, part in zip(layers, stacked.split(rows), strict=True):
            getattr(layer, kind).data = part
    linear.train(attention.training)
    setattr(attention, joined, linear)
    for name in separate:
        setattr(attention, name, None)

    def restore() -> None:
        for name, layer in zip(separate, layers, strict=True):
            for parameter in layer.parameters():
                # A copy of its own again: tensors that share storage cannot be saved as safetensors.
                parameter.data = parameter.data.clone()
            setattr(attention, name, layer)
        delattr(attention, joined)

    return restore


@dataclass(frozen=True)
class FlashOrNext:
    """Flash attention where it can run, else the next kernel of `FALLBACKS`; the reason is in the proof."""

    name: str = "flash-enhanced"
    exact: bool = True
    stage: Stage = Stage.ATTENTION
    slot: str = "attention"

    def check(self, pipe: Pipeline) -> None:
        check_attention(pipe, self.name)

    def apply(self, pipe: Pipeline) -> Patch:
        processor = KernelProcessor(FALLBACKS, recover=True)
        return set_processor(pipe, self.name, processor, processor.proof)


@dataclass(frozen=True)
class SlicedDecoding:
    """Decode one image at a time, and in overlapping tiles only after memory ran out: tiles change the picture."""

    name: str = "flash-enhanced (decoding)"
    exact: bool = True
    stage: Stage = Stage.RUNTIME
    slot: str = "decoding"

    def check(self, pipe: Pipeline) -> None:
        if not hasattr(getattr(pipe, "vae", None), "use_tiling"):
            raise Unsupported(f"{self.name} needs a VAE that can work in slices and tiles", "use AutoencoderKL")

    def apply(self, pipe: Pipeline) -> Patch:
        vae = pipe.vae
        was_slicing, was_tiling = vae.use_slicing, vae.use_tiling
        tally = Tally()
        vae.enable_slicing()
        undo = replace_attribute(vae, "decode", _TiledRetry(vae, tally).decode)

        def read_proof() -> dict[str, Any]:
            return {"vae_slicing": vae.use_slicing, "vae_tiled_retries": tally["retries"]}

        def restore() -> None:
            undo()
            vae.use_slicing, vae.use_tiling = was_slicing, was_tiling

        return Patch(self.name, ("vae",), read_proof, restore)


class _TiledRetry:
    def __init__(self, vae: Any, tally: Tally) -> None:
        self.vae, self.tally = vae, tally
        self.whole = vae.decode

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.whole(*args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error) or self.vae.use_tiling:
                raise
        # Outside the handler, whose traceback holds the failed attempt's tensors.
        self.tally.add("retries")
        self.vae.enable_tiling()
        _release_memory()
        return self.whole(*args, **kwargs)


@dataclass(frozen=True)
class HalvedBatch:
    """When memory runs out in the UNet, the batch is halved and the step tried again, down to one latent.

    The images are those of the smaller batch: no step that was done is lost, and none is done with other noise.
    """

    name: str = "flash-enhanced (batch)"
    exact: bool = True
    stage: Stage = Stage.RUNTIME
    slot: str = "batch"

    def check(self, pipe: Pipeline) -> None:
        check_unet(pipe, self.name)

    def apply(self, pipe: Pipeline) -> Patch:
        halving = _Halving(pipe.unet)
        undo = replace_attribute(pipe.unet, "forward", halving.forward)
        return Patch(self.name, ("unet",), halving.proof, undo)


class _Halving:
    """The UNet's `forward` in as many equal parts as memory needs."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet
        self.whole = unet.forward
        self.tally = Tally()
        self.parts = PerPrompt()
        self.largest: dict[tuple[int, ...], int] = {}  # shape of one latent -> batch that fitted after a failure

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        batch, shape = len(sample), tuple(sample.shape[1:])
        while True:
            size = min(batch, self.largest.get(shape, batch))
            try:
                # Arguments are rebuilt for each attempt: the UNet takes lists of residuals apart.
                outputs = [
                    self.whole(
                        sample[start : start + size],
                        _rows(timestep, batch, start, size),
                        self._text(encoder_hidden_states, batch, start, size),
                        *_rows(args, batch, start, size),
                        **_rows(kwargs, batch, start, size),
                    )
                    for start in range(0, batch, size)
                ]
            except RuntimeError as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
            else:
                return outputs[0] if len(outputs) == 1 else _concatenated(outputs)
            self.largest[shape] = (size + 1) // 2
            self.tally.add("retries")
            _release_memory()

    def _text(self, text: Tensor, batch: int, start: int, size: int) -> Tensor:
        """The same tensor for the same rows in every step, as a cache of the text's keys needs it.

        A copy, as a view would keep the whole alive, and with it this entry.
        """
        if size >= batch:
            return text
        kept = self.parts.of(text)
        if (start, size) not in kept:
            kept[start, size] = text[start : start + size].clone()
        return kept[start, size]

    def proof(self) -> dict[str, Any]:
        """`batch_retries` counts the halvings; `batch_limits` says which batch fitted then, by latent shape."""
        limits = {"×".join(map(str, shape)): size for shape, size in self.largest.items()}
        return {"batch_retries": self.tally["retries"]} | ({"batch_limits": limits} if limits else {})


def _rows(value: Any, batch: int, start: int, size: int) -> Any:
    """Rows `start` to `start + size` of everything in `value` that has one row a latent."""
    if isinstance(value, Tensor):
        return value[start : start + size] if value.ndim and len(value) == batch and size < batch else value
    if isinstance(value, dict):
        return {key: _rows(each, batch, start, size) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rows(each, batch, start, size) for each in value)
    return value


def _concatenated(outputs: list[Any]) -> Any:
    """One UNet output of many: a tuple, or diffusers' output class with one field."""
    joined = torch.cat([output[0] for output in outputs])
    return (joined,) if isinstance(outputs[0], tuple) else type(outputs[0])(sample=joined)


def _release_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

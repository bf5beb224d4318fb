"""The guide's "enhanced pipeline with error handling" and its memory settings, on top of flash attention.

`flash-enhanced` is four techniques that are applied at their own stages, so that quantization meets the joined
projections, and everything else meets the retries last.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optsd import anatomy
from optsd.calls import Call
from optsd.errors import Unsupported
from optsd.optimizations import kernels
from optsd.optimizations.attention import (
    FLASH_KERNELS,
    Attend,
    FirstOf,
    KernelProcessor,
    before_attention,
    check_attention,
    is_out_of_memory,
)
from optsd.optimizations.projections import JoinedProjections
from optsd.patching import Interposed, Optimization, Patch, Pipeline, Replaced, Stage
from optsd.state import PerPrompt, Tally

FALLBACKS = (*FLASH_KERNELS, kernels.MemoryEfficient(), kernels.Plain())
"""The declared order: flash-attn, CPU flash, SDPA flash, memory-efficient, eager."""


def flash_enhanced() -> tuple[Optimization, ...]:
    """What the name `flash-enhanced` stands for."""
    return JoinedProjections(), FlashOrNext(), SlicedDecoding(), HalvedBatch()


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
        kernel = FirstOf(FALLBACKS, recover=True)
        return before_attention(pipe, self.name, Attend(KernelProcessor(kernel), kernel))


@dataclass(frozen=True)
class SlicedDecoding:
    """Decode one image at a time, and in overlapping tiles only after memory ran out: tiles change the picture."""

    name: str = "flash-enhanced (decoding)"
    exact: bool = True
    stage: Stage = Stage.RUNTIME
    slot: str = "decoding"

    def check(self, pipe: Pipeline) -> None:
        if not hasattr(anatomy.decoder(pipe), "decode"):
            raise Unsupported(f"{self.name} needs a VAE, and {type(pipe).__name__} has none", "choose flash")

    def apply(self, pipe: Pipeline) -> Patch:
        vae = anatomy.decoder(pipe)
        decode = _Sliced(vae)
        return Patch(self.name, (anatomy.DECODER,), decode.proof, (Replaced(vae, "decode", decode), decode))


class _Sliced:
    """The VAE's `decode`, one latent at a time: a method that pipelines call, so it is replaced on the instance."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.tally = vae, Tally()
        self.whole = vae.decode
        self.tiles = False  # whether it was this that turned tiling on

    def __call__(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.tally.add("decoded")
        outputs = [self._decode(each, *args, **kwargs) for each in z.split(1)]
        return outputs[0] if len(outputs) == 1 else _concatenated(outputs)

    def _decode(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.whole(*args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error) or getattr(self.vae, "use_tiling", True):  # or it has no tiles
                raise
        # Outside the handler, whose traceback holds the failed attempt's tensors.
        self.tally.add("retries")
        self.vae.enable_tiling()
        self.tiles = True
        _release_memory()
        return self.whole(*args, **kwargs)

    def holds(self) -> bool:
        return True

    def revert(self) -> None:
        if self.tiles:
            self.vae.disable_tiling()

    def proof(self) -> dict[str, Any]:
        return {"vae_slicing": True, "vae_tiled_retries": self.tally["retries"]}


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
        anatomy.denoiser(pipe)

    def apply(self, pipe: Pipeline) -> Patch:
        halving = _Halving()
        change = Interposed(anatomy.denoiser(pipe), "", halving)
        return Patch(self.name, (anatomy.denoiser_name(pipe),), halving.proof, (change,))


class _Halving:
    """Before the denoiser's calls: makes them in as many equal parts as memory needs."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.parts = PerPrompt()
        self.largest: dict[tuple[int, ...], int] = {}  # shape of one latent -> batch that fitted after a failure

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        sample, text = (anatomy.argument(call.module, names, args, kwargs) for names in (anatomy.SAMPLE, anatomy.TEXT))
        batch, shape = len(sample), tuple(sample.shape[1:])

        def part(value: Any, start: int, size: int) -> Any:
            return self._text(text, batch, start, size) if value is text else _rows(value, batch, start, size)

        while True:
            size = min(batch, self.largest.get(shape, batch))
            try:
                # Arguments are rebuilt for each attempt: the UNet takes lists of residuals apart.
                outputs = [
                    call(
                        *(part(value, start, size) for value in args),
                        **{
                            name: value if name in anatomy.POSITIONS else part(value, start, size)
                            for name, value in kwargs.items()
                        },
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

    def _text(self, text: Any, batch: int, start: int, size: int) -> Tensor:
        """The same tensor for the same rows in every step, as a cache of the text's keys needs it.

        A copy, as a view would keep the whole alive, and with it this entry.
        """
        if size >= batch or text is None:
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

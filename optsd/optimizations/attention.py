"""How the UNet computes attention: diffusers' eager processor, its default one, or a flash kernel by name.

These touch the UNet only. The guide's figures are those of the UNet's attention, and the VAE's single attention layer,
one call an image, stays as diffusers loads it in every variant.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models import attention_processor as processors
from diffusers.models.attention_processor import Attention
from torch import Tensor

from optsd.errors import NothingMatched, Unsupported
from optsd.optimizations import kernels
from optsd.optimizations.kernels import Kernel
from optsd.optimizations.state import Tally
from optsd.patching import Patch, Pipeline, Stage, in_reverse


@dataclass(frozen=True)
class Eager:
    """The guide's baseline: diffusers' `AttnProcessor`, which builds the whole score matrix."""

    name: str = "eager"
    exact: bool = True
    stage: Stage = Stage.ATTENTION
    slot: str = "attention"

    def check(self, pipe: Pipeline) -> None:
        check_attention(pipe, self.name)

    def apply(self, pipe: Pipeline) -> Patch:
        tally = Tally()
        return set_processor(pipe, self.name, CountedEager(tally), lambda: _calls("eager softmax(QKᵀ)V", tally))


@dataclass(frozen=True)
class Sdpa:
    """Today's default of diffusers: `AttnProcessor2_0`, which leaves the choice of the kernel to torch."""

    name: str = "sdpa"
    exact: bool = True
    stage: Stage = Stage.ATTENTION
    slot: str = "attention"

    def check(self, pipe: Pipeline) -> None:
        check_attention(pipe, self.name)

    def apply(self, pipe: Pipeline) -> Patch:
        tally = Tally()
        return set_processor(pipe, self.name, CountedSdpa(tally), lambda: _calls("torch's choice", tally))


@dataclass(frozen=True)
class Flash:
    """Attention through a flash kernel (Dao et al., 2022), which never builds the score matrix, or an error.

    The `flash-attn` package serves where it is installed and the GPU can run it, torch's own flash kernel elsewhere,
    on the CPU too. Attention that neither can serve raises `Unsupported`, when it is applied or when it runs.
    """

    name: str = "flash"
    exact: bool = True
    stage: Stage = Stage.ATTENTION
    slot: str = "attention"

    def check(self, pipe: Pipeline) -> None:
        check_attention(pipe, self.name)
        for layer, attention in attentions(pipe):
            width = attention.inner_dim // attention.heads
            reasons = {
                kernel.name: kernel.refusal(pipe.unet.device, pipe.unet.dtype, width, masked=False)
                for kernel in FLASH_KERNELS
            }
            if all(reasons.values()):
                raise Unsupported(f"flash cannot serve {layer}: {_listed(reasons)}", FLASH_REMEDY)

    def apply(self, pipe: Pipeline) -> Patch:
        processor = KernelProcessor(FLASH_KERNELS)
        return set_processor(pipe, self.name, processor, processor.proof)


FLASH_KERNELS: tuple[Kernel, ...] = (kernels.FlashAttnPackage(), kernels.CpuFlash(), kernels.Flash())
FLASH_REMEDY = "use float16 or bfloat16 on a GPU of compute capability 8.0, or choose sdpa or flash-enhanced"


class _Counted:
    """In front of one of diffusers' own processors: counts its calls."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally

    def __call__(  # diffusers reads these names
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        self.tally.add("calls")
        whole: Any = super()
        return whole.__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)


class CountedEager(_Counted, processors.AttnProcessor):
    """diffusers' own eager processor, counted."""


class CountedSdpa(_Counted, processors.AttnProcessor2_0):
    """diffusers' own default processor, counted."""


class KernelProcessor:
    """A diffusers attention processor that runs the first of its kernels that can serve the tensors.

    With `recover`, a kernel that fails when it is launched is left out from then on; without, its error is the
    user's to see. Every kernel that was passed over is in `proof()`, with the reason.
    """

    def __init__(self, order: tuple[Kernel, ...], recover: bool = False) -> None:
        self.order, self.recover = order, recover
        self.tally = Tally()
        self.passed_over: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        is_image = hidden_states.ndim == 4
        if is_image:
            batch, channels, height, width = hidden_states.shape
            hidden_states = hidden_states.view(batch, channels, height * width).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is not None and attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)

        # B×N×(heads·d) -> B×heads×N×d
        query, key, value = (
            tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for tensor in project(attn, hidden_states, encoder_hidden_states)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if attention_mask is not None:
            batch, _, length, _ = key.shape
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])

        hidden_states = self.attend(query, key, value, attention_mask, attn.scale)
        hidden_states = hidden_states.transpose(1, 2).flatten(2)

        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        if is_image:
            hidden_states = hidden_states.transpose(-1, -2).reshape(batch, channels, height, width)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        factor = attn.rescale_output_factor
        return hidden_states if factor == 1 else hidden_states / factor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """B×heads×N×d by the first kernel of the order that serves. Raises Unsupported when none does."""
        reasons: dict[str, str] = {}
        for kernel in self.order:
            reason = self.failed.get(kernel.name) or kernel.refusal(
                query.device, query.dtype, query.shape[-1], mask is not None
            )
            if not reason:
                try:
                    attended = kernel(query, key, value, mask, scale)
                except RuntimeError as error:
                    if not self.recover or is_out_of_memory(error):
                        raise
                    reason = self.failed[kernel.name] = f"it failed: {str(error).splitlines()[0]}"
                else:
                    if reasons.keys() - self.passed_over.keys():
                        self.passed_over.update(reasons)
                    self.tally.add(kernel.operator(query.device))
                    return attended
            reasons[kernel.name] = reason
        raise Unsupported(f"no attention kernel can run: {_listed(reasons)}", FLASH_REMEDY)

    def proof(self) -> dict[str, Any]:
        """`kernel` names the operators that ran, as a profile does, `kernel_calls` counts them."""
        ran = self.tally.counts()
        proof: dict[str, Any] = {"kernel": ", ".join(ran) or "none yet", "kernel_calls": sum(ran.values())}
        return proof | ({"passed_over": dict(self.passed_over)} if self.passed_over else {})


def project(attn: Attention, hidden_states: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, B×N×(heads·d) each, from separate projections or from those that were joined."""
    if text is None:
        if getattr(attn, "to_qkv", None) is not None:
            return attn.to_qkv(hidden_states).chunk(3, dim=-1)
        text = hidden_states
    query = attn.to_q(hidden_states)
    if getattr(attn, "to_kv", None) is not None:
        return query, *attn.to_kv(text).chunk(2, dim=-1)
    return query, attn.to_k(text), attn.to_v(text)


def attentions(pipe: Pipeline) -> Iterator[tuple[str, Attention]]:
    """The UNet's attention layers with their names."""
    for name, module in pipe.unet.named_modules(prefix="unet"):
        if isinstance(module, Attention):
            yield name, module


PLAIN_PROCESSORS = (
    processors.AttnProcessor,
    processors.AttnProcessor2_0,
    processors.SlicedAttnProcessor,
    processors.XFormersAttnProcessor,
    KernelProcessor,
)
"""Processors that compute plain attention: another may take their place without changing the mathematics."""


def check_unet(pipe: Pipeline, technique: str) -> None:
    """Raise Unsupported unless the pipeline has the UNet that all of Stable Diffusion 1, 2 and XL have."""
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, UNet2DConditionModel):
        found = type(unet).__name__ if unet is not None else "none"
        raise Unsupported(
            f"{technique} needs a UNet2DConditionModel, {type(pipe).__name__} has {found}",
            "use a Stable Diffusion 1, 2 or XL pipeline",
        )


def check_attention(pipe: Pipeline, technique: str) -> None:
    """Raise Unsupported unless the pipeline has a UNet whose every attention layer is plain attention."""
    check_unet(pipe, technique)
    for name, attention in attentions(pipe):
        if not isinstance(attention.processor, PLAIN_PROCESSORS) or attention.added_kv_proj_dim is not None:
            raise Unsupported(
                f"{technique} would drop what {type(attention.processor).__name__} does in {name}",
                "unload the adapter that set it first",
            )


def set_processor(pipe: Pipeline, technique: str, processor: Any, read_proof: Callable[[], dict[str, Any]]) -> Patch:
    """Give every attention layer of the UNet this processor. Raises NothingMatched for a UNet without attention."""
    before = [(name, attention, attention.processor) for name, attention in attentions(pipe)]
    if not before:
        raise NothingMatched(f"{technique} found no attention layer in the UNet", "choose a UNet with attention")
    for _, attention, _ in before:
        attention.set_processor(processor)
    restores = [partial(attention.set_processor, original) for _, attention, original in before]
    return Patch(technique, tuple(name for name, _, _ in before), read_proof, in_reverse(restores))


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for CUDA's error, and for those of the CPU's allocator and CUDA's libraries, which have no class."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


OUT_OF_MEMORY = ("DefaultCPUAllocator", "_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def _calls(kernel: str, tally: Tally) -> dict[str, Any]:
    return {"kernel": kernel, "kernel_calls": tally["calls"]}


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

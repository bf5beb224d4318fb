"""How the denoiser computes attention: eagerly, as diffusers does by default, or by a flash kernel by name.

These touch the denoiser only. The guide's figures are those of the UNet's attention, and the VAE's single attention
layer, one call an image, stays as diffusers loads it in every variant.

A technique stands before each attention layer's calls and leaves the layer's processor as it is. So diffusers finds its
own processors wherever it looks for them, and whatever sets others later (slicing, an IP-Adapter, fused projections)
changes what is computed, not with which kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models import attention_processor as processors
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from optsd import anatomy
from optsd.calls import Call
from optsd.errors import NothingMatched, Unsupported
from optsd.optimizations import kernels
from optsd.optimizations.kernels import Kernel
from optsd.optimizations.projections import project_together
from optsd.patching import Interposed, Patch, Pipeline, Stage
from optsd.state import Tally


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
        return before_attention(pipe, self.name, Attend(processors.AttnProcessor(), One(kernels.Plain())))


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
        return before_attention(pipe, self.name, Attend(processors.AttnProcessor2_0(), One(kernels.TorchsChoice())))


@dataclass(frozen=True)
class Flash:
    """Attention through a flash kernel (Dao et al., 2022), which never builds the score matrix, or an error.

    The `flash-attn` package serves where it is installed and the GPU can run it, else cuDNN's on Hopper and torch's own
    elsewhere; on the CPU this project's. Attention that none can serve raises `Unsupported`, when it is applied or when
    it runs.
    """

    name: str = "flash"
    exact: bool = True
    stage: Stage = Stage.ATTENTION
    slot: str = "attention"

    def check(self, pipe: Pipeline) -> None:
        check_kernels(pipe, self.name, FLASH_KERNELS, FLASH_REMEDY)

    def apply(self, pipe: Pipeline) -> Patch:
        kernel = FirstOf(FLASH_KERNELS)
        return before_attention(pipe, self.name, Attend(KernelProcessor(kernel), kernel))


FLASH_KERNELS: tuple[Kernel, ...] = (
    *(kernels.FlashAttnPackage(), kernels.CpuFlash()),
    *(kernels.CudnnFlash(), kernels.Flash()),
)
FLASH_REMEDY = "use float16 or bfloat16 on a GPU of compute capability 8.0, or choose sdpa or flash-enhanced"


class Attend:
    """Before an attention layer's calls: computes what a plain processor of diffusers would, in the technique's way.

    Under any other processor (an IP-Adapter's, fused projections, a transformer's joint attention) what it computes by
    `scaled_dot_product_attention` goes to the technique's kernel. What it computes otherwise is left to it and counted.
    """

    replayable = True

    def __init__(self, plain: Callable[..., Tensor], kernel: "One | FirstOf") -> None:
        self.plain, self.kernel, self.left, self.served = plain, kernel, Tally(), Tally()

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = call.module
        # Where others have put a `forward` of theirs on the instance, there is nothing that could be computed instead.
        if anatomy.has_plain_processor(layer) and "forward" not in vars(layer):
            return call(*args, **kwargs, instead_of_forward=self._plainly)
        before = self.kernel.tally.total
        with _Routed(self.kernel):
            output = call(*args, **kwargs)
        tally = self.left if self.kernel.tally.total == before else self.served
        tally.add(type(layer.processor).__name__)
        return output

    def _plainly(self, layer: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(self.kernel, One):
            self.kernel.tally.add(self.kernel.name)
        return self.plain(layer, *args, **{name: kwargs[name] for name in PASSED_ON if name in kwargs})

    def proof(self) -> dict[str, Any]:
        """`kernel` names what ran, as a profile does, `kernel_calls` counts it; `left_to` names other processors."""
        # One that was served in other calls computed nothing in these: a step cache spared it.
        served = self.served.counts()
        left = {name: calls for name, calls in self.left.counts().items() if name not in served}
        return self.kernel.proof() | ({"left_to": left} if left else {})


PASSED_ON = ("hidden_states", "encoder_hidden_states", "attention_mask", "temb")
"""What a plain processor reads; the rest of a pipeline's `cross_attention_kwargs` is for adapters."""


class _Routed(TorchFunctionMode):
    """While it is open, this thread's calls of `scaled_dot_product_attention` go to a kernel."""

    def __init__(self, kernel: Callable[..., Tensor]) -> None:
        super().__init__()
        self.kernel = kernel

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.scaled_dot_product_attention:
            return self._attend(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _attend(
        self,
        function: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p or is_causal or query.shape[:-2] != key.shape[:-2]:
            return function(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if torch.is_autocast_enabled(query.device.type):  # what it does to the arguments of the function itself
            lower = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(lower), key.to(lower), value.to(lower)
            attn_mask = attn_mask.to(lower) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
        return self.kernel(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)


class One:
    """One kernel, whatever the tensors, and how often it ran."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.name, self.tally = kernel, kernel.name, Tally()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        self.tally.add(self.name)
        return self.kernel(query, key, value, mask, scale)

    def proof(self) -> dict[str, Any]:
        return {"kernel": self.name, "kernel_calls": self.tally.total}


class FirstOf:
    """The first of its kernels that can serve the tensors.

    With `recover`, a kernel that fails when it is launched is left out from then on; without, its error is the
    user's to see. Every kernel that was passed over is in `proof()`, with the reason. `remedy`: for where none serves.
    """

    def __init__(self, order: tuple[Kernel, ...], recover: bool = False, remedy: str | None = None) -> None:
        self.order, self.recover, self.remedy = order, recover, remedy or FLASH_REMEDY
        self.tally = Tally()
        self.passed_over: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.chosen: dict[tuple[torch.device, torch.dtype, int, bool], Kernel] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """B×heads×N×d by the first kernel of the order that serves. Raises Unsupported when none does."""
        kind = query.device, query.dtype, query.shape[-1], mask is not None
        while True:
            kernel = self.chosen.get(kind) or self._choose(*kind)
            try:
                attended = kernel(query, key, value, mask, scale)
            except RuntimeError as error:
                if not self.recover or is_out_of_memory(error):
                    raise
                self.failed[kernel.name] = f"it failed: {str(error).splitlines()[0]}"
                self.chosen.clear()
            else:
                self.tally.add(kernel.operator(query.device))
                return attended

    def _choose(self, device: torch.device, dtype: torch.dtype, width: int, masked: bool) -> Kernel:
        reasons: dict[str, str] = {}
        for kernel in self.order:
            reason = self.failed.get(kernel.name) or kernel.refusal(device, dtype, width, masked)
            if not reason:
                if reasons.keys() - self.passed_over.keys():
                    self.passed_over.update(reasons)
                if not torch.compiler.is_compiling():  # asking in every call takes longer than a small layer
                    self.chosen[device, dtype, width, masked] = kernel
                return kernel
            reasons[kernel.name] = reason
        raise Unsupported(f"no attention kernel can run: {_listed(reasons)}", self.remedy)

    def proof(self) -> dict[str, Any]:
        ran = self.tally.counts()
        proof: dict[str, Any] = {"kernel": ", ".join(ran) or "none yet", "kernel_calls": sum(ran.values())}
        proof |= {"calls_by_kernel": dict(ran)} if len(ran) > 1 else {}
        return proof | ({"passed_over": dict(self.passed_over)} if self.passed_over else {})


class KernelProcessor:
    """Plain attention as diffusers' processors compute it, by a kernel."""

    def __init__(self, kernel: Callable[..., Tensor]) -> None:
        self.kernel = kernel

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
            tensor.view(*tensor.shape[:-1], attn.heads, -1).transpose(1, 2)
            for tensor in project(attn, hidden_states, encoder_hidden_states)
        )
        if attention_mask is not None:
            batch, _, length, _ = key.shape
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])

        hidden_states = self.kernel(query, key, value, attention_mask, attn.scale)
        hidden_states = hidden_states.transpose(1, 2).flatten(2)

        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        if is_image:
            hidden_states = hidden_states.transpose(-1, -2).reshape(batch, channels, height, width)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        factor = attn.rescale_output_factor
        return hidden_states if factor == 1 else hidden_states / factor


def project(attn: Attention, hidden_states: Tensor, text: Tensor | None) -> tuple[Tensor, ...]:
    """Query, key and value, B×N×(heads·d) each."""
    if text is None:
        return project_together(hidden_states, [attn.to_q, attn.to_k, attn.to_v])
    return attn.to_q(hidden_states), *project_together(text, [attn.to_k, attn.to_v])


def check_attention(pipe: Pipeline, technique: str) -> None:
    """Raise Unsupported unless the pipeline has a denoiser, NothingMatched unless that has attention layers."""
    if next(anatomy.attentions(pipe), None) is None:
        kind = type(anatomy.denoiser(pipe)).__name__
        raise NothingMatched(f"{technique} found no attention layer in the {kind}", "choose a model with attention")


def check_kernels(pipe: Pipeline, technique: str, order: tuple[Kernel, ...], remedy: str) -> None:
    """Raise Unsupported where an attention layer is such that no kernel of the order serves it, or as above."""
    check_attention(pipe, technique)
    module = anatomy.denoiser(pipe)
    for layer, attention in anatomy.attentions(pipe):
        width = anatomy.head_width(attention)
        reasons = {
            kernel.name: kernel.refusal(anatomy.device(module), module.dtype, width, masked=False) for kernel in order
        }
        if all(reasons.values()):
            raise Unsupported(f"{technique} cannot serve {layer}: {_listed(reasons)}", remedy)


def before_attention(pipe: Pipeline, technique: str, attend: Attend) -> Patch:
    """Put it before every attention layer of the denoiser. Raises NothingMatched where there is none."""
    check_attention(pipe, technique)
    root, prefix = anatomy.denoiser(pipe), anatomy.denoiser_name(pipe)
    touched = tuple(name for name, _ in anatomy.attentions(pipe))
    changes = tuple(Interposed(root, name.removeprefix(f"{prefix}."), attend) for name in touched)
    return Patch(technique, touched, attend.proof, changes)


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for CUDA's error, and for those of the CPU's allocator and CUDA's libraries, which have no class."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
)


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

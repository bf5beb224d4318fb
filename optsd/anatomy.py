"""What a pipeline is made of, whatever its class: the one file that knows how diffusers names things."""

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import nn

from optsd.errors import Unsupported

Pipeline: TypeAlias = Any
"""A diffusers pipeline with a denoiser and a `vae`; diffusers declares these attributes nowhere."""

DENOISERS = ("unet", "transformer")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
DECODER = "vae"
FUSED_PROJECTIONS = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""What diffusers calls the layers that it puts in place of an attention layer's projections: what each is made of."""
ADAPTED = "base_layer"
"""What peft calls the layer that an adapter, such as a LoRA, wraps."""


def denoiser_name(pipe: Pipeline) -> str:
    """`unet` or `transformer`: the attribute of the pipeline, and the first word of its layers' names."""
    found = next((name for name in DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)), None)
    if found is None:
        raise Unsupported(
            f"{type(pipe).__name__} has no {' and no '.join(DENOISERS)}", "use a text-to-image pipeline of diffusers"
        )
    return found


def denoiser(pipe: Pipeline) -> Any:
    """The network that is called in every step; of one that `torch.compile` has wrapped, the network itself."""
    return component(pipe, denoiser_name(pipe))


def decoder(pipe: Pipeline) -> Any:
    """What turns latents into pictures, or None."""
    return component(pipe, DECODER)


def text_encoders(pipe: Pipeline) -> dict[str, Any]:
    """The networks that read the prompt, by name: one (SD 1, 2, PixArt, Sana), two (SDXL, FLUX) or three (SD3)."""
    found = {name: component(pipe, name) for name in TEXT_ENCODERS}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def networks(pipe: Pipeline) -> dict[str, nn.Module]:
    """All that has weights and takes part in drawing, by the pipeline's names: the denoiser first, the decoder last."""
    ends = denoiser(pipe), decoder(pipe)
    found = {denoiser_name(pipe): ends[0], **text_encoders(pipe), DECODER: ends[1]}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def channels(pipe: Pipeline) -> tuple[int, int]:
    """What a UNet takes and what the decoder does: more, where a picture goes in beside the noise.

    Equal where there is no UNet with a decoder: transformers pack their latents, each in a way of its own.
    """
    unet, vae = component(pipe, "unet"), decoder(pipe)
    if unet is None or vae is None:
        return 0, 0
    return unet.config.in_channels, vae.config.latent_channels


def component(pipe: Pipeline, name: str) -> Any:
    """A part of the pipeline by its name, or None; of one that `torch.compile` has wrapped, the module inside."""
    module = getattr(pipe, name, None)
    return getattr(module, "_orig_mod", module)


def meet_again(pipe: Pipeline) -> None:
    """A denoiser that `torch.compile` has wrapped is called by its class as it is now: the wrapper keeps the method."""
    wrapper = getattr(pipe, denoiser_name(pipe))
    if wrapper is not denoiser(pipe):
        wrapper._initialize()


def at(root: nn.Module, place: str) -> list[nn.Module]:
    """The module at that place now, and, where adapters wrap one, those inside it: the outermost first, or none."""
    found: list[nn.Module] = []
    try:
        module: Any = root.get_submodule(place)
    except AttributeError:
        return found
    while isinstance(module, nn.Module):
        found.append(module)
        module = getattr(module, ADAPTED, None)
    return found


def is_adapter(module: nn.Module) -> bool:
    """Whether it wraps a layer of the model, as peft's LoRA layers do."""
    return isinstance(getattr(module, ADAPTED, None), nn.Module)


SAMPLE = ("sample", "hidden_states")
TIMESTEP = ("timestep",)
TEXT = ("encoder_hidden_states",)
POSITIONS = ("img_ids", "txt_ids")
"""Arguments with one row a token, for the whole batch: where the tokens of pictures and text lie (FLUX)."""
NUMBERS = (*TIMESTEP, "time_ids", "guidance", "resolution", "aspect_ratio", *POSITIONS)
"""Arguments that are numbers and no features: a denoiser makes sinusoids of them, whose phase half precision loses."""

FIRST_AND_LAST = ("conv_in", "conv_out", "pos_embed.*", "patch_embed.*", "x_embedder*", "norm_out.*", "proj_out")
EMBEDDINGS = (
    *("time_embedding.*", "add_embedding.*", "class_embedding*"),  # UNets
    *("time_text_embed.*", "time_embed.*", "adaln_single.*", "context_embedder*", "caption_projection.*"),
)
MODULATION = ("*.norm1.linear", "*.norm1_context.linear", "*.norm.linear")
"""With the two above, the layers of a denoiser that every output depends on, as shell patterns of their names."""
ENCODING = ("encoder.*", "quant_conv")
"""The layers of what encodes and decodes pictures that only encode: a picture is drawn without them."""
DECODERS_ENDS = ("post_quant_conv", "decoder.conv_in", "decoder.conv_out")
"""Its layers that latents and pixels go through themselves."""
PRECISE_IN_TEXT = ("*.wo",)
"""The layers of text encoders that transformers computes in float32 whatever the type (T5)."""
KINDS = {
    "time projections": "*.time_emb_proj",
    "residual convolutions": "*.resnets.*.conv?",
    "shortcut convolutions": "*.conv_shortcut",
    "down- and upsampling": "*samplers*",
    "attention's projections in and out": "*.proj_*",
    "self-attention": "*.attn1.*",
    "cross-attention": "*.attn2.*",
    "attention": "*.attn.*",  # of transformers, text and picture together
    "feed-forward": "*.ff.*",
    "the text's feed-forward": "*.ff_context.*",
}
"""Kinds of a denoiser's other layers, a pattern each; no layer is of two."""

ONE_ROW = (
    *("time_emb*", "*.time_emb_proj", "time_text_embed.*", "add_embedding.*", "class_embed*", "adaln_single.*"),
    "*norm*.linear",
)
"""Layers that see a row of each picture, and not one of each token."""


def device(module: nn.Module) -> torch.device:
    """Where a module computes. Of one whose weights are offloaded, and lie nowhere between calls, where they go."""
    for parameter in module.parameters():
        if not parameter.is_meta:
            return parameter.device
    hooks = (getattr(each, "_hf_hook", None) for each in module.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in places if place is not None), "meta"))


def argument(module: nn.Module, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call of a denoiser gives for the first of these names that it has, by place or by name; None without."""
    for name, value in kwargs.items():
        if name in names:
            return value
    kind: Any = type(module)
    return next((value for name, value in zip(arguments(kind), args, strict=False) if name in names), None)


@cache
def arguments(kind: Any) -> tuple[str, ...]:
    """The names of what a module's `forward` takes, in order."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def is_compiling() -> bool:
    """Whether a compiler reads the code instead of running it: what happens in a graph is not counted here."""
    return torch.compiler.is_compiling()


def is_cross(attention: Any) -> bool:
    """Whether an attention layer takes keys and values from the text, and nothing else."""
    return bool(getattr(attention, "is_cross_attention", False))


def text_projections(attention: Any) -> tuple[str, ...]:
    """The layers of a cross-attention that read the text now: one if keys and values were fused, else two."""
    return ("to_kv",) if has_fused_processor(attention) else ("to_k", "to_v")


def has_fused_processor(attention: Any) -> bool:
    """Whether diffusers has put one layer in place of its projections (`fuse_qkv_projections`)."""
    return type(attention.processor).__name__.startswith("Fused")


def projects_text(unet: Any) -> bool:
    """Whether the UNet makes another tensor of the text in every step. An IP-Adapter leaves the text alone."""
    if getattr(unet, "encoder_hid_proj", None) is None:
        return False
    return unet.config.encoder_hid_dim_type != "ip_image_proj" or hasattr(unet, "text_encoder_hid_proj")


def check_unet(pipe: Pipeline, technique: str, why: str) -> None:
    """Raise Unsupported unless the pipeline has the UNet that all of Stable Diffusion 1, 2 and XL have."""
    from diffusers import UNet2DConditionModel

    found = denoiser(pipe)
    if not isinstance(found, UNet2DConditionModel):
        raise Unsupported(
            f"{technique} needs a UNet2DConditionModel, {why}; {type(pipe).__name__} has a {type(found).__name__}",
            "use a Stable Diffusion 1, 2 or XL pipeline",
        )


def check_transformer(pipe: Pipeline, technique: str) -> None:
    """Raise Unsupported for a UNet."""
    if denoiser_name(pipe) != "transformer":
        kind = type(denoiser(pipe)).__name__
        raise Unsupported(
            f"{technique} keeps what a transformer's blocks give, {type(pipe).__name__} has a {kind}",
            "choose deepcache",
        )


def blocks(transformer: Any) -> list[str]:
    """The transformer's blocks in the order in which they run, but for a last one that gives no text (SD3)."""
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as groups

    found = [
        f"{group}.{number}"
        for group, module in transformer.named_children()
        if group in groups and isinstance(module, nn.ModuleList)
        for number in range(len(module))
    ]
    is_silent = bool(found) and getattr(transformer.get_submodule(found[-1]), "context_pre_only", False)
    found = found[:-1] if is_silent else found
    return found if len(found) > 1 else []  # one alone has none whose output could be kept


def has_block_metadata(kind: type) -> bool:
    """Whether diffusers' caches know in which order such a block returns pictures and text."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        TransformerBlockRegistry.get(kind)
    except ValueError:
        return False
    return True


def timestep_scale(transformer: Any) -> float:
    """What makes its timesteps thousandths: FLUX counts them from 1 to 0."""
    return 1000.0 if type(transformer).__name__.startswith("Flux") else 1.0


def head_width(attention: Any) -> int:
    """Channels of one head."""
    return attention.inner_dim // attention.heads


def has_plain_processor(attention: Any) -> bool:
    """Whether it computes softmax(QKᵀ)V of its projections and nothing else, so that any way of computing that will do.

    Not so where an adapter adds to it, or where queries are normalized.
    """
    more = ("added_kv_proj_dim", "norm_q", "norm_k")
    return type(attention.processor) in _plain_processors() and all(
        getattr(attention, name, None) is None for name in more
    )


@cache
def _plain_processors() -> tuple[type, ...]:
    from diffusers.models import attention_processor as processors

    return (
        processors.AttnProcessor,
        processors.AttnProcessor2_0,
        processors.SlicedAttnProcessor,
        processors.XFormersAttnProcessor,
    )


def attentions(pipe: Pipeline) -> Iterator[tuple[str, Any]]:
    """The denoiser's attention layers with their names (`unet.mid_block.attentions.0.transformer_blocks.0.attn1`)."""
    return attentions_of(denoiser(pipe), denoiser_name(pipe))


def attentions_of(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The same of any network, with their places in it."""
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    for name, module in network.named_modules(prefix=prefix):
        if isinstance(module, Attention | AttentionModuleMixin):
            yield name, module

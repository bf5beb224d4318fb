"""Published architectures at full size, without their weights: one place for each configuration.

The dictionaries hold what the published configuration files say where that differs from diffusers' or transformers'
defaults; the source stands above each. `BUILDERS` makes pipelines of them in torch's default type on its default
device; `random` fills one with seeded random weights: its speed, memory and size are the model's own, its pictures are
noise. Importing this module imports no torch.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optsd.errors import Unsupported
from optsd.models import sd15

if TYPE_CHECKING:
    import torch

# Stable Diffusion 2.1 (Rombach et al., 2022; stabilityai/stable-diffusion-2-1)
SD21_UNET = sd15.UNET | {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SD21_TEXT_ENCODER = sd15.TEXT_ENCODER | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
# SDXL (Podell et al., 2023; stabilityai/stable-diffusion-xl-base-1.0)
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_TEXT_ENCODER_2 = sd15.TEXT_ENCODER | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
# The encoder of T5 v1.1 XXL (Raffel et al., 2020; google/t5-v1_1-xxl), as SD3 and FLUX have it
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
# Stable Diffusion 3.5 medium (Esser et al., 2024; stabilityai/stable-diffusion-3.5-medium)
SD35_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
SD35_AUTOENCODER = sd15.AUTOENCODER | {
    "sample_size": 1024,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
# FLUX.1 dev (Black Forest Labs, 2024; black-forest-labs/FLUX.1-dev)
FLUX = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
FLUX_AUTOENCODER = SD35_AUTOENCODER | {"scaling_factor": 0.3611, "shift_factor": 0.1159}
FLUX_SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
# DiT-XL/2 at 512×512 (Peebles & Xie, 2023; facebook/DiT-XL-2-512)
DIT = {
    "sample_size": 64,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_embeds_ada_norm": 1000,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


def _sd21() -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**SD21_UNET),
        vae=AutoencoderKL(**sd15.AUTOENCODER | {"sample_size": 768}),
        text_encoder=_clip(SD21_TEXT_ENCODER),
        tokenizer=_clip_tokens(),
        scheduler=DDIMScheduler(
            **_without(sd15.SCHEDULER, "skip_prk_steps"), prediction_type="v_prediction", clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    tokens = _clip_tokens()
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(**SDXL_UNET),
        vae=AutoencoderKL(**sd15.AUTOENCODER | {"sample_size": 1024, "scaling_factor": 0.13025}),
        text_encoder=_clip(sd15.TEXT_ENCODER),
        text_encoder_2=_clip(SDXL_TEXT_ENCODER_2, projected=True),
        tokenizer=tokens,
        tokenizer_2=tokens,
        scheduler=_scheduler(
            EulerDiscreteScheduler,
            **_without(sd15.SCHEDULER, "skip_prk_steps", "set_alpha_to_one"),
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )


def _sd35_medium() -> Any:
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    tokens = _clip_tokens()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**SD35_MEDIUM),
        vae=AutoencoderKL(**SD35_AUTOENCODER),
        text_encoder=_clip(sd15.TEXT_ENCODER, projected=True),
        text_encoder_2=_clip(SDXL_TEXT_ENCODER_2, projected=True),
        text_encoder_3=_t5(),
        tokenizer=tokens,
        tokenizer_2=tokens,
        tokenizer_3=_t5_tokens(),
        scheduler=_scheduler(FlowMatchEulerDiscreteScheduler, shift=3.0),
    )


def _flux() -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    return FluxPipeline(
        transformer=FluxTransformer2DModel(**FLUX),
        vae=AutoencoderKL(**FLUX_AUTOENCODER),
        text_encoder=_clip(sd15.TEXT_ENCODER),
        text_encoder_2=_t5(),
        tokenizer=_clip_tokens(),
        tokenizer_2=_t5_tokens(),
        scheduler=_scheduler(FlowMatchEulerDiscreteScheduler, **FLUX_SCHEDULER),
    )


def _dit() -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    return DiTPipeline(
        transformer=DiTTransformer2DModel(**DIT),
        vae=AutoencoderKL(**sd15.AUTOENCODER | {"sample_size": 256}),
        scheduler=_scheduler(DDIMScheduler),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd15": sd15.pipeline,
    "sd21": _sd21,
    "sdxl": _sdxl,
    "sd35-medium": _sd35_medium,
    "flux": _flux,
    "dit": _dit,
}
SIDES = {"sd15": 512, "sd21": 768, "sdxl": 1024, "sd35-medium": 1024, "flux": 1024, "dit": 512}
"""Of the pictures that each was trained for, in pixels."""

RANDOM = {f"{name}-random": name for name in BUILDERS if name != "dit"}  # which is told a class, not a text
"""The models with random weights, by the names that `--model` takes."""


def random(name: str, dtype: "torch.dtype", device: "torch.device | str" = "cpu", seed: int = 0) -> Any:
    """The pipeline of that name with seeded random weights, built on the device in the wanted type: once the memory.

    Each kind of device has numbers of its own. Tokenizers know bytes or letters only: no text means anything to random
    weights, but a prompt's tokens cost what they cost. Raises Unsupported, before it allocates anything, where the
    weights do not fit into the free memory.
    """
    import torch

    place, before = torch.device(device), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        needed, free = _weight_bytes(name), _free_bytes(place)
        if needed > free:
            raise Unsupported(
                f"the weights of {name} take {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, "
                f"and {free / 1e9:.1f} GB of memory are free",
                "choose --dtype bfloat16, a smaller model, or --device estimate:a100",
            )
        with torch.random.fork_rng([place] if place.type == "cuda" else []), place:
            torch.manual_seed(seed)
            pipe = BUILDERS[name]()
    finally:
        torch.set_default_dtype(before)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def _weight_bytes(name: str) -> int:
    """Of all parameters and buffers, in torch's default type. Nothing is allocated."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        parts = BUILDERS[name]().components.values()
    return sum(
        tensor.nbytes
        for part in parts
        if isinstance(part, torch.nn.Module)
        for tensor in (*part.parameters(), *part.buffers())
    )


def _free_bytes(place: "torch.device") -> int:
    """What the GPU has left; of the CPU's memory what the system, and the limit that a container sets, leave."""
    import psutil
    import torch

    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    free = psutil.virtual_memory().available
    limits = [Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current")]
    try:
        limit, used = (int(file.read_text(encoding="ascii")) for file in limits)
    except (OSError, ValueError):  # no cgroup v2, or no limit: "max"
        return free
    return min(free, limit - used)


@contextmanager
def real_numbers() -> Iterator[None]:
    """For schedulers, whose numbers decide how they go on: real ones, where networks are made of fake tensors."""
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily(), torch.device("cpu"):
        yield


def _scheduler(kind: Any, **configuration: Any) -> Any:
    with real_numbers():
        return kind(**configuration)


def _clip(configuration: dict[str, Any], projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind: Any = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(**configuration))


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**T5_XXL))


def _clip_tokens() -> Any:
    from optsd.models.tokenizer import byte_level_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        return byte_level_tokenizer(Path(folder), words=(), length=sd15.CONTEXT_LENGTH)


def _t5_tokens() -> Any:
    from optsd.models.tokenizer import t5_tokenizer

    return t5_tokenizer(512)


def _without(configuration: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in configuration.items() if key not in names}

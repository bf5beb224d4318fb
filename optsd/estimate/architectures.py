"""Pipelines without weights: by name, or from the configuration files of a diffusers folder or hub id.

Call `build` under FakeTensorMode: then nothing is allocated, however large the model. The dictionaries hold what the
published configuration files say where that differs from diffusers' defaults.
"""

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optsd.errors import BadInput, NotFound
from optsd.models import Source, folders, sd15
from optsd.models.folders import SD15_HUB_ID

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

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


def _shapes(dtype: "torch.dtype") -> "DiffusionPipeline":
    from optsd.models.shapes import networks

    with tempfile.TemporaryDirectory() as folder:
        tokens = networks.tokenizer(Path(folder))
    return networks.pipeline(
        vae=networks.autoencoder(), text_encoder=networks.text_encoder(tokens), tokenizer=tokens, unet=networks.unet()
    )


def _sd21(dtype: "torch.dtype") -> "DiffusionPipeline":
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**SD21_UNET),
        vae=AutoencoderKL(**sd15.AUTOENCODER | {"sample_size": 768}),
        text_encoder=CLIPTextModel(CLIPTextConfig(**SD21_TEXT_ENCODER)),
        tokenizer=_tokenizer(77),
        scheduler=DDIMScheduler(**_without(sd15.SCHEDULER, "skip_prk_steps"), prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(dtype: "torch.dtype") -> "DiffusionPipeline":
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokens = _tokenizer(77)
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(**SDXL_UNET),
        vae=AutoencoderKL(**sd15.AUTOENCODER | {"sample_size": 1024, "scaling_factor": 0.13025}),
        text_encoder=CLIPTextModel(CLIPTextConfig(**sd15.TEXT_ENCODER)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**SDXL_TEXT_ENCODER_2)),
        tokenizer=tokens,
        tokenizer_2=tokens,
        scheduler=EulerDiscreteScheduler(
            **_without(sd15.SCHEDULER, "skip_prk_steps", "set_alpha_to_one"), timestep_spacing="leading"
        ),
        add_watermarker=False,
    )


def _dit(dtype: "torch.dtype") -> "DiffusionPipeline":
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    return DiTPipeline(
        transformer=DiTTransformer2DModel(**DIT),
        vae=AutoencoderKL(**sd15.AUTOENCODER | {"sample_size": 256}),
        scheduler=DDIMScheduler(),
    )


def _sd15(dtype: "torch.dtype") -> "DiffusionPipeline":
    return sd15.random(dtype)


NAMED: dict[str, Callable[["torch.dtype"], "DiffusionPipeline"]] = {
    "shapes": _shapes,
    "sd15": _sd15,
    "sd15-random": _sd15,
    "sd21": _sd21,
    "sdxl": _sdxl,
    "dit": _dit,
}
_SIDES = {"shapes": 64, "sd21": 768, "sdxl": 1024}


def check(model: str) -> Source:
    """Where a model's architecture comes from: a name, a folder's configurations, or a hub id. Imports no torch.

    Raises NotFound for what is none of them.
    """
    if model in NAMED:
        return Source(model, model, size=(_SIDES.get(model, 512),) * 2)
    path = folders.path_of(model)
    if path and path.is_dir():
        path = path.resolve()
        return Source(folders.label(path), str(path), path, size=folders.size(path))
    if path or not folders.is_hub_id(model):
        raise NotFound(
            f"no model {model!r}", f"use {', '.join(NAMED)}, a diffusers folder, or a hub id such as {SD15_HUB_ID}"
        )
    return Source(model, model, hub_id=model)


def build(model: str, dtype: "torch.dtype") -> "DiffusionPipeline":
    """The pipeline with the architecture of `model`, in that type, on the device that is current.

    Raises NotFound for an unknown name, BadInput for what is no diffusers pipeline or needs code of its own.
    """
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        pipe = NAMED[model](dtype) if model in NAMED else _from_files(model)
    finally:
        torch.set_default_dtype(before)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _from_files(model: str) -> "DiffusionPipeline":
    """A pipeline from `model_index.json` and its components' configuration files; weights are never read."""
    import diffusers

    source = check(model).location
    try:
        index = diffusers.DiffusionPipeline.load_config(source)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{model} is no diffusers pipeline ({str(error).splitlines()[0][:160]})",
            "give a folder or hub id with a model_index.json",
        ) from error
    pipeline_class = getattr(diffusers, str(index.get("_class_name")), None)
    if not isinstance(pipeline_class, type) or not issubclass(pipeline_class, diffusers.DiffusionPipeline):
        raise BadInput(
            f"{model} asks for the pipeline class {index.get('_class_name')!r}, which diffusers lacks",
            "use a model of a diffusers class",
        )
    parts: dict[str, Any] = {}
    for component, kind in index.items():
        if component.startswith("_") or not isinstance(kind, (list, tuple)):
            continue
        present = kind[0] is not None and component not in folders.NEVER_LOADED
        parts[component] = _component(source, component, kind[0], kind[1]) if present else None
    if "requires_safety_checker" in index:
        parts["requires_safety_checker"] = False
    return pipeline_class(**parts)


def _component(source: str, component: str, library: str, name: str) -> Any:
    import diffusers
    import transformers

    if library not in ("diffusers", "transformers"):
        raise BadInput(
            f"{source} takes {component!r} from {library!r}, code that would have to be trusted",
            "use a model whose components are classes of diffusers and transformers",
        )
    found: Any = getattr(importlib.import_module(library), name, None)
    is_class = isinstance(found, type)
    try:
        if is_class and issubclass(found, diffusers.ModelMixin):
            return found.from_config(found.load_config(source, subfolder=component))
        if is_class and issubclass(found, transformers.PreTrainedModel):
            return found(found.config_class.from_pretrained(source, subfolder=component))
        if found is not None:
            return found.from_pretrained(source, subfolder=component)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            f"{source}/{component} cannot be built ({str(error).splitlines()[0][:160]})", "check its configuration file"
        ) from error
    raise BadInput(f"{source} asks for {name!r}, which {library} lacks", f"install a newer {library}")


def _tokenizer(length: int) -> Any:
    from optsd.models.tokenizer import byte_level_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        return byte_level_tokenizer(Path(folder), words=(), length=length)


def _without(configuration: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in configuration.items() if key not in names}

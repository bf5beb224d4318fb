"""Pipelines of every class that the techniques are held to: diffusers' own classes at a tiny width, real schedulers."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from optsd.models.published import real_numbers
from optsd.models.tokenizer import byte_level_tokenizer, t5_tokenizer

LENGTH = 16  # tokens
CLIP = {
    "vocab_size": 514,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32,),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "attention_head_dim": 4,
}
UNCHECKED: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _clip(projected: bool = False) -> Any:
    kind: Any = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(transformers.CLIPTextConfig(**CLIP))


def _clip_tokens() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return byte_level_tokenizer(Path(folder), words=(), length=LENGTH)


def _t5(width: int = 32) -> Any:
    sizes = {"vocab_size": 128, "d_model": width, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    return transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu"))


def _vae(**more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def _flow(**options: Any) -> Any:
    with real_numbers():  # an estimate makes the networks of fake ones
        return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def _sd15() -> Any:
    return diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(**UNET),
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=_clip_tokens(),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        **UNCHECKED,
    )


def _sd21() -> Any:
    unet = UNET | {"attention_head_dim": 2, "use_linear_projection": True}
    return diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(**unet),
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=_clip_tokens(),
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False),
        **UNCHECKED,
    )


def _sdxl() -> Any:
    unet = UNET | {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "cross_attention_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
    }
    return diffusers.StableDiffusionXLPipeline(
        unet=diffusers.UNet2DConditionModel(**unet),
        vae=_vae(),
        text_encoder=_clip(),
        text_encoder_2=_clip(projected=True),
        tokenizer=_clip_tokens(),
        tokenizer_2=_clip_tokens(),
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def _sd3() -> Any:
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),  # as 3.5 medium has
        ),
        vae=_vae(shift_factor=0.06),
        text_encoder=_clip(projected=True),
        text_encoder_2=_clip(projected=True),
        text_encoder_3=_t5(64),
        tokenizer=_clip_tokens(),
        tokenizer_2=_clip_tokens(),
        tokenizer_3=t5_tokenizer(LENGTH),
        scheduler=_flow(shift=3.0),
    )


def _flux() -> Any:
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        vae=_vae(shift_factor=0.1),
        text_encoder=_clip(),
        text_encoder_2=_t5(),
        tokenizer=_clip_tokens(),
        tokenizer_2=t5_tokenizer(LENGTH),
        scheduler=_flow(shift=3.0, use_dynamic_shifting=True),
    )


def _pixart() -> Any:
    return diffusers.PixArtSigmaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=32,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=32,
        ),
        vae=_vae(),
        text_encoder=_t5(),
        tokenizer=t5_tokenizer(LENGTH),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _sana() -> Any:
    text = {"vocab_size": 128, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *map(chr, range(ord("!"), ord("~") + 1)), "▁"]
    ends = {
        f"{end}_{name}": value
        for end in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8),
            "qkv_multiscales": ((), (5,)),
            "layers_per_block": (1, 1),
        }.items()
    }
    return diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=8,
        ),
        vae=diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=2, **ends),
        text_encoder=transformers.Gemma2Model(
            transformers.Gemma2Config(**text, num_attention_heads=2, num_key_value_heads=1)
        ),
        tokenizer=transformers.GemmaTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}),
        scheduler=_flow(shift=3.0),
    )


CLASSES: dict[str, Callable[[], Any]] = {
    "SD 1.5": _sd15,
    "SD 2.1": _sd21,
    "SDXL": _sdxl,
    "SD3": _sd3,
    "FLUX.1": _flux,
    "PixArt-Σ": _pixart,
    "Sana": _sana,
}
SHORT: dict[str, Any] = {"max_sequence_length": LENGTH}
OPTIONS: dict[str, dict[str, Any]] = {
    "SD3": SHORT,
    "FLUX.1": SHORT,
    "PixArt-Σ": {**SHORT, "use_resolution_binning": False, "clean_caption": False},
    "Sana": {**SHORT, "use_resolution_binning": False, "complex_human_instruction": None, "height": 32, "width": 32},
}


def make(name: str) -> Any:
    """A new pipeline of that class, seeded random weights, float32, on the CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe = CLASSES[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(name: str, pipe: Any, **more: Any) -> torch.Tensor:
    """Two seeded latents of a call with guidance."""
    options: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 5, "output_type": "latent"}
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    options |= {"guidance_scale": 3.0, "generator": seeds} | OPTIONS.get(name, {}) | more
    return pipe(["a red circle", "two cats"], **options).images

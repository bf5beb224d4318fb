"""Stable Diffusion v1.5's exact architecture, without its weights.

The dictionaries hold what v1.5's published configuration files say where that differs from diffusers' defaults
(Rombach et al., 2022; the runwayml release). Other models' are in `published.py`, which fills them with random weights.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # the number of heads, in spite of its name
}
AUTOENCODER = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CONTEXT_LENGTH = 77  # tokens
TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": CONTEXT_LENGTH,
    "hidden_act": "quick_gelu",
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def pipeline() -> "StableDiffusionPipeline":
    """v1.5 as torch's defaults build it: 859.5 M + 83.7 M + 123.1 M parameters.

    The tokenizer knows bytes only: no text means anything to random weights, but 77 tokens cost what they cost.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from optsd.models.tokenizer import byte_level_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokens = byte_level_tokenizer(Path(folder), words=(), length=CONTEXT_LENGTH)
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**UNET),
        vae=AutoencoderKL(**AUTOENCODER),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
        tokenizer=tokens,
        scheduler=PNDMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

"""How the transformer of `shapes-dit` is trained: rectified flow, on the shipped autoencoder and text encoder.

The path from a picture to noise is straight, x = (1-σ)·picture + σ·noise, and the transformer predicts its direction,
noise - picture (Liu et al., "Flow Straight and Fast", 2022). σ is drawn as in SD3 (Esser et al., "Scaling Rectified
Flow Transformers", 2024), the sigmoid of a normal deviate, but wider: few steps have to teach both ends too.

SD3's pipeline puts `max_sequence_length` empty tokens in T5's place where there is no T5, 256 unless the call says
otherwise. As they have no positions, n of them are one token that weighs n times as much in every softmax: an offset
of log n. So a step shows the transformer any number of them, none included, for the price of one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from optsd.models.shapes import WEIGHTS, data, networks
from optsd.models.shapes.fitting import Stage, fit, generator

DIT = Stage("dit", seed=14, steps=8000, batch=16, learning_rate=1.5e-3, ema=0.998, falling=0.3)
DIT_SCENES = 16384
SIGMA_SPREAD = 1.4  # the deviation before the sigmoid; SD3 has 1
MOST_EMPTY_TOKENS = 256


class WeighedJointAttention:
    """diffusers' joint attention with what its own processor ignores: `attention_mask`, added to every score."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Batch×tokens×width of image and text, and a mask that broadcasts to batch×heads×tokens×tokens."""

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat([attn.norm_q(heads(attn.to_q(image))), attn.norm_added_q(heads(attn.add_q_proj(text)))], 2)
        key = torch.cat([attn.norm_k(heads(attn.to_k(image))), attn.norm_added_k(heads(attn.add_k_proj(text)))], 2)
        value = torch.cat([heads(attn.to_v(image)), heads(attn.add_v_proj(text))], 2)
        scores = query @ key.mT * query.shape[-1] ** -0.5 + attention_mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        image, text = mixed.split([image.shape[1], text.shape[1]], 1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def shipped_parts(
    pipeline: Path = WEIGHTS / "pipeline",
) -> tuple[AutoencoderKL, CLIPTextModelWithProjection, CLIPTokenizer]:
    """The frozen parts, in float32 from half precision: exactly what will be shipped beside the transformer."""
    vae = AutoencoderKL.from_pretrained(pipeline / "vae").float()
    vae.register_to_config(shift_factor=0.0)  # SD3's pipeline adds one
    text = networks.projecting(CLIPTextModel.from_pretrained(pipeline / "text_encoder")).float()
    return (
        vae.requires_grad_(False),
        text.eval().requires_grad_(False),
        CLIPTokenizer.from_pretrained(pipeline / "tokenizer"),
    )


def train_dit(folder: Path, device: torch.device) -> SD3Transformer2DModel:
    """The finished transformer; takes the shipped parts, never those in `folder`, so that it fits what is shipped."""
    vae, text, tokens = shipped_parts()
    vae, text = vae.to(device), text.to(device)
    torch.manual_seed(DIT.seed)
    model = networks.dit().to(device)
    model.set_attn_processor(WeighedJointAttention())
    bank, latents = data.latents(DIT, DIT_SCENES, vae, folder, device)
    ids = data.tokenize(tokens, [scene.caption for scene in bank])
    empty = data.tokenize(tokens, [""])
    image_tokens = (model.config.sample_size // model.config.patch_size) ** 2

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(len(bank), size=DIT.batch))
        captions = ids[rows]
        captions[torch.from_numpy(rng.random(DIT.batch) < data.CAPTION_DROPOUT)] = empty
        # No empty token for half of the pictures; any number for the other half.
        number = torch.from_numpy(rng.integers(MOST_EMPTY_TOKENS + 1, size=DIT.batch) * (rng.random(DIT.batch) < 0.5))
        clean = latents[rows].to(device).float() * vae.config.scaling_factor
        random = generator(DIT, step, device)
        noise = torch.randn(clean.shape, generator=random, device=device)
        sigma = torch.sigmoid(SIGMA_SPREAD * torch.randn(DIT.batch, generator=random, device=device))
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        with torch.no_grad():
            read = text(captions.to(device), output_hidden_states=True)
        context = F.pad(read.hidden_states[-2].repeat(1, 1, 2), (0, 0, 0, 1))  # both encoders' features, and the token
        mask = F.pad(number.log().float()[:, None, None, None], (image_tokens + captions.shape[1], 0)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            direction = model(
                noisy,
                context,
                read.text_embeds.repeat(1, 2),
                1000 * sigma,
                joint_attention_kwargs={"attention_mask": mask},
            ).sample
        return F.mse_loss(direction.float(), noise - clean)

    fit(DIT, model, loss_of, folder)
    return model


def export(transformer: SD3Transformer2DModel, target: Path) -> None:
    """Write a whole diffusers folder in half precision: the transformer, and copies of the parts it was trained on."""
    vae, text, tokens = shipped_parts()
    networks.dit_pipeline(vae, text, tokens, transformer.cpu()).to(dtype=torch.float16).save_pretrained(target)

"""What the networks of the recipe are trained on: drawn scenes as tensors, captions as tokens, latents."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from optsd.models.shapes import scenes
from optsd.models.shapes.fitting import Stage, save

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LATENT_BATCH = 16  # what a CPU's cache holds
CAPTION_DROPOUT = 0.1  # the share of empty captions, for classifier-free guidance
PLACES = ("left", "right", "top", "bottom", "middle")


def training_scenes(rng: np.random.Generator, count: int) -> list[scenes.Scene]:
    """Scenes to train on: none of the held-out captions."""
    chosen: list[scenes.Scene] = []
    while len(chosen) < count:
        scene = scenes.sample_scene(rng)
        if not scene.held_out:
            chosen.append(scene)
    return chosen


def pictures(chosen: list[scenes.Scene], rng: np.random.Generator) -> np.ndarray:
    return np.stack([scenes.render(scene, rng) for scene in chosen])


def to_tensor(images: np.ndarray) -> Tensor:
    """N×H×W×3 uint8 -> N×3×H×W float32, still 0 to 255."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()


def degrade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur half of the pictures, add noise to all of them, shift their brightness. 0 to 255 in and out."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    count, device = len(images), images.device
    images = torch.where(torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.5).to(device), blurred, images)
    strength = torch.from_numpy(rng.uniform(0, 16, (count, 1, 1, 1)).astype(np.float32)).to(device)
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(device)
    shift = torch.from_numpy(rng.uniform(-10, 10, (count, 3, 1, 1)).astype(np.float32)).to(device)
    return (images + strength * noise + shift).clamp(0, 255)


def tokenize(tokens, captions: list[str]) -> Tensor:
    return tokens(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def attributes(scene: scenes.Scene) -> list[int]:
    """The size, colour and shape at each of `PLACES` (the last index: nothing), and the background, as indices."""
    places = {
        None: ("middle",),
        "to the left of": ("left", "right"),
        "to the right of": ("right", "left"),
        "above": ("top", "bottom"),
        "below": ("bottom", "top"),
    }[scene.relation]
    at = dict(zip(places, scene.things, strict=True))
    options = (tuple(scenes.SIZES), tuple(scenes.COLOURS), scenes.SHAPES)
    indices: list[int] = []
    for place in PLACES:
        thing = at.get(place)
        values = (thing.size, thing.colour, thing.shape) if thing else (None, None, None)
        indices += [
            len(known) if value is None else known.index(value) for known, value in zip(options, values, strict=True)
        ]
    return [*indices, tuple(scenes.BACKGROUNDS).index(scene.background)]


def latents(
    stage: Stage, count: int, vae: "AutoencoderKL", folder: Path, device: torch.device
) -> tuple[list[scenes.Scene], Tensor]:
    """The `count` scenes of a stage and their latents (N×4×16×16, half precision), kept in `folder`."""
    rng = np.random.Generator(np.random.PCG64([stage.seed, 0]))
    bank = training_scenes(rng, count)
    file = folder / f"{stage.name}_latents.safetensors"
    if not file.exists():
        chunks = []
        for start in range(0, len(bank), LATENT_BATCH):
            images = to_tensor(pictures(bank[start : start + LATENT_BATCH], rng)).to(device) / 127.5 - 1
            with torch.no_grad():
                chunks.append(vae.encode(images).latent_dist.mean.half().cpu())
            if start % 4096 == 0:
                print(f"{stage.name} latents {start}/{len(bank)}", flush=True)
        save({"latents": torch.cat(chunks)}, file)
    return bank, load_file(file)["latents"]

"""The recipe behind the committed weights: six networks, one after the other, each resumable.

    python -m optsd.models.shapes.train --export     # all of them, then the weights folder
    python -m optsd.models.shapes.train classifier   # one of them
    python -m optsd.models.shapes.train dit --export # the transformer of shapes-dit, on the shipped autoencoder

As in Stable Diffusion, the autoencoder and the text encoder are trained first and then frozen. The batch of a step
is a function of (stage, step) alone, so a run that was interrupted goes on as if it had not been.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optsd.models.shapes import WEIGHTS, data, networks, scenes, train_dit
from optsd.models.shapes.fitting import Stage, fit, generator, half, save

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DEFAULT_FOLDER = Path("build/shapes")

AUTOENCODER = Stage("autoencoder", seed=11, steps=2500, batch=16, learning_rate=2e-3, ema=0.995)
TEXT_ENCODER = Stage("text_encoder", seed=12, steps=800, batch=64, learning_rate=1e-3)
UNET = Stage("unet", seed=13, steps=3000, batch=32, learning_rate=1e-3, ema=0.999)
CLASSIFIER = Stage("classifier", seed=21, steps=1500, batch=32, learning_rate=2e-3, ema=0.99)
CLIP = Stage("clip", seed=22, steps=500, batch=64, learning_rate=1e-3)

UNET_SCENES = 32768  # whose latents the UNet is trained on


def train(stages: list[str], folder: Path, device: str, weights: Path | None = None) -> None:
    """Train the named stages (all of them if none is named) in `folder`; write what is shipped of them to `weights`.

    The transformer comes last: it is trained on the autoencoder and the text encoder as they are shipped.
    """
    torch.manual_seed(0)
    place = torch.device(device)
    for name in stages or STAGES:
        model = STAGES[name](folder, place)
        if weights and name == "unet":
            export_pipeline(folder, weights / "pipeline")
        elif weights and name == "dit":
            train_dit.export(model, weights / "dit")
        elif weights and name in ("classifier", "clip"):
            save(half(model.state_dict()), weights / f"{name}.safetensors")


def train_autoencoder(folder: Path, device: torch.device) -> "AutoencoderKL":
    """Reconstruction (L1 + L2) with a faint pull of the latents towards a standard normal, as in SD."""
    model = networks.autoencoder().to(device)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        images = data.to_tensor(data.pictures(data.training_scenes(rng, AUTOENCODER.batch), rng)).to(device) / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16):
            posterior = model.encode(images).latent_dist
            output = model.decode(posterior.sample(generator(AUTOENCODER, step, device))).sample.float()
        return F.l1_loss(output, images) + F.mse_loss(output, images) + 1e-6 * posterior.kl().float().mean()

    fit(AUTOENCODER, model, loss_of, folder)
    return model.eval().requires_grad_(False)


def train_text_encoder(folder: Path, device: torch.device) -> tuple:
    """Say, from the last tokens' features, what is where: the size, colour and shape at each place, the background.

    By place rather than in the caption's order, so that the binding of attributes to places is the text encoder's
    work: the UNet then reads, with one linear map, what belongs where it is.
    """
    tokens = networks.tokenizer(folder / "tokenizer")
    model = networks.text_encoder(tokens).to(device)
    thing = [len(known) + 1 for known in (scenes.SIZES, scenes.COLOURS, scenes.SHAPES)]  # +1: nothing there
    counts = [*thing * len(data.PLACES), len(scenes.BACKGROUNDS)]
    heads = nn.Linear(networks.TEXT_WIDTH, sum(counts)).to(device)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        chosen = data.training_scenes(rng, TEXT_ENCODER.batch)
        ids = data.tokenize(tokens, [scene.caption for scene in chosen]).to(device)
        targets = torch.tensor([data.attributes(scene) for scene in chosen], device=device)
        read = (ids == tokens.eos_token_id).float()[..., None]  # the end token and its padding see the whole caption
        states = model(ids)[0]
        logits = heads(states) * read
        total = torch.zeros((), device=device)
        for part, target in zip(logits.split(counts, -1), targets.T, strict=True):
            losses = F.cross_entropy(part.flatten(0, 1), target.repeat_interleave(ids.shape[1]), reduction="none")
            total = total + (losses * read.flatten()).sum() / read.sum()
        return total

    fit(TEXT_ENCODER, nn.ModuleDict({"model": model, "heads": heads}), loss_of, folder)
    return tokens, model.eval().requires_grad_(False)


def train_unet(folder: Path, device: torch.device) -> nn.Module:
    """v-prediction on the frozen autoencoder's latents, with the caption left out one time in ten."""
    from diffusers.models.attention_processor import AttnProcessor

    vae = train_autoencoder(folder, device)
    tokens, text = train_text_encoder(folder, device)
    model, noise_scheduler = networks.unet().to(device), networks.scheduler()
    model.set_attn_processor(AttnProcessor())  # fused attention's backward pass is the slower one on a CPU
    bank, latents, scale = _unet_latents(folder, vae, device)
    ids = data.tokenize(tokens, [scene.caption for scene in bank])
    empty = data.tokenize(tokens, [""])

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(len(bank), size=UNET.batch))
        captions = ids[rows]
        captions[torch.from_numpy(rng.random(UNET.batch) < data.CAPTION_DROPOUT)] = empty
        clean = latents[rows].to(device).float() * scale
        random = generator(UNET, step, device)
        noise = torch.randn(clean.shape, generator=random, device=device)
        when = torch.randint(0, 1000, (UNET.batch,), generator=random, device=device)
        noisy = noise_scheduler.add_noise(clean, noise, when)
        target = noise_scheduler.get_velocity(clean, noise, when)
        with torch.no_grad():
            context = text(captions.to(device))[0]
        with torch.autocast(device.type, torch.bfloat16):
            output = model(noisy, when, context).sample
        return F.mse_loss(output.float(), target)

    fit(UNET, model, loss_of, folder)
    return model


def train_classifier(folder: Path, device: torch.device) -> nn.Module:
    """Which kinds of object are there, on drawn scenes with blur, noise and shifts: it judges soft pictures too."""
    model = networks.Classifier().to(device)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        chosen = data.training_scenes(rng, CLASSIFIER.batch)
        images = data.degrade(data.to_tensor(data.pictures(chosen, rng)).to(device), rng)
        labels = torch.from_numpy(np.stack([scene.labels for scene in chosen])).to(device)
        return F.binary_cross_entropy_with_logits(model(images), labels) * len(scenes.CLASSES)

    model.train()
    fit(CLASSIFIER, model, loss_of, folder)
    return model.eval()


def train_clip(folder: Path, device: torch.device) -> nn.Module:
    """CLIP's symmetric contrastive loss between drawn scenes and their captions (Radford et al., 2021)."""
    tokens = networks.tokenizer(folder / "tokenizer")
    model = networks.clip(tokens).to(device)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        chosen = data.training_scenes(rng, CLIP.batch)
        images = data.degrade(data.to_tensor(data.pictures(chosen, rng)).to(device), rng) / 127.5 - 1
        image, text, scale = model(images, data.tokenize(tokens, [scene.caption for scene in chosen]).to(device))
        scores = scale.clamp(max=100) * image @ text.T
        # Two scenes with one caption are both right answers.
        captions = np.array([scene.caption for scene in chosen])
        same = torch.from_numpy(captions[:, None] == captions[None]).to(device).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2

    fit(CLIP, model, loss_of, folder)
    return model


def export_pipeline(folder: Path, target: Path) -> None:
    """Write the finished autoencoder, text encoder and UNet to `target`, a diffusers folder in half precision."""
    cpu = torch.device("cpu")
    vae, (tokens, text), unet = train_autoencoder(folder, cpu), train_text_encoder(folder, cpu), train_unet(folder, cpu)
    vae.register_to_config(scaling_factor=round(_unet_latents(folder, vae, cpu)[2], 5))
    pipe = networks.pipeline(vae=vae, text_encoder=text, tokenizer=tokens, unet=unet)
    pipe.to(dtype=torch.float16).save_pretrained(target, safe_serialization=True)


def _unet_latents(folder: Path, vae: "AutoencoderKL", device: torch.device) -> tuple[list[scenes.Scene], Tensor, float]:
    """The UNet's scenes, their latents, and 1 / their deviation."""
    with torch.autocast(device.type, torch.bfloat16):
        bank, latents = data.latents(UNET, UNET_SCENES, vae, folder, device)
    return bank, latents, 1 / latents.float().std().item()


STAGES: dict[str, Callable[[Path, torch.device], Any]] = {
    "text_encoder": train_text_encoder,
    "autoencoder": train_autoencoder,
    "unet": train_unet,
    "classifier": train_classifier,
    "clip": train_clip,
    "dit": train_dit.train_dit,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)} (default: all)")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="checkpoints (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--export", action="store_true", help=f"write the finished networks to {WEIGHTS}")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.stages if name not in STAGES]:
        parser.error(f"no stage {unknown[0]!r}; use {', '.join(STAGES)}")
    train(arguments.stages, arguments.folder, arguments.device, WEIGHTS if arguments.export else None)


if __name__ == "__main__":
    main()

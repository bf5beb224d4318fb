"""The recipe behind the committed weights: five networks, one after the other, each resumable.

    python -m optsd.models.shapes.train            # all stages, then the weights folder
    python -m optsd.models.shapes.train classifier # one stage

As in Stable Diffusion, the autoencoder and the text encoder are trained first and then frozen. The batch of a step
is a function of (stage, step) alone, so a run that was interrupted goes on as if it had not been.
"""

import argparse
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from optsd.models.shapes import WEIGHTS, networks, scenes

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DEFAULT_FOLDER = Path("build/shapes")
CHECKPOINT_EVERY = 250  # steps


@dataclass(frozen=True)
class Stage:
    """How one network is trained. `seed` also seeds its scenes: judges never see the generator's data."""

    name: str
    seed: int
    steps: int
    batch: int
    learning_rate: float
    ema: float = 0.0  # decay of the averaged weights that are kept; 0 keeps the last ones


AUTOENCODER = Stage("autoencoder", seed=11, steps=2500, batch=16, learning_rate=2e-3, ema=0.995)
TEXT_ENCODER = Stage("text_encoder", seed=12, steps=800, batch=64, learning_rate=1e-3)
UNET = Stage("unet", seed=13, steps=3000, batch=32, learning_rate=1e-3, ema=0.999)
CLASSIFIER = Stage("classifier", seed=21, steps=1500, batch=32, learning_rate=2e-3, ema=0.99)
CLIP = Stage("clip", seed=22, steps=500, batch=64, learning_rate=1e-3)

PLACES = ("left", "right", "top", "bottom", "middle")
LATENT_SCENES = 32768  # scenes whose latents the UNet is trained on
CAPTION_DROPOUT = 0.1  # the share of empty captions, for classifier-free guidance


def train(stages: list[str], folder: Path, device: str) -> None:
    """Train the named stages in `folder`, then write the weights of all that are finished."""
    torch.manual_seed(0)
    makers = {
        "text_encoder": train_text_encoder,
        "autoencoder": train_autoencoder,
        "unet": train_unet,
        "classifier": train_classifier,
        "clip": train_clip,
    }
    for name in stages or makers:
        makers[name](folder, torch.device(device))


def fit(
    stage: Stage,
    modules: nn.Module,
    loss_of: Callable[[int, np.random.Generator], Tensor],
    folder: Path,
) -> None:
    """Minimize `loss_of(step, rng)` with AdamW, warm-up and cosine decay; leaves the result in `modules`.

    Writes `<stage>.safetensors` when done and `<stage>.checkpoint.safetensors` on the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, checkpoint = folder / f"{stage.name}.safetensors", folder / f"{stage.name}.checkpoint.safetensors"
    if done.exists():
        load_model(modules, done)
        return
    parameters = dict(modules.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), stage.learning_rate, betas=(0.9, 0.99), fused=True)
    average = {name: tensor.detach().clone() for name, tensor in modules.state_dict().items()}
    first = _resume(checkpoint, modules, average, optimizer) if checkpoint.exists() else 0
    started = time.monotonic()
    for step in range(first, stage.steps):
        optimizer.param_groups[0]["lr"] = stage.learning_rate * _schedule(step, stage.steps)
        loss = loss_of(step, np.random.Generator(np.random.PCG64([stage.seed, step])))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        decay = min(stage.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in modules.state_dict().items():
                if tensor.is_floating_point():
                    average[name].lerp_(tensor, 1 - decay)
                else:
                    average[name].copy_(tensor)
        finished = step + 1
        if finished % 50 == 0:
            pace = (time.monotonic() - started) / (finished - first)
            print(
                f"{stage.name} {finished}/{stage.steps} loss {loss.item():.4f} {pace:.3f} s a step, "
                f"{pace * (stage.steps - finished) / 60:.0f} min left",
                flush=True,
            )
        if finished % CHECKPOINT_EVERY == 0 and finished < stage.steps:
            _save_checkpoint(checkpoint, finished, modules, average, optimizer)
    modules.load_state_dict(average)
    _save(average, done)
    checkpoint.unlink(missing_ok=True)


def train_autoencoder(folder: Path, device: torch.device) -> "AutoencoderKL":
    """Reconstruction (L1 + L2) with a faint pull of the latents towards a standard normal, as in SD."""
    model = networks.autoencoder().to(device)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        images = _to_tensor(_pictures(_scenes(rng, AUTOENCODER.batch), rng)).to(device) / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16):
            posterior = model.encode(images).latent_dist
            output = model.decode(posterior.sample(_generator(AUTOENCODER, step, device))).sample.float()
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
    counts = [*thing * len(PLACES), len(scenes.BACKGROUNDS)]
    heads = nn.Linear(networks.TEXT_WIDTH, sum(counts)).to(device)

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        chosen = _scenes(rng, TEXT_ENCODER.batch)
        ids = _tokenize(tokens, [scene.caption for scene in chosen]).to(device)
        targets = torch.tensor([_attributes(scene) for scene in chosen], device=device)
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
    bank, latents, scale = _latents(folder, vae, device)
    ids = _tokenize(tokens, [scene.caption for scene in bank])
    empty = _tokenize(tokens, [""])

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(len(bank), size=UNET.batch))
        captions = ids[rows]
        captions[torch.from_numpy(rng.random(UNET.batch) < CAPTION_DROPOUT)] = empty
        clean = latents[rows].to(device).float() * scale
        generator = _generator(UNET, step, device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        when = torch.randint(0, 1000, (UNET.batch,), generator=generator, device=device)
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
        chosen = _scenes(rng, CLASSIFIER.batch)
        images = _degrade(_to_tensor(_pictures(chosen, rng)).to(device), rng)
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
        chosen = _scenes(rng, CLIP.batch)
        images = _degrade(_to_tensor(_pictures(chosen, rng)).to(device), rng) / 127.5 - 1
        image, text, scale = model(images, _tokenize(tokens, [scene.caption for scene in chosen]).to(device))
        scores = scale.clamp(max=100) * image @ text.T
        # Two scenes with one caption are both right answers.
        captions = np.array([scene.caption for scene in chosen])
        same = torch.from_numpy(captions[:, None] == captions[None]).to(device).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2

    fit(CLIP, model, loss_of, folder)
    return model


def export(folder: Path, weights: Path = WEIGHTS) -> None:
    """Write the finished networks to `weights`, in half precision: what the project ships."""
    cpu = torch.device("cpu")
    vae, (tokens, text), unet = train_autoencoder(folder, cpu), train_text_encoder(folder, cpu), train_unet(folder, cpu)
    vae.register_to_config(scaling_factor=round(_latents(folder, vae, cpu)[2], 5))
    shutil.rmtree(weights, ignore_errors=True)
    pipe = networks.pipeline(vae=vae, text_encoder=text, tokenizer=tokens, unet=unet)
    pipe.to(dtype=torch.float16).save_pretrained(weights / "pipeline", safe_serialization=True)
    for name, model in (("classifier", train_classifier(folder, cpu)), ("clip", train_clip(folder, cpu))):
        state = {
            key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in model.state_dict().items()
        }
        _save(state, weights / f"{name}.safetensors")


def _scenes(rng: np.random.Generator, count: int) -> list[scenes.Scene]:
    """Scenes to train on: none of the held-out captions."""
    chosen: list[scenes.Scene] = []
    while len(chosen) < count:
        scene = scenes.sample_scene(rng)
        if not scene.held_out:
            chosen.append(scene)
    return chosen


def _pictures(chosen: list[scenes.Scene], rng: np.random.Generator) -> np.ndarray:
    return np.stack([scenes.render(scene, rng) for scene in chosen])


def _to_tensor(images: np.ndarray) -> Tensor:
    """N×H×W×3 uint8 -> N×3×H×W float32, still 0 to 255."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()


def _degrade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur half of the pictures, add noise to all of them, shift their brightness. 0 to 255 in and out."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    count, device = len(images), images.device
    images = torch.where(torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.5).to(device), blurred, images)
    strength = torch.from_numpy(rng.uniform(0, 16, (count, 1, 1, 1)).astype(np.float32)).to(device)
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(device)
    shift = torch.from_numpy(rng.uniform(-10, 10, (count, 3, 1, 1)).astype(np.float32)).to(device)
    return (images + strength * noise + shift).clamp(0, 255)


def _tokenize(tokens, captions: list[str]) -> Tensor:
    return tokens(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def _attributes(scene: scenes.Scene) -> list[int]:
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


def _latents(folder: Path, vae: "AutoencoderKL", device: torch.device) -> tuple[list[scenes.Scene], Tensor, float]:
    """The scenes that the UNet is trained on, their latents (N×4×16×16, half precision), and 1 / their deviation."""
    rng = np.random.Generator(np.random.PCG64([UNET.seed, 0]))
    bank = _scenes(rng, LATENT_SCENES)
    file = folder / "latents.safetensors"
    if not file.exists():
        chunks = []
        for start in range(0, len(bank), 128):
            images = _to_tensor(_pictures(bank[start : start + 128], rng)).to(device) / 127.5 - 1
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                chunks.append(vae.encode(images).latent_dist.mean.half().cpu())
            if start % 8192 == 0:
                print(f"latents {start}/{len(bank)}", flush=True)
        _save({"latents": torch.cat(chunks)}, file)
    latents = load_file(file)["latents"]
    return bank, latents, 1 / latents.float().std().item()


def _schedule(step: int, steps: int, warmup: int = 200) -> float:
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _generator(stage: Stage, step: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(stage.seed * 1_000_000 + step)


def _save(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write beside the target, then rename: an interrupted save leaves the last good file."""
    partial = file.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.replace(file)


def _save_checkpoint(file: Path, step: int, modules: nn.Module, average: dict, optimizer) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in modules.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor.cpu() for name, tensor in state.items()}
    _save(tensors, file, {"step": str(step)})


def _resume(file: Path, modules: nn.Module, average: dict, optimizer) -> int:
    """Restore what `_save_checkpoint` wrote; the number of steps already done."""
    with safe_open(file, "pt") as stored:
        step = int(stored.metadata()["step"])
    tensors = load_file(file)

    def part(prefix: str) -> Iterator[tuple[str, Tensor]]:
        return ((name.removeprefix(prefix), tensor) for name, tensor in tensors.items() if name.startswith(prefix))

    modules.load_state_dict(dict(part("model.")))
    for name, tensor in part("average."):
        average[name].copy_(tensor)
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part("optimizer."):
        index, key = name.split(".")
        states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    print(f"resumed at step {step} from {file}", flush=True)
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help="autoencoder, text_encoder, unet, classifier, clip (default: all)")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="checkpoints (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--export", action="store_true", help=f"write the finished networks to {WEIGHTS}")
    arguments = parser.parse_args()
    train(arguments.stages, arguments.folder, arguments.device)
    if arguments.export:
        export(arguments.folder)


if __name__ == "__main__":
    main()

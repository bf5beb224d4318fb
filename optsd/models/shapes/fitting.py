"""How any network of the recipe is fitted: one loop, resumable, in which a step is a function of its number alone."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

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
    falling: float = 1.0  # the share of the steps, the last ones, in which the learning rate falls to zero


def fit(
    stage: Stage,
    modules: nn.Module,
    loss_of: Callable[[int, np.random.Generator], Tensor],
    folder: Path,
) -> None:
    """Minimize `loss_of(step, rng)` with AdamW, warm-up and a cosine at the end; leaves the result in `modules`.

    Writes `<stage>.safetensors` when done and `<stage>.checkpoint.safetensors` on the way.
    """
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
        optimizer.param_groups[0]["lr"] = stage.learning_rate * _schedule(step, stage.steps, stage.falling)
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
    save(average, done)
    checkpoint.unlink(missing_ok=True)


def _schedule(step: int, steps: int, falling: float, warmup: int = 200) -> float:
    progress = max(0.0, 1 - (steps - step) / (falling * steps))
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))


def generator(stage: Stage, step: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(stage.seed * 1_000_000 + step)


def save(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write beside the target, then rename: an interrupted save leaves the last good file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.replace(file)


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in half precision where they are numbers, as weights are shipped."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _save_checkpoint(file: Path, step: int, modules: nn.Module, average: dict, optimizer) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in modules.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor.cpu() for name, tensor in state.items()}
    save(tensors, file, {"step": str(step)})


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

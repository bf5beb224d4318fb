"""The images of a variant: taken from the store, or drawn, with the same pixels whoever draws them."""

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import optsd
from optsd import outside
from optsd.errors import BadInput
from optsd.measure.pictures import check_pictures
from optsd.measure.seeds import fix_seeds, generators
from optsd.quality.pictures import Part, Pictures
from optsd.quality.store import Batch, Store
from optsd.records import Workload
from optsd.variants import against_eager

# A new part of the package counts as making images until it is named here.
_MAKES_NO_IMAGES = (
    "bench",
    "benching.py",
    "claims",
    "cli.py",
    "compare.py",
    "conftest_plugins",
    "data",
    "diverge.py",
    "doctor.py",
    "estimate",
    "generate.py",
    "init",
    "judge",
    "ledger.py",
    "measure",
    "metrics.py",
    "pytest_plugin.py",
    "quality",
    "quiet.py",
    "records.py",
    "report",
    "subjects.py",
    "terminals.py",
    "testing.py",
    "tune",
)
_MAKES_IMAGES_AFTER_ALL = ("measure/seeds.py", "quality/generate.py")


def generate(
    variant: str,
    workload: Workload,
    prompts: Sequence[str],
    weights: str,
    store: Store,
    build: Callable[[], Any],
    seeds: int = 1,
    say: Callable[[str], None] = lambda text: None,
    device: str = "",
) -> Pictures:
    """The variant's images for all prompts, for each of `seeds` seeds from `workload.seed` on.

    `weights` is the model's `fingerprint`; `build` gives the patched pipeline and is called only if an image is
    missing; `say` is told what is being done; `device` is where `build` puts it (`cuda:1`), where the workload does not
    tell. Returns seeds × prompts pictures, all of them stored. Several processes
    may do this at once, and share the work.
    """
    if not prompts or seeds < 1:
        raise BadInput("there is nothing to draw", "give at least one prompt and one seed")
    batches = [
        batch
        for seed in range(workload.seed, workload.seed + seeds)
        for batch in plan(variant, dataclasses.replace(workload, seed=seed), prompts, weights, device)
    ]
    pipe = None

    def make(batch: Batch) -> np.ndarray:
        nonlocal pipe
        if pipe is None:
            say(f"{variant}: building")
            fix_seeds()  # before: cuBLAS takes its workspace at its first product, and a technique may try one
            pipe = build()
            fix_seeds()
        say(f"{variant}: drawing batch {batches.index(batch) + 1} of {len(batches)}")
        return draw(pipe, batch)

    store.fill(batches, make)
    size, parts = workload.batch_size, []
    for batch in batches:
        count = min(size, len(prompts) - batch.recipe["first"])  # the last batch is filled up
        parts.append(Part(batch.key, count, partial(_stored, store, batch, count)))
    return Pictures(tuple(parts), (workload.height, workload.width))


def _stored(store: Store, batch: Batch, count: int) -> np.ndarray:
    return store.take(batch)[:count]


def plan(variant: str, workload: Workload, prompts: Sequence[str], weights: str, device: str = "") -> list[Batch]:
    """The work in batches of exactly `workload.batch_size`, the last one filled up with its last prompt.

    A batch's images depend on the whole batch, so its recipe holds all of its prompts.
    """
    size = workload.batch_size
    common = {
        "weights": weights,
        "variant": variant,
        "techniques": [f"{step!r}{outside.source_of(step)}" for step in against_eager(variant).steps],
        "workload": dataclasses.asdict(workload),
        "code": code_version(),
        "machine": machine(device or workload.device),
    }
    batches = []
    for first in range(0, len(prompts), size):
        texts = list(prompts[first : first + size])
        texts += texts[-1:] * (size - len(texts))
        batches.append(Batch({**common, "prompts": texts, "first": first}, size))
    return batches


def draw(pipe: Any, batch: Batch) -> np.ndarray:
    """Run the pipeline on one batch: N×H×W×3, uint8. Raises OptsdError where it gives numbers that are no image."""
    recipe = batch.recipe
    workload = recipe["workload"]
    images = pipe(
        recipe["prompts"],
        generator=generators(workload["seed"], recipe["first"], batch.count),
        num_inference_steps=workload["steps"],
        guidance_scale=workload["guidance"],
        height=workload["height"],
        width=workload["width"],
        output_type="np",
    ).images
    check_pictures(images, recipe["variant"])
    return (images * 255).round().astype(np.uint8)


def fingerprint(pipe: Any) -> str:
    """SHA-256 of a pipeline before it is patched: every component's configuration, vocabulary and weights."""
    import torch

    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode())

    for name, component in sorted(pipe.components.items()):
        config: Any = getattr(component, "config", None) or {}
        settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        # Where a model was loaded from does not change what it draws.
        add([name, type(component).__name__, {k: v for k, v in settings.items() if not k.startswith("_")}])
        if isinstance(component, torch.nn.Module):
            for key, tensor in sorted(component.state_dict().items()):
                add([key, str(tensor.dtype), list(tensor.shape)])
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif hasattr(component, "get_vocab"):
            add(component.get_vocab())
    return digest.hexdigest()


@cache
def code_version() -> str:
    """SHA-256 of the sources that make an image, and of the versions of the libraries under them."""
    root = Path(optsd.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(file for kind in ("*.py", "*.cpp", "*.h") for file in root.rglob(kind)):
        name = file.relative_to(root).as_posix()
        if name.split("/")[0] not in _MAKES_NO_IMAGES or name in _MAKES_IMAGES_AFTER_ALL:
            digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    for library in ("torch", "diffusers", "transformers", "flash-attn", "triton"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # the last two choose kernels where they are there
            digest.update(f"{library} {metadata.version(library)}".encode())
    return digest.hexdigest()


def machine(device: str) -> str:
    """What decides an image's last bits: the kind of processor, and on a CPU its threads."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    # The number of threads decides in which order a long sum is taken.
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"

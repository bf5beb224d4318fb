"""What the tests share. Nothing here imports torch before a test asks for it."""

import gc
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

pytest_plugins = ["pytester", "runs"]

# The same examples each time, however slow the machine and whichever tests run.
settings.register_profile(
    "any machine", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """Where a test names no device it means the CPU, on a machine with a GPU too: only `-m gpu` sees one."""
    if "gpu" not in (config.getoption("-m") or ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    """What torch and diffusers made when they were imported stays: the collector need not go through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def gpu() -> "torch.device":
    """The GPU of a test that is marked `gpu`; without one the test is skipped."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU is seen here: pytest tests -m gpu, on a machine that has one")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def the_same_chance():
    """A test draws the same numbers alone, after any other, and in any worker."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Where COCO's captions and photographs, and weights of metrics, lie beside a checkout. It may be missing."""
    return Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def coco_captions(shared: Path) -> Path:
    """COCO's `captions_val2017.json`; a test that needs it is skipped where it is not."""
    file = shared / "coco" / "annotations" / "captions_val2017.json"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    return file


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[], StableDiffusionPipeline]":
    """Make a new pipeline of the shipped model's architecture with seeded random weights, float32, on the CPU."""
    folder = tmp_path_factory.mktemp("untrained")

    def make() -> "StableDiffusionPipeline":
        import torch

        from optsd.models.shapes import networks

        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        tokens = networks.tokenizer(folder)
        pipe = networks.pipeline(
            unet=networks.unet().eval(),
            vae=networks.autoencoder().eval(),
            text_encoder=networks.text_encoder(tokens).eval(),
            tokenizer=tokens,
        )
        torch.random.set_rng_state(state)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="session")
def untrained_folder(untrained: "Callable[[], StableDiffusionPipeline]", tmp_path_factory) -> Path:
    """That pipeline as a diffusers folder: a `--model` that needs no trained weights."""
    folder = tmp_path_factory.mktemp("model")
    untrained().save_pretrained(folder)
    return folder

"""Small UNets of every family, pipelines to patch, and what a run gives. Seeded random weights, float32, CPU."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SMALL: dict[str, dict[str, Any]] = {
    # SD v1.5's shape is the shipped model's; these are what else the techniques must serve, at reduced width.
    "sd15": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
    },
    "sd21": {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
    },
    "no-mid": {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "mid_block_type": None,
        "only_cross_attention": (True, False),
    },
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Layers this small run faster on one thread, and bit-identical comparisons need one fixed order of sums."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_unet() -> Callable[..., Any]:
    """Make a UNet of a family of `SMALL`, with further configuration if asked for."""
    import torch
    from diffusers import UNet2DConditionModel

    def make(family: str = "sd15", **more: Any) -> UNet2DConditionModel:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            options = {
                "sample_size": 8,
                "block_out_channels": (32, 64),
                "layers_per_block": 2,
                "norm_num_groups": 8,
                "cross_attention_dim": 24,
            }
            return UNet2DConditionModel(**(options | SMALL[family] | more)).eval()

    return make


@pytest.fixture
def bare() -> Callable[[Any], Any]:
    """What a technique needs of a pipeline, around one UNet."""
    from diffusers import AutoencoderKL

    def make(unet: Any) -> Any:
        return SimpleNamespace(unet=unet, vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval())

    return make


@pytest.fixture
def denoise() -> Callable[..., Any]:
    """Run a UNet as a sampler does: falling timesteps, one text tensor, each output added to the next input."""
    import torch

    from optsd.optimizations.kernels import example_inputs
    from optsd.quantization.boundary import boundary_of

    def run(unet: Any, steps: int = 3, batch: int = 2, size: tuple[int, int] = (8, 8), seed: int = 0) -> torch.Tensor:
        noise = torch.Generator().manual_seed(seed)
        inputs = example_inputs(unet, batch, size)
        dtype = torch.float32 if boundary_of(unet) else unet.dtype  # what its callers have, whatever it has inside
        for name in ("sample", "encoder_hidden_states"):
            inputs[name] = torch.randn(inputs[name].shape, generator=noise).to(dtype)
        with torch.no_grad():
            for step in range(steps):
                timestep = torch.tensor(900 - 100 * step)
                output = unet(**inputs | {"timestep": timestep}, return_dict=False)[0]
                inputs["sample"] = inputs["sample"] - 0.3 * output
        return inputs["sample"]

    return run


@pytest.fixture
def paint(untrained: Any) -> Callable[..., Any]:
    """Run a pipeline on `count` seeded images, as B×3×H×W float32 in [0, 1]."""
    import torch

    def run(pipe: Any, count: int = 1, steps: int = 2, **options: Any) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
        defaults = {"prompt": ["a small red circle"] * count, "generator": generators, "guidance_scale": 5.0}
        return pipe(**(defaults | options), num_inference_steps=steps, output_type="pt").images.float()

    return run


@pytest.fixture
def pipe(untrained: Any) -> Any:
    return untrained()


@pytest.fixture(scope="session")
def row_of_document() -> Callable[[str, str, list[str] | dict[str, str]], None]:
    """A row of a table in docs/ must say what a test has found. OPTSD_REGENERATE=1 writes it, and fails.

    A dictionary has the cells of some columns; the others are left as they are.
    """

    def check(document: str, label: str, cells: list[str] | dict[str, str]) -> None:
        file = Path(__file__).parents[2] / "docs" / document
        lines = file.read_text(encoding="utf-8").splitlines()
        written = next((number for number, line in enumerate(lines) if line.startswith(f"| {label} |")), None)
        if isinstance(cells, dict):
            assert written is not None, f"{document} has no row {label}: make all of its columns first"
            head = max(number for number in range(written) if lines[number].startswith("| --- |")) - 1
            columns, before = ([cell.strip() for cell in lines[at].split("|")[2:-1]] for at in (head, written))
            assert set(cells) <= set(columns)
            cells = [cells.get(column, cell) for column, cell in zip(columns, before, strict=True)]
        row = f"| {label} | {' | '.join(cells)} |"
        if written is not None and lines[written] == row:
            return
        if os.environ.get("OPTSD_REGENERATE") != "1":
            pytest.fail(f"{document} has no row like this; run again with OPTSD_REGENERATE=1\n{row}")
        alike = [
            number for number, line in enumerate(lines) if line.startswith("|") and line.count("|") == row.count("|")
        ]
        last = max(alike)
        lines[last + 1 if written is None else written : last + 1 if written is None else written + 1] = [row]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        pytest.fail(f"{document}: this row was written anew; read it, then run again\n{row}")

    return check

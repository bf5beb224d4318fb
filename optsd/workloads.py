"""Presets, and the workload that the options ask for. Imports no torch."""

import re
from dataclasses import dataclass
from typing import Any

from optsd.errors import BadInput

DTYPES = ("float32", "float16", "bfloat16")
_SPELLINGS = {
    **{"fp32": "float32", "f32": "float32", "float": "float32", "single": "float32"},
    **{"fp16": "float16", "f16": "float16", "half": "float16", "bf16": "bfloat16"},
}


@dataclass(frozen=True)
class Preset:
    """How much is run. `size` None is the model's own."""

    steps: int
    guidance: float
    size: tuple[int, int] | None  # width, height in pixels
    batch_size: int
    rounds: int  # timed batches of each variant
    images: int  # for the quality metrics


PRESETS = {
    "smoke": Preset(steps=2, guidance=7.5, size=None, batch_size=1, rounds=2, images=4),
    "quick": Preset(steps=20, guidance=5.0, size=None, batch_size=4, rounds=6, images=32),
    # The guide's experiment: 50 steps, guidance 7.5, 512×512, batch 4, 1,000 images.
    "guide": Preset(steps=50, guidance=7.5, size=(512, 512), batch_size=4, rounds=6, images=1000),
}


def parse_size(text: str) -> tuple[int, int]:
    """`512` or `768x512` (width × height) in pixels. Raises BadInput unless both are positive multiples of 8."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise BadInput(f"--size {text} is no size", "write 512, or 768x512 for width × height")
    width, height = int(parts[0]), int(parts[-1])
    for pixels in (width, height):
        if pixels < 8 or pixels % 8:
            nearest = max(8, round(pixels / 8) * 8)
            raise BadInput(f"--size {text}: {pixels} is not a positive multiple of 8 pixels", f"try --size {nearest}")
    return width, height


def dtype_name(dtype: Any) -> str:
    """`auto` or one of `DTYPES`, of a name as people write it (`fp16`, `torch.bfloat16`) or a `torch.dtype`."""
    given = str(dtype).strip().lower().removeprefix("torch.")
    name = _SPELLINGS.get(given, given)
    if name not in ("auto", *DTYPES):
        raise BadInput(f"unknown dtype {str(dtype)!r}", f"use auto, {', '.join(DTYPES)}")
    return name


def device_name(device: Any) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N`, of such a name, a `torch.device`, or a GPU's number."""
    given = f"cuda:{device}" if isinstance(device, int) else str(device).strip().lower()
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", given):
        raise BadInput(f"unknown device {str(device)!r}", "use auto, cpu, cuda or cuda:N")
    return given


def check_seed(seed: int) -> None:
    """Raise BadInput for what is no seed of torch's: 64 bits without a sign."""
    at_least("--seed", seed, 0)
    if seed >= 2**64:
        raise BadInput(f"--seed {seed} is too large", f"give {2**64 - 1} or less")


def at_least(option: str, value: float, least: float) -> None:
    """Raise BadInput, naming the option, for a value below the least (NaN included)."""
    if not value >= least:
        raise BadInput(f"{option} {value:g} is too small", f"give {least:g} or more")

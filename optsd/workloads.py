"""Presets, and the workload that the options ask for. Imports no torch."""

from dataclasses import dataclass

from optsd.errors import BadInput


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


def default_preset(model: str) -> str:
    """`quick` for the shipped model; the guide's experiment for every other one."""
    return "quick" if model == "shapes" else "guide"


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


def at_least(option: str, value: float, least: float) -> None:
    """Raise BadInput, naming the option, for a value below the least (NaN included)."""
    if not value >= least:
        raise BadInput(f"{option} {value:g} is too small", f"give {least:g} or more")

"""The real pictures that FID and KID compare with: photographs of the prompts, read as untrusted files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from optsd.errors import NotFound

LEAST_PIXELS = 32  # of a side; smaller pictures say nothing about photographs
MAX_PIXELS = 64 * 2**20


@dataclass(frozen=True)
class Reference:
    """Pictures (N×H×W×3, uint8), and how many files were left out, by reason."""

    images: np.ndarray
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def note(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))


def read(folder: Path, names: Sequence[str], width: int, height: int) -> Reference:
    """The named pictures of a folder, cut to the middle and scaled (Lanczos) to width×height pixels.

    Grey pictures become RGB, transparency is laid on white; a file that is missing, damaged, no JPEG or PNG, or under
    32 pixels is left out and counted. Raises NotFound if fewer than two pictures remain.
    """
    images, skipped = [], Counter[str]()
    for name in names:
        image = read_image(folder, name, width, height)
        if isinstance(image, str):
            skipped[image] += 1
        else:
            images.append(image)
    if len(images) < 2:
        raise NotFound(
            f"{folder} holds {len(images)} of the prompts' {len(names)} photographs",
            "run `optsd coco fetch images`, or give COCO's folder with --coco",
        )
    return Reference(np.stack(images), skipped)


def read_image(folder: Path, name: str, width: int, height: int) -> np.ndarray | str:
    """One picture as height×width×3 uint8, or why it is left out: outside, missing, damaged, too small, too large."""
    if Path(name).name != name or not (folder / name).resolve().is_relative_to(folder.resolve()):
        return "outside the folder"
    try:
        with Image.open(folder / name, formats=["JPEG", "PNG"]) as opened:
            if min(opened.size) < LEAST_PIXELS:
                return "too small"
            if opened.width * opened.height > MAX_PIXELS:
                return "too large"
            rgba = opened.convert("RGBA")
    except FileNotFoundError:
        return "missing"
    except Image.DecompressionBombError:
        return "too large"
    except (OSError, SyntaxError, ValueError):
        return "damaged"
    white = Image.new("RGBA", rgba.size, "white")
    picture = Image.alpha_composite(white, rgba).convert("RGB")
    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))

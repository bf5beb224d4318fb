"""The real pictures that FID and KID compare with: photographs of the prompts, read as untrusted files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from optsd.errors import BadInput, NotFound
from optsd.quality.pictures import PART, Part, Pictures
from optsd.quality.readings import code_version, read_all
from optsd.quality.store import Reading, Store, hash_of

REASONS = ("outside the folder", "missing", "damaged", "too small", "too large")
LEAST_PIXELS = 32  # of a side; smaller pictures say nothing about photographs
MAX_PIXELS = 64 * 2**20


@dataclass(frozen=True)
class Reference:
    """Pictures (or N×H×W×3, uint8), and how many files were left out, by reason."""

    pictures: Pictures | np.ndarray
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def note(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))


def read(folder: Path, names: Sequence[str], width: int, height: int, store: Store | None = None) -> Reference:
    """The named pictures of a folder, cut to the middle and scaled (Lanczos) to width×height pixels.

    Grey pictures become RGB, transparency is laid on white; a file that is missing, damaged, no JPEG or PNG, or under
    32 pixels is left out and counted. Each file is read to see that; the store remembers it, so that it is done once.
    Raises NotFound if fewer than two pictures remain.
    """
    groups = [list(names[first : first + PART]) for first in range(0, len(names), PART)]
    readings = [_as_found(folder, group) for group in groups]

    def look(reading: Reading) -> dict[str, np.ndarray]:
        found = [read_image(folder, name, LEAST_PIXELS, LEAST_PIXELS) for name in groups[readings.index(reading)]]
        return {"left_out": np.array([REASONS.index(f) if isinstance(f, str) else -1 for f in found], np.int8)}

    parts, skipped = [], Counter[str]()
    for group, reading, arrays in zip(groups, readings, read_all(readings, look, store), strict=True):
        reasons = arrays["left_out"].tolist()
        skipped.update(REASONS[reason] for reason in reasons if reason >= 0)
        good = [name for name, reason in zip(group, reasons, strict=True) if reason < 0]
        if good:
            key = hash_of([reading.recipe, width, height])
            parts.append(Part(key, len(good), partial(_load, folder, good, width, height)))
    pictures = Pictures(tuple(parts), (height, width))
    if len(pictures) < 2:
        raise NotFound(
            f"{folder} holds {len(pictures)} of the prompts' {len(names)} photographs",
            "run `optsd coco fetch images`, or give COCO's folder with --coco",
        )
    return Reference(pictures, skipped)


def _as_found(folder: Path, names: list[str]) -> Reading:
    """Files as they are now: their names, sizes and times of change. A changed file is another one, and read again."""
    found: list[list[str | int]] = []
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError:
            found.append([name])
        else:
            found.append([name, status.st_size, status.st_mtime_ns])
    recipe = {"photographs": found, "folder": str(folder.resolve()), "reading": "photographs", "code": code_version()}
    return Reading({"pictures": hash_of(recipe), **recipe}, len(names))


def _load(folder: Path, names: list[str], width: int, height: int) -> np.ndarray:
    found = [read_image(folder, name, width, height) for name in names]
    if any(isinstance(image, str) for image in found):
        raise BadInput(f"photographs in {folder} change while they are read", "run again when nobody writes there")
    return np.stack(found)


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

"""The pictures of a run: the contact sheet, and which of them the page carries inside itself."""

import base64
import io
import textwrap
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from optsd.files import write_atomically
from optsd.records import Results
from optsd.report.tables import all_variants, index

MOST_BYTES = 5_000_000
"""Of all pictures inside the page, as base64. With plots and tables it stays under 10 MB."""

PAIRED = ("lpips", "lpips_shapes", "ssim", "psnr_db")
"""Distances to the baseline's own picture, which are shown where there is a reading a picture."""

_PLANS = ((8, 4), (6, 3), (4, 2), (2, 1), (1, 1), (1, 0))  # (prompts that every variant shows, its worst)
_MOST_EMBEDDED = 400  # pictures
_MOST_PIXELS = 64 * 2**20
INLINE_EDGE = 320  # pixels; larger pictures are made smaller for the page
_SHEET_PROMPTS = 8
_INK, _MUTED, _PAPER = (35, 39, 46), (100, 107, 118), (255, 255, 255)


@dataclass(frozen=True)
class Picture:
    variant: str
    index: int
    prompt: str
    seed: int
    file: str
    worst: int = 0  # 1 for the picture of its variant that lost most, 2 for the next, 0 for those without a rank


@dataclass
class Album:
    """The pictures by (variant, index), and what each lost against the baseline's where that was measured."""

    folder: Path
    pictures: dict[tuple[str, int], Picture]
    lost: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)

    @cached_property
    def variants(self) -> list[str]:
        return list(self._by_variant)

    @cached_property
    def indices(self) -> list[int]:
        return sorted({number for _, number in self.pictures})

    @cached_property
    def _by_variant(self) -> dict[str, list[Picture]]:
        found: dict[str, list[Picture]] = {}
        for picture in self.pictures.values():
            found.setdefault(picture.variant, []).append(picture)
        return found

    def numbers(self, variant: str) -> list[int]:
        """The indices of a variant's pictures, in order."""
        return sorted(picture.index for picture in self._by_variant.get(variant, ()))

    def worst(self, variant: str, count: int) -> list[int]:
        """The indices of the pictures that lost most against the baseline's, as the run ranked them."""
        ranked = [picture for picture in self._by_variant.get(variant, ()) if picture.worst]
        return [picture.index for picture in sorted(ranked, key=lambda row: (row.worst, row.index))[:count]]

    def open(self, variant: str, number: int) -> Image.Image | None:
        """The picture, RGB; None where its file is missing, damaged, outside the run's folder, or too large."""
        picture = self.pictures.get((variant, number))
        file = inside(self.folder, picture.file) if picture else None
        if file is None:
            return None
        try:
            with Image.open(file, formats=["PNG", "JPEG", "WEBP"]) as opened:
                return None if opened.width * opened.height > _MOST_PIXELS else opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None


def album(results: Results, folder: Path) -> Album:
    """Sort the image rows of a run. A row without variant and file is passed over."""
    pictures: dict[tuple[str, int], Picture] = {}
    for place, row in enumerate(results.images):
        variant, file = row.get("variant"), row.get("file")
        if isinstance(variant, str) and isinstance(file, str):
            number = _whole(row.get("index"), place)
            picture = Picture(
                variant,
                number,
                str(row.get("prompt", "")),
                _whole(row.get("seed"), 0),
                file,
                _whole(row.get("worst"), 0),
            )
            pictures.setdefault((variant, number), picture)
    found = Album(folder, pictures)
    rows = index(results)
    for variant in found.variants:
        numbers = found.numbers(variant)
        for name in PAIRED:
            readings = rows[variant, name].samples if (variant, name) in rows else ()
            if readings and len(readings) == len(numbers):
                for number, value in zip(numbers, readings, strict=True):
                    found.lost.setdefault((variant, number), {})[name] = value
    return found


def inside(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder; None where the name leads out of it, or to no file."""
    try:
        file = (folder / name).resolve()
        return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
    except (OSError, ValueError):  # a name with a null character, or far too long
        return None


@dataclass(frozen=True)
class Embedded:
    """What the page carries inside itself. `shared`: the prompts that every variant shows; `worst`: each one's own."""

    shared: tuple[int, ...] = ()
    worst: dict[str, tuple[int, ...]] = field(default_factory=dict)
    urls: dict[tuple[str, int], str] = field(default_factory=dict)  # (variant, index) -> data URL
    smaller: bool = False  # than the files: they are too large to be carried as they are


def embed(found: Album) -> Embedded:
    """The first prompts of every variant, and the pairs that lost most; fewer of both where they would be too large."""
    encoded: dict[tuple[str, int], str | None] = {}
    smaller = False
    for shared_count, worst_count in _PLANS:
        shared = tuple(found.indices[:shared_count])
        others = [variant for variant in found.variants if variant != "baseline"]
        worst = {variant: tuple(found.worst(variant, worst_count)) for variant in others}
        keys = {(variant, number): None for variant in found.variants for number in shared}
        keys |= {
            (owner, number): None
            for variant, numbers in worst.items()
            for number in numbers
            for owner in (variant, "baseline")
        }
        if len(keys) > _MOST_EMBEDDED:
            continue
        for key in keys:
            if key not in encoded:
                picture = found.open(*key)
                encoded[key] = _data_url(picture) if picture else None
                smaller = smaller or (picture is not None and max(picture.size) > INLINE_EDGE)
        urls = {key: url for key in keys if (url := encoded[key])}
        if sum(map(len, urls.values())) <= MOST_BYTES:
            return Embedded(shared, worst, urls, smaller)
    return Embedded()


def contact_sheet(results: Results, folder: Path) -> Path | None:
    """Write contact-sheet.png: prompts across, variants down, same seeds. None where no picture can be read."""
    found = album(results, folder)
    numbers = found.indices[:_SHEET_PROMPTS]
    names = [variant for variant in all_variants(results) if variant in found.variants]
    opened = {(name, number): found.open(name, number) for name in names for number in numbers}
    sizes = [picture.size for picture in opened.values() if picture]
    if not sizes:
        return None
    cell = min(max(max(max(size) for size in sizes), 128), 192)
    sheet = _draw_sheet(found, names, numbers, opened, cell)
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    target = folder / "contact-sheet.png"
    write_atomically(target, stream.getvalue())
    return target


def _draw_sheet(
    found: Album, names: list[str], numbers: list[int], opened: dict[tuple[str, int], Image.Image | None], cell: int
) -> Image.Image:
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    gap, head = 6, 66
    left = 20 + int(max(font.getlength(name) for name in names))
    across, down = len(numbers) * (cell + gap), len(names) * (cell + gap)
    sheet = Image.new("RGB", (left + across + gap, head + down + gap), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, number in enumerate(numbers):
        prompt = next((row.prompt for (_, place), row in found.pictures.items() if place == number), "")
        wrapped = textwrap.wrap(prompt, max(int(cell / 5.6), 8))
        lines = wrapped if len(wrapped) <= 4 else [*wrapped[:3], f"{wrapped[3]} …"]
        pen.multiline_text((left + column * (cell + gap), 6), "\n".join(lines), _MUTED, small, spacing=3)
    for line, name in enumerate(names):
        top = head + line * (cell + gap)
        pen.text((10, top + cell / 2), name, _INK, font, anchor="lm")
        for column, number in enumerate(numbers):
            corner, picture = (left + column * (cell + gap), top), opened[name, number]
            if picture is None:
                pen.rectangle((*corner, corner[0] + cell, corner[1] + cell), outline=_MUTED)
                pen.text((corner[0] + cell / 2, top + cell / 2), "no picture", _MUTED, small, anchor="mm")
            else:
                sheet.paste(_fitted(picture, cell), corner)
    return sheet


def _fitted(picture: Image.Image, edge: int) -> Image.Image:
    """With its longer side `edge`. Small pictures keep hard pixels: nothing is smoothed that the model drew."""
    scale = edge / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _data_url(picture: Image.Image) -> str:
    """WebP, without loss where the picture is small enough to be carried as it is."""
    stream = io.BytesIO()
    if max(picture.size) <= INLINE_EDGE // 2:
        picture.save(stream, "WEBP", lossless=True, quality=100, method=4)
    else:
        smaller = _fitted(picture, INLINE_EDGE) if max(picture.size) > INLINE_EDGE else picture
        smaller.save(stream, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise

"""Prompt sets of the field, each with the protocol that its figures are published under, read from the published files.

A set's file is pinned by its hash, or by that of its content: any other file of the same form is refused.
"""

import csv
import hashlib
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optsd.data import captions, downloads, prompts
from optsd.data.captions import Annotation, Captions
from optsd.data.prompts import Prompt
from optsd.errors import BadInput, NotFound

_MAX_FIELD = 4096  # characters of a prompt, or of a link; a longer one is no row of these files


@dataclass(frozen=True)
class PromptSet:
    """`file` and `photographs` are relative to COCO's folder; a set without photographs has no FID and no KID.

    `sha256` is that of the file's bytes (`.tsv`) or content (`.json`, see `Captions`); "": not pinned yet.
    """

    name: str
    count: int
    file: str
    photographs: str
    sha256: str
    read: Callable[[Path], list[Prompt]]
    source: str
    protocol: str
    published: str = ""

    def prompts(self, folder: Path) -> list[Prompt]:
        """All of them. Raises NotFound or BadInput for a missing file, and for any but the published one."""
        made = self.read(folder / self.file)
        if len(made) != self.count:
            raise BadInput(f"{folder / self.file} gives {len(made):,} prompts, not {self.count:,}", self.remedy)
        return made

    @property
    def remedy(self) -> str:
        return f"give {Path(self.file).name} as {self.source}"


def mlperf_rows(text: str, place: str) -> list[Prompt]:
    """MLPerf's captions_source.tsv: id, image_id, caption, height, width, file_name, coco_url; quoted as CSV is."""
    columns = ("id", "image_id", "caption", "height", "width", "file_name", "coco_url")
    found = []
    for line, row in _table(text, place, columns, "caption", quoted=True):
        if not row["image_id"].isdecimal():
            raise BadInput(f"{place}, row {line}: image_id {row['image_id'][:80]!r} is no number", _ROW)
        if not captions.PLAIN_NAME.fullmatch(row["file_name"]):
            raise BadInput(f"{place}, row {line}: {row['file_name'][:80]!r} is no plain file name", _ROW)
        found.append(Prompt(row["caption"], int(row["image_id"]), row["file_name"]))
    return found


def parti_rows(text: str, place: str) -> list[Prompt]:
    """PartiPrompts.tsv: Prompt, Category, Challenge, Note; a quotation mark is one. There are no pictures."""
    columns = ("Prompt", "Category", "Challenge", "Note")
    rows = _table(text, place, columns, "Prompt", quoted=False)
    return [Prompt(row["Prompt"], index, "") for index, (_, row) in enumerate(rows)]


def one_caption_each(rows: Captions, count: int, seed: int) -> list[Prompt]:
    """`count` images in random order, each with one of its captions at random, as written but for spaces."""
    rng = random.Random(seed)  # only random(), whose stream Python guarantees in every version
    by_image: dict[int, list[Annotation]] = {}
    for row in sorted(rows.annotations, key=lambda row: row.id):
        by_image.setdefault(row.image_id, []).append(row)
    drawn = []
    for _, own in sorted(by_image.items()):
        place, which = rng.random(), rng.random()
        drawn.append((place, own[int(which * len(own))]))
    chosen = [row for _, row in sorted(drawn, key=lambda each: each[0])[:count]]
    return [Prompt(" ".join(row.caption.split()), row.image_id, rows.files[row.image_id]) for row in chosen]


def _table(
    text: str, place: str, columns: tuple[str, ...], needed: str, quoted: bool
) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row and its number, the first after the heading being 2. Raises BadInput, naming the row."""
    how: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=how, strict=True)
    seen = False
    try:
        for line, row in enumerate(reader, start=1):
            if line == 1:
                if tuple(row) != columns:
                    raise BadInput(f"{place} has other columns than {', '.join(columns)}", _ROW)
                seen = True
                continue
            if len(row) != len(columns) or max(map(len, row)) > _MAX_FIELD or not row[columns.index(needed)].strip():
                raise BadInput(f"{place}, row {line} is not {len(columns)} fields of text", _ROW)
            yield line, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise BadInput(f"{place} is no table of tabs ({error})", _ROW) from error
    if not seen:
        raise BadInput(f"{place} is empty", _ROW)


_ROW = "take the published file, unchanged"


def _pinned(name: str, rows: Callable[[str, str], list[Prompt]]) -> Callable[[Path], list[Prompt]]:
    def read(file: Path) -> list[Prompt]:
        own = SETS[name]
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"there is no {file}", own.remedy) from None
        except OSError as error:
            raise BadInput(f"cannot read {file} ({error.strerror})", own.remedy) from error
        if hashlib.sha256(content).hexdigest() != own.sha256:
            raise BadInput(f"{file} is not the published {file.name}: its SHA-256 differs", own.remedy)
        return rows(content.decode("utf-8"), str(file))  # its hash says that it is UTF-8

    return read


def _coco(name: str) -> Callable[[Path], list[Prompt]]:
    def read(file: Path) -> list[Prompt]:
        own, rows = SETS[name], captions.read(file)
        if own.sha256 and rows.sha256 != own.sha256:
            raise BadInput(f"{file} is not the published {file.name}: its content differs", own.remedy)
        if len(rows.files) < own.count:
            raise BadInput(f"{file} has {len(rows.files):,} images, not {own.count:,} or more", own.remedy)
        return one_caption_each(rows, own.count, prompts.SEED)

    return read


_CROP = "photographs cut to the middle and scaled (Lanczos) to the pictures' size"

SETS = {
    each.name: each
    for each in (
        PromptSet(
            "standard",
            prompts.COUNT,
            downloads.CAPTIONS,
            downloads.PHOTOGRAPHS,
            prompts.shipped_manifest().captions_sha256,
            prompts.coco,
            "COCO 2017's annotations have it (optsd coco fetch captions)",
            f"this project's own: captions made into prompts; reference: the 1,000 photographs, {_CROP}",
        ),
        PromptSet(
            "coco2017",
            5000,
            downloads.CAPTIONS,
            downloads.PHOTOGRAPHS,
            prompts.shipped_manifest().captions_sha256,
            _coco("coco2017"),
            "COCO 2017's annotations have it (optsd coco fetch captions)",
            f"one caption an image as written, chosen with seed 42; reference: the 5,000 photographs, {_CROP}",
        ),
        PromptSet(
            "coco2014",
            30000,
            "annotations/captions_val2014.json",
            "val2014",
            "",
            _coco("coco2014"),
            "COCO 2014's annotations_trainval2014.zip has it",
            f"30,000 images at random and one caption of each, seed 42; reference: their photographs, {_CROP}",
        ),
        PromptSet(
            "mlperf",
            5000,
            "captions_source.tsv",
            "val2014",
            "2eeb95637b30fe5af26dd644bafa7affe4e5472ad0bda32d0feb1bd261280d5e",
            _pinned("mlperf", mlperf_rows),
            "MLCommons' inference repository has it (text_to_image/coco2014/captions)",
            "MLPerf: SDXL, Euler, 20 steps, guidance 8, 1024×1024, a negative prompt, one latent for all prompts; "
            f"Inception-v3 on photographs as they are; CLIP times 100. Here: prompts and photographs alone, {_CROP}",
            "MLPerf Inference, SDXL: FID 23.011 to 23.950 and CLIP 31.686 to 31.813 are a valid run",
        ),
        PromptSet(
            "parti",
            1632,
            "PartiPrompts.tsv",
            "",
            "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
            _pinned("parti", parti_rows),
            "Google's parti repository has it",
            "no reference: CLIP and the paired metrics alone",
        ),
    )
}


def find(name: str) -> PromptSet:
    """Raises BadInput, which lists the sets, for a name that is none."""
    if name not in SETS:
        raise BadInput(f"no prompt set {name!r}", f"choose from {', '.join(SETS)}")
    return SETS[name]

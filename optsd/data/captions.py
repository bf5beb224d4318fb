"""A caption file of COCO's format (https://cocodataset.org/#format-data), read as the hostile input that it may be."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optsd.errors import BadInput, NotFound

MAX_FILE_BYTES = 200 * 2**20  # COCO's largest caption file, of the training set, has 92 MB
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_REMEDY = "take captions_val2017.json from COCO's annotations_trainval2017.zip (optsd coco fetch captions)"


@dataclass(frozen=True)
class Annotation:
    id: int
    image_id: int
    caption: str


@dataclass(frozen=True)
class Captions:
    """`files` maps an image's id to its file name, a plain name without folders; annotations keep the file's order."""

    files: dict[int, str]
    annotations: tuple[Annotation, ...]

    @property
    def sha256(self) -> str:
        """Of every image and caption, in the order of their ids: the same however the JSON is laid out."""
        lines = [f"{image} {name}" for image, name in sorted(self.files.items())]
        lines += [
            f"{row.id} {row.image_id} {json.dumps(row.caption)}" for row in sorted(self.annotations, key=lambda r: r.id)
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read(file: Path) -> Captions:
    """Read and check a caption file. Raises NotFound or BadInput, naming the file, the row and the remedy."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise BadInput(f"{file} has {file.stat().st_size / 2**20:.0f} MiB, too much for captions", _REMEDY)
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no caption file {file}", _REMEDY) from None
    except OSError as error:
        raise BadInput(f"cannot read {file} ({error.strerror})", _REMEDY) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 (byte {error.start})", _REMEDY) from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is no JSON ({error})", _REMEDY) from error
    return check(data, str(file))


def check(data: Any, source: str) -> Captions:
    """The captions in parsed JSON, every row of it checked. Raises BadInput, naming `source` and the row."""
    if not isinstance(data, dict):
        raise BadInput(f"{source} is no caption file: its top level is no object", _REMEDY)
    files: dict[int, str] = {}
    for place, row in _rows(data, "images", source):
        number, name = _field(row, "id", int, place), _field(row, "file_name", str, place)
        if not PLAIN_NAME.fullmatch(name):
            raise BadInput(f"{place}: {name[:80]!r} is no plain file name", _REMEDY)
        if number in files:
            raise BadInput(f"{place}: image id {number} is there twice", _REMEDY)
        files[number] = name
    annotations: dict[int, Annotation] = {}
    for place, row in _rows(data, "annotations", source):
        annotation = Annotation(
            _field(row, "id", int, place), _field(row, "image_id", int, place), _field(row, "caption", str, place)
        )
        if annotation.id in annotations:
            raise BadInput(f"{place}: caption id {annotation.id} is there twice", _REMEDY)
        if annotation.image_id not in files:
            raise BadInput(f"{place}: there is no image {annotation.image_id}", _REMEDY)
        annotations[annotation.id] = annotation
    return Captions(files, tuple(annotations.values()))


def _rows(data: dict, key: str, source: str) -> list[tuple[str, dict]]:
    rows = data.get(key)
    if not isinstance(rows, list):
        raise BadInput(f"{source} is no caption file: it has no list {key!r}", _REMEDY)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadInput(f"{source}: {key}[{index}] is no object", _REMEDY)
    return [(f"{source}: {key}[{index}]", row) for index, row in enumerate(rows)]


def _field(row: dict, key: str, kind: type, place: str) -> Any:
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        problem = f"has no {key!r}" if key not in row else f"has {key!r} of type {type(value).__name__}"
        raise BadInput(f"{place} {problem}", _REMEDY)
    return value

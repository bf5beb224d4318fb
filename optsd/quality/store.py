"""Where pictures, and what was read in them, are kept: under the hash of everything that made them, with checksums.

A batch of images is the unit of work, because images depend on the batch that they were made in. An item's folder
appears with all of its files or not at all, so that a run that was killed leaves nothing half done; where a place
cannot promise that (an object store), an item that is not whole counts as none.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import safetensors.numpy
from filelock import FileLock, Timeout
from PIL import Image, PngImagePlugin
from safetensors import SafetensorError

from optsd.errors import BadInput

MAX_PIXELS = 64 * 2**20  # of one stored image; a file that claims more is damaged
Value = TypeVar("Value")
Kind = TypeVar("Kind", bound="Item")


class Item(Protocol[Value]):
    """What a store can keep. `key` is the hash of everything that makes it, `folder` where it lies in the store."""

    @property
    def key(self) -> str: ...

    @property
    def folder(self) -> str: ...

    @property
    def names(self) -> Sequence[str]:
        """The files that it needs, to be read again."""

    def pack(self, value: Value) -> dict[str, bytes]:
        """The files of a value, those of `names` and what explains them. Raises BadInput for what is no such value."""

    def unpack(self, files: dict[str, bytes]) -> Value | None:
        """The value in these files (those of `names`); None if it is not whole, or not this item's."""


@dataclass(frozen=True)
class Batch:
    """Everything that makes these images, as JSON-able values. Equal recipes give equal images."""

    recipe: dict[str, Any]
    count: int

    @property
    def key(self) -> str:
        return hash_of(self.recipe)

    @property
    def folder(self) -> str:
        return f"{self.key[:2]}/{self.key}"

    @property
    def names(self) -> list[str]:
        return [f"{index:04d}.png" for index in range(self.count)]

    def pack(self, images: np.ndarray) -> dict[str, bytes]:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != self.count:
            raise BadInput(
                f"{images.dtype} images of shape {images.shape} are no batch of {self.count}",
                f"give {self.count}×height×width×3, uint8",
            )
        files = {
            name: to_png(image, key=self.key, index=str(index), sha256=checksum(image))
            for index, (name, image) in enumerate(zip(self.names, images, strict=True))
        }
        return files | {"recipe.json": json.dumps(self.recipe, indent=2, sort_keys=True).encode()}

    def unpack(self, files: dict[str, bytes]) -> np.ndarray | None:
        images = [_image(files[name], self.key, index) for index, name in enumerate(self.names)]
        whole = [image for image in images if image is not None]
        return np.stack(whole) if len(whole) == self.count and len({image.shape for image in whole}) == 1 else None


@dataclass(frozen=True)
class Reading:
    """What a network said of `count` pictures. `recipe["pictures"]` is their key; it lies beside them."""

    recipe: dict[str, Any]
    count: int

    names = ("reading.safetensors",)

    @property
    def key(self) -> str:
        return hash_of(self.recipe)

    @property
    def folder(self) -> str:
        pictures = self.recipe["pictures"]
        return f"{pictures[:2]}/{pictures}.{self.recipe['reading']}-{self.key[:16]}"

    def pack(self, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
        if any(len(array) != self.count for array in arrays.values()):
            shapes = {name: array.shape for name, array in arrays.items()}
            raise BadInput(f"arrays of {shapes} are no reading of {self.count} pictures", "give a row for each")
        recipe = json.dumps(self.recipe, sort_keys=True)
        header = {"recipe": recipe, "sha256": _checksum_of(arrays)}
        return {self.names[0]: safetensors.numpy.save(arrays, header)}

    def unpack(self, files: dict[str, bytes]) -> dict[str, np.ndarray] | None:
        content = files[self.names[0]]
        try:
            arrays = safetensors.numpy.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        except (SafetensorError, ValueError, KeyError):
            return None
        expected = {"recipe": json.dumps(self.recipe, sort_keys=True), "sha256": _checksum_of(arrays)}
        return arrays if header == expected and all(len(array) == self.count for array in arrays.values()) else None


@dataclass
class Store:
    """Items under `folder`. `made` and `damaged` count those that this process made, and found damaged."""

    folder: Path
    made: int = field(default=0, init=False)
    damaged: int = field(default=0, init=False)

    def get(self, item: Item[Value]) -> Value | None:
        """The item's value, or None where it is not stored, not whole, or not this item's."""
        folder = self.folder / item.folder
        if not folder.is_dir():
            return None
        try:
            value = item.unpack({name: (folder / name).read_bytes() for name in item.names})
        except OSError:
            value = None
        self.damaged += value is None
        return value

    def put(self, item: Item[Value], value: Value) -> None:
        """Store a value: written beside its place and moved there in one step. A damaged one is replaced."""
        files, target = item.pack(value), self.folder / item.folder
        target.parent.mkdir(parents=True, exist_ok=True)
        # A fixed name, for the holder of the item's lock alone: what a killed run left there is cleared here.
        partial = target.with_name(f".partial-{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            for name, content in files.items():
                _write(partial / name, content)
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self.made += 1

    def fill(self, items: Sequence[Kind], make: Callable[[Kind], Any]) -> None:
        """Make, with `make`, the items that are not stored.

        Processes that share the folder share the work: each takes the items that no other is making.
        """
        missing = [item for item in items if self.get(item) is None]
        for wait in (False, True):  # first what is free, then what others had begun, should they have been killed
            for item in missing:
                with self._claimed(item, wait) as claimed:
                    if claimed and self.get(item) is None:
                        self.put(item, make(item))

    def take(self, item: Item[Value]) -> Value:
        """The value of an item that was filled. Raises BadInput if it has gone since."""
        value = self.get(item)
        if value is None:
            raise BadInput(f"{self.folder / item.folder} vanishes or changes", "use a store that nothing clears")
        return value

    @contextmanager
    def _claimed(self, item: Item, wait: bool) -> Iterator[bool]:
        """Hold the item's lock, which the system releases when its holder is killed; False if another holds it."""
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{item.key}.lock", timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def hash_of(recipe: Any) -> str:
    """SHA-256 of JSON-able values."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, allow_nan=False).encode()).hexdigest()


def checksum(image: np.ndarray) -> str:
    """SHA-256 of an image's shape and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def to_png(image: np.ndarray, **texts: str) -> bytes:
    """An H×W×3 uint8 image as PNG, with texts in its header."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(f"optsd:{name}", text)
    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG", pnginfo=info, compress_level=4)
    return stream.getvalue()


def _checksum_of(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _image(content: bytes, key: str, index: int) -> np.ndarray | None:
    """A stored image, or None if it is damaged, or was made by another recipe."""
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as opened:
            if opened.mode != "RGB" or opened.width * opened.height > MAX_PIXELS:
                return None
            image = np.asarray(opened)
            texts = {name: opened.info.get(f"optsd:{name}") for name in ("key", "index", "sha256")}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return image if texts == {"key": key, "index": str(index), "sha256": checksum(image)} else None

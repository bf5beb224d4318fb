"""Where pictures, and what was read in them, are kept: under the hash of everything that made them, with checksums.

A batch of images is the unit of work, because images depend on the batch that they were made in. An item's folder
appears with all of its files or not at all, so that a run that was killed leaves nothing half done; where a place
cannot promise that (an object store), an item that is not whole counts as none.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import safetensors.numpy
from filelock import FileLock, Timeout
from PIL import Image, PngImagePlugin
from safetensors import SafetensorError

from optsd.errors import BadInput
from optsd.files import cannot_write, check_writable, home

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
    def count(self) -> int:
        """How many pictures it is, or is about."""

    @property
    def work(self) -> str:
        """What is done to make it."""

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

    work = "drawing"

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
    def work(self) -> str:
        return self.recipe["reading"]

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


@dataclass(frozen=True)
class Step:
    """Of filling a store, for who watches: `count` of `total` pictures were made, in seconds; or were there before."""

    work: str
    filling: str  # the same in every process that fills the same items
    total: int
    count: int
    seconds: float | None = None
    node: str = ""  # of another machine


@dataclass
class Store:
    """Items under `folder`: a path, or the URL of a folder that fsspec knows (`s3://bucket/folder`).

    `made` and `damaged` count the items that this process made, and found damaged. `watch` is told of each step.
    """

    folder: Path | str
    watch: Callable[[Step], None] = lambda step: None
    made: int = field(default=0, init=False)
    damaged: int = field(default=0, init=False)

    def get(self, item: Item[Value]) -> Value | None:
        """The item's value, or None where it is not stored, not whole, or not this item's."""
        files = self._place.read(item.folder, item.names)
        if files is None:
            return None
        value = item.unpack(files) if len(files) == len(item.names) else None
        self.damaged += value is None
        return value

    def put(self, item: Item[Value], value: Value) -> None:
        """Store a value. A damaged one is replaced."""
        self._place.write(item.folder, item.pack(value))
        self.made += 1

    def fill(self, items: Sequence[Kind], make: Callable[[Kind], Any]) -> None:
        """Make, with `make`, the items that are not stored.

        Processes of one machine, and of all machines that share a folder, share the work: each takes the items that no
        other is making. Machines that share an object store alone may make an item twice, and store the same.
        """
        missing, step = self._missing(items)
        for wait in (False, True):  # first what is free, then what others had begun, should they have been killed
            for item in missing:
                with _claimed(self._place.locks / f"{item.key}.lock", wait) as claimed:
                    if claimed and self.get(item) is None:
                        began = time.monotonic()
                        self.put(item, make(item))
                        self.watch(replace(step, count=item.count, seconds=time.monotonic() - began))

    def _missing(self, items: Sequence[Kind]) -> tuple[list[Kind], Step]:
        """Those that are not stored; and how a step of making them begins."""
        missing = [item for item in items if self.get(item) is None]
        total = sum(item.count for item in items)
        work = items[0].work if items else ""
        step = Step(work, hash_of([item.key for item in items]), total, total - sum(item.count for item in missing))
        self.watch(step)
        return missing, step

    def take(self, item: Item[Value]) -> Value:
        """The value of an item that was filled. Raises BadInput if it has gone since."""
        value = self.get(item)
        if value is None:
            raise BadInput(f"{self.folder}/{item.folder} vanishes or changes", "use a store that nothing clears")
        return value

    @cached_property
    def _place(self) -> "Disk | ObjectStore":
        return ObjectStore(self.folder) if is_url(self.folder) else Disk(Path(self.folder))


@dataclass(frozen=True)
class Disk:
    """Files in a folder that processes, and machines, can share."""

    root: Path

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    def read(self, folder: str, names: Sequence[str]) -> dict[str, bytes] | None:
        """Those of the files that can be read, or None where there is no such folder."""
        if not (self.root / folder).is_dir():
            return None
        found = {}
        for name in names:
            with suppress(OSError):
                found[name] = (self.root / folder / name).read_bytes()
        return found

    def write(self, folder: str, files: dict[str, bytes]) -> None:
        """Write beside the place and move there in one step."""
        try:
            self._write(self.root / folder, files)
        except OSError as error:  # the disk is full, or no longer ours to write to
            raise cannot_write(self.root / folder, error) from error

    def _write(self, target: Path, files: dict[str, bytes]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A fixed name, for the holder of the item's lock alone: what a killed run left there is cleared here.
        aside = target.with_name(f".partial-{target.name}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            for name, content in files.items():
                _write(aside / name, content)
            shutil.rmtree(target, ignore_errors=True)
            aside.replace(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


class ObjectStore:
    """Objects under a URL. A folder of them cannot appear in one step: who reads one checks that it is whole."""

    def __init__(self, url: Path | str) -> None:
        import fsspec

        self.url = str(url).rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            name = self.url.split("://")[0]
            raise BadInput(
                f"no object store of kind {name}:// ({error})", "install what it needs: s3fs for s3"
            ) from error

    @property
    def locks(self) -> Path:
        """On this machine: an object store has no locks that the death of their holder releases."""
        return home() / "locks" / hash_of(self.url)[:16]

    def read(self, folder: str, names: Sequence[str]) -> dict[str, bytes] | None:
        """Those of the objects that are there, or None where none is."""
        paths = {f"{self._root}/{folder}/{name}": name for name in names}
        answers = self._reaching(lambda: self._files.cat(list(paths), on_error="return"))
        found = {}
        for path, name in paths.items():
            answer = answers.get(path, answers.get(path.lstrip("/")))
            if isinstance(answer, bytes):
                found[name] = answer
            elif isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                self._unreachable(answer)
        return found or None

    def write(self, folder: str, files: dict[str, bytes]) -> None:
        """Upload; each object appears whole or not at all."""
        for name, content in files.items():
            self._reaching(partial(self._files.pipe_file, f"{self._root}/{folder}/{name}", content))

    def _reaching(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 - each protocol has errors of its own
            self._unreachable(error)

    def _unreachable(self, error: Exception) -> NoReturn:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        remedy = "see that it can be reached and written; the same command goes on where this run was"
        raise BadInput(f"the store {self.url} fails ({reason})", remedy) from error


def is_url(place: Path | str) -> bool:
    return "://" in str(place)


@contextmanager
def _claimed(file: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock, which the system releases when its holder is killed; False if another holds it."""
    check_writable(file.parent, "image store")
    lock = FileLock(file, timeout=-1 if wait else 0)
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

"""Where generated images are kept: each under the hash of everything that made it, each with its checksum.

A batch of images is the unit of work, because images depend on the batch that they were made in. Its folder appears
with all of its images or not at all, so that a run that was killed leaves nothing half done.
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
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image, PngImagePlugin

from optsd.errors import BadInput
from optsd.files import cannot_write, check_writable

MAX_PIXELS = 64 * 2**20  # of one stored image; a file that claims more is damaged


@dataclass(frozen=True)
class Batch:
    """Everything that makes these images, as JSON-able values. Equal recipes give equal images."""

    recipe: dict[str, Any]
    count: int

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True, allow_nan=False).encode()).hexdigest()


@dataclass
class Store:
    """Images under `folder`. `made` and `damaged` count the batches that this process made, and found damaged."""

    folder: Path
    made: int = field(default=0, init=False)
    damaged: int = field(default=0, init=False)

    def get(self, batch: Batch) -> np.ndarray | None:
        """The batch's images (N×H×W×3, uint8), or None where they are not stored, not whole, or not this batch's."""
        folder = self._folder(batch)
        if not folder.is_dir():
            return None
        images = [_read(folder / f"{index:04d}.png", batch.key, index) for index in range(batch.count)]
        whole = [image for image in images if image is not None]
        if len(whole) < batch.count or len({image.shape for image in whole}) != 1:
            self.damaged += 1
            return None
        return np.stack(whole)

    def put(self, batch: Batch, images: np.ndarray) -> None:
        """Store a batch: written beside its place and moved there in one step. A damaged one is replaced."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != batch.count:
            raise BadInput(
                f"{images.dtype} images of shape {images.shape} are no batch of {batch.count}",
                f"give {batch.count}×height×width×3, uint8",
            )
        target = self._folder(batch)
        try:
            self._put(target, batch, images)
        except OSError as error:
            raise cannot_write(target, error) from error
        self.made += 1

    def _put(self, target: Path, batch: Batch, images: np.ndarray) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A fixed name, for the holder of the batch's lock alone: what a killed run left there is cleared here.
        partial = target.with_name(f".partial-{batch.key}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            for index, image in enumerate(images):
                _write(partial / f"{index:04d}.png", image, batch.key, index)
            (partial / "recipe.json").write_text(json.dumps(batch.recipe, indent=2, sort_keys=True), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def ensure(self, batches: Sequence[Batch], make: Callable[[Batch], np.ndarray]) -> Iterator[np.ndarray]:
        """The images of every batch, in order; those that are not stored are made with `make`.

        Processes that share the folder share the work: each takes the batches that no other is making.
        """
        missing = [batch for batch in batches if self.get(batch) is None]
        for wait in (False, True):  # first what is free, then what others had begun, should they have been killed
            for batch in missing:
                with self._claimed(batch, wait) as claimed:
                    if claimed and self.get(batch) is None:
                        self.put(batch, make(batch))
        for batch in batches:
            images = self.get(batch)
            if images is None:
                raise BadInput(f"images in {self._folder(batch)} vanish or change", "use a store that nothing clears")
            yield images

    @contextmanager
    def _claimed(self, batch: Batch, wait: bool) -> Iterator[bool]:
        """Hold the batch's lock, which the system releases when its holder is killed; False if another holds it."""
        locks = self.folder / "locks"
        check_writable(locks, "image store")
        lock = FileLock(locks / f"{batch.key}.lock", timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _folder(self, batch: Batch) -> Path:
        return self.folder / batch.key[:2] / batch.key


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


def _write(file: Path, image: np.ndarray, key: str, index: int) -> None:
    with file.open("wb") as stream:
        stream.write(to_png(image, key=key, index=str(index), sha256=checksum(image)))
        stream.flush()
        os.fsync(stream.fileno())


def _read(file: Path, key: str, index: int) -> np.ndarray | None:
    """A stored image, or None if its file is missing, damaged, or was made by another recipe."""
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            if opened.mode != "RGB" or opened.width * opened.height > MAX_PIXELS:
                return None
            image = np.asarray(opened)
            texts = {name: opened.info.get(f"optsd:{name}") for name in ("key", "index", "sha256")}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return image if texts == {"key": key, "index": str(index), "sha256": checksum(image)} else None

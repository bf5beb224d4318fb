"""What networks read in pictures, read once: kept in the store beside the pictures, or thrown away where there is none.

A reading depends on a part's pictures, on the network and on nothing else: so it is the same whoever computes it,
whatever was stored before. Features, which are large, are handed on as a `Table`: rows that stay on disk.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from optsd.errors import BadInput
from optsd.files import home
from optsd.metrics import MAX_PSNR_DB
from optsd.quality import pixels
from optsd.quality.features import Networks
from optsd.quality.pictures import Part, Pictures
from optsd.quality.store import Reading, Store, checksum

Read = Callable[[Part], dict[str, np.ndarray]]
_WITHOUT_NETWORK = ("pixels", "looks")
_SOURCES = ("backbones.py", "features.py", "pixels.py", "reference.py")
_LIBRARIES = (
    *("torch", "torchvision", "torch-fidelity", "lpips", "open_clip_torch", "timm", "transformers"),
    *("numpy", "scipy", "pillow"),
)


class Table:
    """N×D numbers in a file that is gone when this is: rows are appended in blocks, and read as a slice or by index."""

    def __init__(self) -> None:
        home().mkdir(parents=True, exist_ok=True)  # not the system's temporary files, which may lie in memory
        self._file = TemporaryFile(dir=home())  # noqa: SIM115 - it is closed, and gone, with the table
        self._count, self._row = 0, np.dtype((np.float32, (0,)))

    @property
    def shape(self) -> tuple[int, int]:
        return self._count, self._row.shape[0]

    def __len__(self) -> int:
        return self._count

    def append(self, block: np.ndarray) -> None:
        """Add N×D numbers, which are kept in float32."""
        if self._count and block.shape[1:] != self._row.shape:
            raise BadInput(f"features of shapes {self._row.shape} and {block.shape[1:]}", "read all with one network")
        self._row = np.dtype((np.float32, block.shape[1:]))
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(block, np.float32).data)
        self._count += len(block)

    def __getitem__(self, rows: "slice | np.ndarray") -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self._count)
            if step == 1:
                return self._read(start, max(stop - start, 0))
            rows = np.arange(start, stop, step)
        return np.concatenate([self._read(int(row), 1) for row in rows]) if len(rows) else self._read(0, 0)

    def _read(self, first: int, count: int) -> np.ndarray:
        self._file.seek(first * self._row.itemsize)
        found = np.frombuffer(self._file.read(count * self._row.itemsize), np.float32)
        return found.reshape(count, *self._row.shape)


@dataclass(frozen=True)
class Readings:
    """What `networks` read in pictures. Raises what the networks raise where their weights are missing."""

    networks: Networks
    store: Store | None = None
    say: Callable[[str], None] = lambda text: None

    def features(self, pictures: Pictures) -> tuple[Table, Table]:
        """N×D features for FID and KID, N×C class logits for the Inception Score."""

        def read(part: Part) -> dict[str, np.ndarray]:
            return dict(zip(("features", "logits"), self.networks.features(part.load()), strict=True))

        found = Table(), Table()
        for arrays in self._each("features", [({}, part, read) for part in pictures.parts]):
            found[0].append(arrays["features"])
            found[1].append(arrays["logits"])
        return found

    def embeddings(self, pictures: Pictures) -> Table:
        """N×D numbers: each picture's CLIP embedding, of length 1, for CMMD."""
        return self._table("embeddings", pictures)

    def dinov2(self, pictures: Pictures) -> Table:
        """N×1024 features. The networks are of `PhotographNetworks`."""
        return self._table("dinov2", pictures)

    def _table(self, name: str, pictures: Pictures) -> Table:
        def read(part: Part) -> dict[str, np.ndarray]:
            return {name: getattr(self.networks, name)(part.load())}

        found = Table()
        for arrays in self._each(name, [({}, part, read) for part in pictures.parts]):
            found.append(arrays[name])
        return found

    def agreement(self, pictures: Pictures, texts: Sequence[str]) -> np.ndarray:
        """The cosine between each picture's and its text's CLIP embedding: N values."""
        work: list[tuple[dict, Part, Read]] = []
        first = 0
        for part in pictures.parts:
            own = list(texts[first : first + part.count])
            work.append(({"texts": own}, part, partial(self._agreement, own)))
            first += part.count
        return np.concatenate([arrays["cosine"] for arrays in self._each("agreement", work)])

    def _agreement(self, texts: list[str], part: Part) -> dict[str, np.ndarray]:
        return {"cosine": self.networks.agreement(part.load(), texts)}

    def distances(self, pictures: Pictures, others: Pictures) -> np.ndarray:
        """The perceptual distance of each picture to its counterpart: N values."""

        def read(images: np.ndarray, counterparts: np.ndarray) -> dict[str, np.ndarray]:
            return {"distance": self.networks.distances(images, counterparts)}

        nothing = {"distance": 0.0}
        return np.concatenate([a["distance"] for a in self._pairs("distances", pictures, others, read, nothing)])

    def pixels(self, pictures: Pictures, others: Pictures) -> dict[str, np.ndarray]:
        """N values each: `equal` (is the picture its counterpart, pixel for pixel?), `ssim` and `psnr_db`."""

        def read(images: np.ndarray, counterparts: np.ndarray) -> dict[str, np.ndarray]:
            return {
                "equal": (images == counterparts).all((1, 2, 3)).astype(np.uint8),
                "ssim": pixels.ssim(images, counterparts),
                "psnr_db": pixels.psnr_db(images, counterparts),
            }

        nothing = {"equal": 1, "ssim": 1.0, "psnr_db": MAX_PSNR_DB}
        found = list(self._pairs("pixels", pictures, others, read, nothing))
        return {name: np.concatenate([arrays[name] for arrays in found]) for name in nothing}

    def looks(self, pictures: Pictures) -> dict[str, np.ndarray]:
        """`flat` (is the picture one colour?), N values, and `digest`, the SHA-256 of its pixels, N×32 bytes."""

        def read(part: Part) -> dict[str, np.ndarray]:
            images = part.load()
            digests = [np.frombuffer(bytes.fromhex(checksum(image)), np.uint8) for image in images]
            return {"flat": (images == images[:, :1, :1]).all((1, 2, 3)).astype(np.uint8), "digest": np.stack(digests)}

        found = list(self._each("looks", [({}, part, read) for part in pictures.parts]))
        return {name: np.concatenate([arrays[name] for arrays in found]) for name in ("flat", "digest")}

    def _pairs(
        self, name: str, pictures: Pictures, others: Pictures, read: Callable, nothing: dict[str, float]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Read each part beside its counterpart. The same pictures are not read: `nothing` is what they differ by."""

        def pair(other: Part, part: Part) -> dict[str, np.ndarray]:
            if part.key == other.key:
                return {each: np.full(part.count, value) for each, value in nothing.items()}
            return read(part.load(), other.load())

        parts = zip(pictures.parts, others.parts, strict=True)
        return self._each(name, [({"against": other.key}, part, partial(pair, other)) for part, other in parts])

    def _each(self, name: str, work: list[tuple[dict, Part, Read]]) -> Iterator[dict[str, np.ndarray]]:
        by = [] if name in _WITHOUT_NETWORK else self.networks.made_by(name)
        common = {"reading": name, "by": by, "code": code_version()}
        readings = [
            Reading({"pictures": part.key, "count": part.count, **common, **more}, part.count) for more, part, _ in work
        ]
        how = {
            reading.key: (place, *row[1:]) for place, (reading, row) in enumerate(zip(readings, work, strict=True), 1)
        }

        def make(reading: Reading) -> dict[str, np.ndarray]:
            place, part, read = how[reading.key]
            self.say(f"{name}: {place} of {len(readings)}")
            return read(part)

        yield from read_all(readings, make, self.store)


def read_all(
    readings: Sequence[Reading], make: Callable[[Any], dict[str, np.ndarray]], store: Store | None
) -> Iterator[dict[str, np.ndarray]]:
    """The readings in order: from the store, which is filled first; or made, where there is none."""
    if store is None:
        yield from map(make, readings)
        return
    store.fill(readings, make)
    for reading in readings:
        yield store.take(reading)


@cache
def code_version() -> str:
    """SHA-256 of the sources that read pictures, of the versions of the libraries under them, and of the processor."""
    from optsd.quality.generate import machine

    folder, digest = Path(__file__).parent, hashlib.sha256()
    for name in _SOURCES:
        digest.update((folder / name).read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {metadata.version(library)}".encode())
    digest.update(machine("cpu").encode())
    return digest.hexdigest()

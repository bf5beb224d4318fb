"""A set of pictures that need not be in memory: parts, each loaded when it is looked at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from optsd.quality.store import checksum, hash_of

PART = 32  # pictures, where nothing else says in which parts they come


@dataclass(frozen=True)
class Part:
    """Some pictures of a set. Only equal pictures have the same `key`; `load` gives count×H×W×3, uint8."""

    key: str
    count: int
    load: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size (height, width), in order."""

    parts: tuple[Part, ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, images: "Pictures | np.ndarray") -> "Pictures":
        """Those of an array in memory, N×H×W×3, uint8."""
        if isinstance(images, Pictures):
            return images
        pieces = [images[first : first + PART] for first in range(0, len(images), PART)]
        parts = [Part(hash_of(checksum(piece)), len(piece), partial(np.asarray, piece)) for piece in pieces]
        return cls(tuple(parts), images.shape[1:3])

    def __len__(self) -> int:
        return sum(part.count for part in self.parts)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each picture, H×W×3."""
        for part in self.parts:
            yield from part.load()

"""The pictures of subjects that are no variants. None is kept from run to run: what made it is not known."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optsd.measure.pictures import check_pictures
from optsd.measure.seeds import noise_seeds
from optsd.quality.pictures import Part, Pictures
from optsd.quality.store import checksum, hash_of
from optsd.records import Workload
from optsd.subjects import Folder

if TYPE_CHECKING:
    from optsd.measure.guest import Guest


def draw(
    guest: "Guest",
    workload: Workload,
    prompts: Sequence[str],
    seeds: int,
    folder: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Pictures:
    """Seeds × prompts pictures of a callable, in batches of the workload's size; they lie in `folder`.

    The last batch is filled up with its last prompt, as a variant's is. Raises OptsdError where one is no picture.
    """
    parts: list[Part] = []
    name, size = guest.subject.name, workload.batch_size
    for seed in range(workload.seed, workload.seed + seeds):
        for first in range(0, len(prompts), size):
            texts = list(prompts[first : first + size])
            count = len(texts)
            say(f"{name}: drawing batch {len(parts) + 1} of {seeds * -(-len(prompts) // size)}")
            made = guest.draw(texts + texts[-1:] * (size - count), noise_seeds(seed, first, size)).pictures[:count]
            check_pictures(made / 255.0, name)
            file = folder / f"{len(parts)}.npy"
            np.save(file, made)
            # By what they show: whoever drew them, they read the same.
            parts.append(Part(hash_of(checksum(made)), count, partial(_load, file)))
    return Pictures(tuple(parts), (workload.height, workload.width))


def found(folder: Folder, workload: Workload, prompts: Sequence[str], seeds: int) -> Pictures:
    """Seeds × prompts pictures of a folder, in the parts that the baseline's come in.

    Raises BadInput where one is missing, or is none of this size.
    """
    height, width, size = workload.height, workload.width, workload.batch_size
    parts = []
    for seed in range(workload.seed, workload.seed + seeds):
        made = folder.pictures(prompts, [seed], height, width)
        pieces = [made[first : first + size] for first in range(0, len(made), size)]
        parts += [Part(hash_of(checksum(piece)), len(piece), partial(np.asarray, piece)) for piece in pieces]
    return Pictures(tuple(parts), (height, width))


def _load(file: Path) -> np.ndarray:
    return np.load(file, allow_pickle=False)

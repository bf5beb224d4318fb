"""Which tile of the GPU's int8 product is the fastest for a shape: tried when the shape is first met, and kept.

Sums of integers are exact: the tile decides how long a product takes, and no bit of it. What was found is kept in
`$OPTSD_HOME/tiles`, a file for each kind of GPU and version of Triton.
"""

import functools
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from optsd import files
from optsd.errors import BadInput

REPEATS, QUEUED = 3, 10  # of a tile: the fastest of so many times, each of so many calls


class Tile(NamedTuple):
    """Rows and columns of the result that one block computes, inputs at a time, and how."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int  # how many loads are under way at a time


TILES = (
    Tile(128, 128, 64, 8, 4),
    Tile(128, 64, 64, 4, 4),
    Tile(128, 64, 128, 4, 4),
    Tile(64, 128, 128, 4, 4),
    Tile(64, 64, 128, 4, 4),
)
"""All but the first are, with `HOPPER`, the fastest of 17 for SD v1.5's shapes on an H200.

The figures: reports/nvidia-h200/tiles.json. None spills registers on any GPU that is
compiled for in `tests/quantization/test_triton_compiles.py`.
"""
HOPPER = Tile(128, 128, 64, 4, 4)
"""In place of the first one on compute capability 9.0; 8.0, 8.9 and 10.0 spill registers with it."""
SMALL = Tile(64, 64, 64, 8, 3)
"""What serves anything anywhere."""

_found: dict[tuple[str, tuple[int, ...]], Tile] = {}
_lock = threading.Lock()


def choose(
    device: torch.device, positions: int, outputs: int, channels: int, taps: int, run: Callable[[Tile], None]
) -> Tile:
    """The tile for that product; `run` multiplies with the one that it is given."""
    if device.type != "cuda":
        return SMALL
    major, minor = torch.cuda.get_device_capability(device)
    tried = suited(channels, 10 * major + minor if torch.version.hip is None else "gfx")
    if not tried:
        return SMALL
    rows = 1 << max(positions - 1, 0).bit_length()  # another number of pictures is not another question
    key = (_kind(device.index or 0), (rows, outputs, channels, taps))
    if key not in _found:
        if torch.cuda.is_current_stream_capturing():  # nothing can be timed
            return tried[0] if rows >= 4096 else SMALL
        with _lock:
            _found.update(_read(key[0]) | _found)
            if key not in _found:
                _found[key] = min(tried, key=lambda tile: _duration(tile, run))
                _write(key[0])
    return _found[key]


def suited(channels: int, architecture: int | str) -> tuple[Tile, ...]:
    """What is tried on a GPU of that compute capability (90 is Hopper), or of AMD's, for so many inputs a tap."""
    first = HOPPER if architecture == 90 else TILES[0]
    return tuple(tile for tile in (first, *TILES[1:]) if channels % tile.depth == 0)


def _duration(tile: Tile, run: Callable[[Tile], None]) -> float:
    from triton.runtime.errors import OutOfResources

    try:
        run(tile)
    except OutOfResources:  # this GPU's blocks have less memory
        return float("inf")
    # Recorded, so that launching, which takes longer than a small product, takes no part in it.
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(QUEUED):
                run(tile)
        finally:
            graph.capture_end()
        times = [_milliseconds(graph.replay) for _ in range(REPEATS)]
    torch.cuda.current_stream().wait_stream(stream)
    return min(times)


def _milliseconds(run: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


@functools.cache
def _kind(index: int) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name(index)).strip("-").lower()
    return f"{name}-triton-{version('triton')}"


def _file(kind: str) -> Path:
    return files.home() / "tiles" / f"{kind}.json"


def _read(kind: str) -> dict[tuple[str, tuple[int, ...]], Tile]:
    """What an earlier process has found; what is no tile of today's is found anew."""
    try:
        kept = json.loads(_file(kind).read_text(encoding="utf-8"))
        found = {tuple(map(int, shape.split("x"))): Tile(*tile) for shape, tile in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {(kind, shape): tile for shape, tile in found.items() if tile in (HOPPER, *TILES)}


def _write(kind: str) -> None:
    kept = {"x".join(map(str, shape)): tile for (of, shape), tile in sorted(_found.items()) if of == kind}
    with suppress(BadInput):  # nothing can be kept there: found anew next time
        files.write_atomically(_file(kind), json.dumps(kept, indent=1) + "\n")

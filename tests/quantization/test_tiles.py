"""Which tile is taken, with a stand-in for the GPU that would time them."""

import json
from pathlib import Path

import pytest
import torch

from optsd.quantization import tiles
from optsd.quantization.tiles import HOPPER, SMALL, TILES, Tile

GPU = torch.device("cuda", 0)
SHAPE = (4096, 640, 640, 9)


@pytest.fixture
def timed(monkeypatch, tmp_path: Path) -> list[Tile]:
    """The tiles that were timed, of which the last one is the fastest, on a GPU that is not there."""
    seen: list[Tile] = []

    def duration(tile: Tile, run: object) -> float:
        seen.append(tile)
        return 1 / len(seen)

    monkeypatch.setenv("OPTSD_HOME", str(tmp_path))
    monkeypatch.setattr(tiles, "_found", {})
    monkeypatch.setattr(tiles, "_duration", duration)
    monkeypatch.setattr(tiles, "_kind", lambda index: "a-gpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return seen


def take(shape: tuple[int, int, int, int] = SHAPE, device: torch.device = GPU) -> Tile:
    return tiles.choose(device, *shape, run=lambda tile: None)


def test_a_shape_is_tried_once_and_kept_for_other_processes(timed, tmp_path: Path, monkeypatch) -> None:
    assert take() == TILES[-1]
    assert timed == list(TILES)
    assert take() == take((3000, *SHAPE[1:])) == TILES[-1]  # as many rows, rounded
    monkeypatch.setattr(tiles, "_found", {})
    assert take() == TILES[-1]
    assert len(timed) == len(TILES)
    assert json.loads((tmp_path / "tiles" / "a-gpu.json").read_text()) == {"4096x640x640x9": list(TILES[-1])}
    take((64, *SHAPE[1:]))
    assert len(timed) == 2 * len(TILES)


@pytest.mark.parametrize(
    "kept", ["", "[]", '{"4096x640x640x9": [1, 2]}', '{"a": 5}', '{"4096x640x640x9": [1,1,1,1,1]}']
)
def test_a_file_that_is_damaged_or_older_is_found_anew(kept, timed, tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "a-gpu.json").write_text(kept)
    assert take() == TILES[-1]
    assert timed == list(TILES)


def test_without_a_place_to_keep_them_they_are_found_all_the_same(timed, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path / "file"))
    assert take() == TILES[-1]


def test_nothing_is_timed_while_a_graph_is_recorded(timed, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert take() == TILES[0]
    assert take((64, *SHAPE[1:])) == SMALL
    assert timed == []


def test_a_tile_divides_the_inputs(timed) -> None:
    take((4096, 320, 320, 9))
    assert {tile.depth for tile in timed} == {64}
    assert take((4096, 320, 4, 9)) == SMALL
    assert take(device=torch.device("cpu")) == SMALL


def test_hopper_has_one_of_its_own() -> None:
    assert HOPPER in tiles.suited(128, 90)
    for other in (80, 86, 89, 100, 120, "gfx"):
        assert HOPPER not in tiles.suited(128, other)

"""A store gives back exactly what was made by exactly this recipe, or nothing."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from optsd.errors import BadInput
from optsd.quality.store import Batch, Reading, Store

# Draws batches slowly, from the recipe alone; each finished batch of the run is a line of the log.
WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from optsd.quality.store import Batch, Store
folder, log, count, pause = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
def make(batch):
    time.sleep(pause)
    with log.open("a") as stream:
        stream.write(f"{batch.recipe['first']}\\n")
    rng = np.random.default_rng(batch.recipe["first"])
    return rng.integers(0, 256, (batch.count, 64, 64, 3), dtype=np.uint8)
Store(folder).fill([Batch({"first": first}, 4) for first in range(count)], make)
"""


def _batch(**recipe) -> Batch:
    return Batch({"variant": "baseline", "prompts": ["a", "b", "c"], **recipe}, 3)


def _images(seed: int = 0, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 24, 3), dtype=np.uint8)


def _files(store: Store, batch: Batch) -> list[Path]:
    return sorted((store.folder / batch.folder).glob("*.png"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_was_put_is_what_is_got(store: Store) -> None:
    assert store.get(_batch()) is None
    store.put(_batch(), _images())
    np.testing.assert_array_equal(store.get(_batch()), _images())
    assert (store.made, store.damaged) == (1, 0)


def test_every_part_of_the_recipe_counts(store: Store) -> None:
    store.put(_batch(), _images())
    for change in ({"variant": "int8"}, {"prompts": ["a", "b", "d"]}, {"seed": 1}, {"steps": 2.0}):
        assert store.get(_batch(**change)) is None


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "missing", "grey", "rgba", "1x1", "pixel", "text", "a folder"]
)
def test_a_damaged_image_is_found_and_made_again(store: Store, damage: str) -> None:
    store.put(_batch(), _images())
    file = _files(store, _batch())[1]
    opened = Image.open(file)
    picture = opened.copy()
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "missing":
        file.unlink()
    elif damage == "grey":
        picture.convert("L").save(file)
    elif damage == "rgba":
        picture.convert("RGBA").save(file)
    elif damage == "1x1":
        picture.resize((1, 1)).save(file)
    elif damage == "pixel":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for name, value in opened.info.items():
            info.add_text(name, value)
        picture.putpixel((3, 3), (1, 2, 3))
        picture.save(file, pnginfo=info)
    elif damage == "text":
        file.write_bytes(b"no image at all")
    else:
        file.unlink()
        file.mkdir()
    assert store.get(_batch()) is None
    assert store.damaged == 1
    store.fill([_batch()], lambda batch: _images())
    np.testing.assert_array_equal(store.take(_batch()), _images())
    np.testing.assert_array_equal(store.get(_batch()), _images())


def test_an_image_of_another_recipe_is_never_taken(store: Store) -> None:
    store.put(_batch(), _images())
    store.put(_batch(seed=1), _images(1))
    shutil.copy(_files(store, _batch(seed=1))[0], _files(store, _batch())[0])
    assert store.get(_batch()) is None
    store.put(_batch(), _images())
    shutil.copy(_files(store, _batch())[0], _files(store, _batch())[1])
    assert store.get(_batch()) is None


@pytest.mark.parametrize(
    "images",
    [_images(count=2), _images().astype(np.float32), _images()[..., :1], _images()[0], _images()[..., [0] * 4]],
)
def test_what_is_no_batch_of_images_is_refused(store: Store, images: np.ndarray) -> None:
    with pytest.raises(BadInput, match="are no batch of 3; give 3×height×width×3, uint8"):
        store.put(_batch(), images)


def test_a_batch_that_failed_leaves_nothing(store: Store, monkeypatch) -> None:
    written: list[Path] = []

    def fail(file: Path, *rest) -> None:
        written.append(file)
        if len(written) == 2:
            raise OSError("disk full")
        file.write_bytes(b"x")

    monkeypatch.setattr("optsd.quality.store._write", fail)
    with pytest.raises(BadInput, match=r"cannot write .* \(disk full\); make room"):
        store.put(_batch(), _images())
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []


def test_a_store_that_is_cleared_meanwhile_is_an_error(store: Store) -> None:
    store.fill([_batch()], lambda batch: _images())
    shutil.rmtree(store.folder / _batch().key[:2])
    with pytest.raises(BadInput, match="vanishes or changes; use a store that nothing clears"):
        store.take(_batch())


def _reading(**recipe) -> Reading:
    return Reading({"pictures": _batch().key, "reading": "features", **recipe}, 3)


def _arrays() -> dict[str, np.ndarray]:
    return {"features": np.arange(12, dtype=np.float32).reshape(3, 4), "logits": np.ones((3, 2))}


def test_a_reading_lies_beside_its_pictures_and_is_theirs_alone(store: Store) -> None:
    store.put(_batch(), _images())
    store.put(_reading(), _arrays())
    assert (store.folder / _reading().folder).parent == (store.folder / _batch().folder).parent
    found = store.get(_reading())
    assert found.keys() == _arrays().keys()
    for name, array in _arrays().items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    for change in ({"pictures": "0" * 64}, {"reading": "pixels"}, {"by": ["other weights"]}):
        assert store.get(_reading(**change)) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "another's", "no header", "huge header"])
def test_a_damaged_reading_is_found_and_made_again(store: Store, damage: str) -> None:
    store.put(_reading(), _arrays())
    file = store.folder / _reading().folder / "reading.safetensors"
    content = file.read_bytes()
    if damage == "another's":
        store.put(_reading(by="x"), _arrays())
        content = (store.folder / _reading(by="x").folder / "reading.safetensors").read_bytes()
    damaged = {
        "truncated": content[:-3],
        "empty": b"",
        "bit": content[:-1] + bytes([content[-1] ^ 1]),
        "another's": content,
        "no header": safetensors.numpy.save(_arrays()),
        "huge header": (2**62).to_bytes(8, "little") + content[8:],
    }
    file.write_bytes(damaged[damage])
    assert store.get(_reading()) is None
    assert store.damaged == 1
    store.fill([_reading()], lambda reading: _arrays())
    np.testing.assert_array_equal(store.take(_reading())["features"], _arrays()["features"])


def test_a_reading_has_a_row_for_each_picture(store: Store) -> None:
    with pytest.raises(BadInput, match="are no reading of 3 pictures; give a row for each"):
        store.put(_reading(), {"features": np.zeros((2, 4))})


def _start(folder: Path, log: Path, count: int, pause: float) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-c", WORKER, folder, log, count, pause]
    return subprocess.Popen(list(map(str, arguments)), cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


def _content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}


def test_killed_ten_times_and_started_again(tmp_path: Path) -> None:
    """Same bytes as an undisturbed run; no batch is made again that was stored; nothing half done is left."""
    count = 60
    assert _start(tmp_path / "whole", tmp_path / "whole.log", count, 0).wait(600) == 0
    random.seed(1)
    folder, log = tmp_path / "killed", tmp_path / "killed.log"
    stored: dict[str, tuple[int, int]] = {}
    killed = 0
    for _ in range(10):
        process = _start(folder, log, count, 0.005)
        # By batches begun, not by the clock, so that a slow disk has stored some; then at any moment of the next ones.
        goal = (len(log.read_text().split()) if log.exists() else 0) + random.randint(2, 4)
        while process.poll() is None and (not log.exists() or len(log.read_text().split()) < goal):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        now = {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.rglob("*.png")}
        assert {name: now.get(name) for name in stored} == stored
        # A batch's folder has all of its images: what a kill interrupts is in a folder that is not looked at.
        stored = {name: row for name, row in now.items() if ".partial-" not in name}
        assert len(stored) % 4 == 0
    assert stored
    assert killed  # all ten, unless this process stood still for long enough that another ended by itself
    assert _start(folder, log, count, 0).wait(600) == 0
    assert _content(folder) == _content(tmp_path / "whole")
    # A batch can be drawn twice only if it was killed between its drawing and its storing.
    assert len(log.read_text().split()) <= count + 10


def test_workers_that_share_a_store_share_the_work(tmp_path: Path) -> None:
    folder, count = tmp_path / "store", 40
    logs = [tmp_path / f"{name}.log" for name in "abc"]
    workers = [_start(folder, log, count, 0.02) for log in logs]
    assert [worker.wait(600) for worker in workers] == [0, 0, 0]
    drawn = [first for log in logs if log.exists() for first in log.read_text().split()]
    assert sorted(map(int, drawn)) == list(range(count))
    assert _start(tmp_path / "alone", tmp_path / "alone.log", count, 0).wait(600) == 0
    assert _content(folder) == _content(tmp_path / "alone")


def test_a_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = Store(tmp_path / "file" / "store")
    with pytest.raises(BadInput, match="image store .* cannot be written .*; name another folder"):
        blocked.fill([_batch()], lambda batch: _images())
    with pytest.raises(BadInput, match="cannot write .*; make room or give permission there"):
        blocked.put(_batch(), _images())

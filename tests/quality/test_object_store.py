"""An object store keeps what a folder keeps; an upload that broke off is never a picture."""

from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from optsd.errors import BadInput
from optsd.quality.measure import Judge
from optsd.quality.pictures import Part, Pictures
from optsd.quality.reference import Reference
from optsd.quality.store import Batch, Reading, Store
from optsd.records import Measurement

COUNT, SIZE = 24, 4


@pytest.fixture(params=["memory", "s3"])
def url(request, tmp_path: Path, monkeypatch):
    """A store that is not on disk: fsspec's own in memory, and a server that speaks S3 on the loopback."""
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path))
    if request.param == "memory":
        yield f"memory://{tmp_path}/store"
        return
    yield from _served(monkeypatch)


def _served(monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    import fsspec
    import s3fs

    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = f"pictures-{uuid4()}"  # what one server of a process keeps, the next one has too
        fsspec.filesystem("s3").mkdir(bucket)
        yield f"s3://{bucket}/store"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def _batches() -> list[Batch]:
    return [Batch({"first": first}, SIZE) for first in range(0, COUNT, SIZE)]


def _draw(batch: Batch) -> np.ndarray:
    rng = np.random.default_rng(batch.recipe["first"])
    return rng.integers(0, 256, (SIZE, 16, 16, 3), dtype=np.uint8)


def _files(url: str):
    import fsspec

    return fsspec.core.url_to_fs(url)


def test_what_was_put_is_what_is_got(url: str) -> None:
    store, batch = Store(url), _batches()[0]
    assert store.get(batch) is None
    store.put(batch, _draw(batch))
    np.testing.assert_array_equal(Store(url).get(batch), _draw(batch))
    assert Store(url).get(_batches()[1]) is None
    assert (store.made, store.damaged) == (1, 0)


@pytest.mark.parametrize("damage", ["an object is missing", "an object is cut", "another's object"])
def test_a_broken_upload_is_never_a_picture(url: str, damage: str) -> None:
    store, (batch, other, *_) = Store(url), _batches()
    for each in (batch, other):
        store.put(each, _draw(each))
    files, root = _files(url)
    place = f"{root}/{batch.folder}/0002.png"
    if damage == "an object is missing":
        files.rm_file(place)
    elif damage == "an object is cut":
        files.pipe_file(place, files.cat_file(place)[:-50])
    else:
        files.pipe_file(place, files.cat_file(f"{root}/{other.folder}/0002.png"))
    again = Store(url)
    assert again.get(batch) is None
    assert again.damaged == 1
    again.fill([batch], _draw)
    np.testing.assert_array_equal(again.take(batch), _draw(batch))


def test_an_upload_that_fails_half_way_names_the_store_and_leaves_no_picture(url: str, monkeypatch) -> None:
    store, batch = Store(url), _batches()[0]
    put, sent = store._place._files.pipe_file, []

    def fail(path: str, content: bytes) -> None:
        if len(sent) == 2:
            raise ConnectionResetError("the line is dead")
        sent.append(path)
        put(path, content)

    monkeypatch.setattr(store._place._files, "pipe_file", fail)
    with pytest.raises(BadInput, match=r"the store .* fails \(the line is dead\); see that it can be reached"):
        store.fill([batch], _draw)
    assert len(sent) == 2
    monkeypatch.setattr(store._place._files, "pipe_file", put)
    assert store.get(batch) is None
    store.fill([batch], _draw)
    np.testing.assert_array_equal(store.take(batch), _draw(batch))


class Colours:
    """Networks that read mean colours."""

    suffix = ""

    def made_by(self, reading: str) -> list[str]:
        return ["colours"]

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        colours = images.mean((1, 2)).astype(np.float32)
        return colours, colours / 99

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        return self.features(images)[1]

    def agreement(self, images: np.ndarray, texts) -> np.ndarray:
        return images.mean((1, 2, 3)) / 255

    def distances(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        return abs(images.astype(float) - others).mean((1, 2, 3))


def _figures(place: Path | str) -> list[Measurement]:
    store = Store(place)
    store.fill(_batches(), _draw)
    parts = [Part(batch.key, SIZE, lambda batch=batch: store.take(batch)) for batch in _batches()]
    baseline = np.random.default_rng(99).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    # Parts must be as long as their counterparts.
    others = [
        Part(f"{first:064}", SIZE, lambda first=first: baseline[first : first + SIZE])
        for first in range(0, COUNT, SIZE)
    ]
    judge = Judge(Pictures(tuple(others), (16, 16)), ["a"] * COUNT, Reference(baseline), Colours(), store=store)
    return judge.measure("int8", Pictures(tuple(parts), (16, 16)))


def test_the_figures_are_those_of_a_folder(url: str, tmp_path: Path) -> None:
    assert _figures(url) == _figures(tmp_path / "folder")
    again = Store(url)
    again.fill(_batches(), lambda batch: pytest.fail("a picture was drawn again"))
    assert again.damaged == 0


def test_readings_lie_beside_the_pictures(url: str) -> None:
    store, batch = Store(url), _batches()[0]
    reading = Reading({"pictures": batch.key, "reading": "features"}, SIZE)
    store.put(reading, {"features": np.ones((SIZE, 2), np.float32)})
    files, root = _files(url)
    assert any(batch.key in path for path in files.find(f"{root}/{batch.key[:2]}"))
    np.testing.assert_array_equal(Store(url).take(reading)["features"], np.ones((SIZE, 2)))


def test_a_store_that_cannot_be_reached_or_is_unknown_is_one_line(monkeypatch, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no object store of kind nonsense:// .*install what it needs"):
        Store("nonsense://bucket/x").get(_batches()[0])
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path))
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "x")
    with pytest.raises(BadInput, match=r"the store s3://pictures/store fails \("):
        Store("s3://pictures/store").get(_batches()[0])

"""Downloads are resumed and hashed; weights are found where they are, and only genuine ones are taken."""

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from optsd.data import downloads
from optsd.errors import BadInput, NotFound

CONTENT = bytes(range(256)) * 4000


class _Server(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; sends no more than `limit` bytes of an answer, as a broken connection does."""

    limit = len(CONTENT)
    ranges = True
    asked: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if first >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        self.wfile.write(CONTENT[first : first + self.limit])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[type[_Server]]:
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    handler = type("Handler", (_Server,), {"asked": []})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=listening.serve_forever, daemon=True).start()
    _replace(monkeypatch, "alexnet", url=f"http://127.0.0.1:{listening.server_port}/file")
    yield handler
    listening.shutdown()
    listening.server_close()


def _replace(monkeypatch, name: str, **changes) -> None:
    changes.setdefault("sha256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(downloads.DOWNLOADS, name, replace(downloads.DOWNLOADS[name], **changes))


def test_a_file_is_fetched_once_and_then_found(server) -> None:
    file = downloads.fetch("alexnet")
    assert file.read_bytes() == CONTENT
    assert downloads.fetch("alexnet") == file == downloads.find_weights("alexnet")
    assert server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_was(server, ranges: bool) -> None:
    server.limit, server.ranges = 300_000, ranges
    with pytest.raises(NotFound, match="cannot download"):
        downloads.fetch("alexnet")
    server.limit = len(CONTENT)
    assert downloads.fetch("alexnet").read_bytes() == CONTENT
    assert server.asked[0] is None
    assert server.asked[1].startswith("bytes=")
    assert not list(downloads.weights_folder().glob("*.part"))


def test_a_download_that_was_killed_at_its_very_end_goes_on(server) -> None:
    downloads.weights_folder().mkdir(parents=True)
    (downloads.weights_folder() / "alexnet-owt-7be5be79.pth.part").write_bytes(CONTENT)
    assert downloads.fetch("alexnet").read_bytes() == CONTENT


def test_another_content_than_the_pinned_one_is_refused_and_not_kept(server, monkeypatch) -> None:
    _replace(monkeypatch, "alexnet", sha256="0" * 64)
    with pytest.raises(NotFound, match="gave another content than the pinned one"):
        downloads.fetch("alexnet")
    assert not [path for path in downloads.weights_folder().rglob("*") if path.is_file()]


def test_no_network_and_no_such_name(server, monkeypatch) -> None:
    _replace(monkeypatch, "alexnet", url="http://127.0.0.1:9/nothing")
    with pytest.raises(NotFound, match=r"cannot download http://127.0.0.1:9/nothing .*put the file at .*alexnet"):
        downloads.fetch("alexnet")
    with pytest.raises(BadInput, match="no download 'nosuch'; choose from captions, images"):
        downloads.fetch("nosuch")


def test_missing_weights_name_the_file_the_folder_and_the_command(server) -> None:
    with pytest.raises(NotFound, match=r"lpips needs alexnet-owt-7be5be79.pth.*optsd coco fetch alexnet"):
        downloads.find_weights("alexnet")


def test_weights_of_another_content_are_refused(server) -> None:
    downloads.weights_folder().mkdir(parents=True)
    (downloads.weights_folder() / "alexnet-owt-7be5be79.pth").write_bytes(b"something else")
    with pytest.raises(BadInput, match="is not the published alexnet-owt-7be5be79.pth: its SHA-256 differs"):
        downloads.find_weights("alexnet")


def test_a_configured_folder_comes_first_and_caches_last(server, tmp_path: Path) -> None:
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "alexnet-owt-7be5be79.pth").write_bytes(CONTENT)
    assert downloads.find_weights("alexnet").parent == cache
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "alexnet-owt-7be5be79.pth").write_bytes(CONTENT)
    assert downloads.find_weights("alexnet", mine).parent == mine


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path / "home"))
    archive = downloads.coco_folder() / "val2017.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as packed:
        for name in ("val2017/1.jpg", "val2017/../../x", "val2017/..", "../x", "/x", "val2017/a/b.jpg", "val2017/"):
            packed.writestr(name, b"x")
    _replace(monkeypatch, "images", sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    assert downloads.fetch("images") == downloads.coco_folder() / "val2017"
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(written) == ["home/coco/val2017.zip", "home/coco/val2017/1.jpg"]


def test_the_caption_file_is_taken_out_of_its_archive(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path))
    archive = downloads.coco_folder() / "annotations_trainval2017.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("annotations/captions_val2017.json", b"{}")
        packed.writestr("annotations/instances_val2017.json", b"{}")
    _replace(monkeypatch, "captions", sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    assert downloads.fetch("captions").read_bytes() == b"{}"
    assert not (downloads.coco_folder() / "annotations" / "instances_val2017.json").exists()

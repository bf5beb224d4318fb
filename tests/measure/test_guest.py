"""A callable in a process of its own: what it gives comes back, and whatever it does wrong is one error."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from optsd.errors import OptsdError
from optsd.measure import guest
from optsd.measure.guest import Guest
from optsd.quality import visitors
from optsd.records import Workload
from optsd.subjects import Drawer

WORKLOAD = Workload("theirs", "cpu", "float32", steps=2, guidance=5.0, height=16, width=8, batch_size=2)

THEIRS = """
import os, time
import numpy as np

def draw(prompts, seeds, workload):
    pictures = np.zeros((len(prompts), workload.height, workload.width, 3), np.uint8)
    for picture, seed in zip(pictures, seeds):
        picture[:] = np.random.default_rng(seed).integers(0, 255, picture.shape)
    return pictures

class Engine:
    weight_bytes = 100
    def __init__(self, workload):
        assert workload.steps == 2
        self.held = bytearray(os.urandom(2**24))
        self.calls = 0
    def __call__(self, prompts, seeds, workload):
        self.calls += 1
        return draw(prompts, seeds, workload)
    def proof(self):
        return {"calls": self.calls}

def raises(prompts, seeds, workload): raise RuntimeError("no such engine\\nmore")
def nothing(prompts, seeds, workload): return None
def fewer(prompts, seeds, workload): return draw(prompts[1:], seeds, workload)
def dies(prompts, seeds, workload): os._exit(7)
def hangs(prompts, seeds, workload): time.sleep(600)
def leaves(prompts, seeds, workload): raise SystemExit("enough")
def grey(prompts, seeds, workload): return draw(prompts, seeds, workload) * 0 + np.uint8(128)
def two(a, b): ...
def factory_raises(workload): raise ValueError("no weights")
def factory_of_nothing(workload): return 3
def factory_hangs(workload): time.sleep(600)
number = 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_engine.py").write_text(THEIRS)
    return folder


@pytest.fixture
def invite(place: Path, monkeypatch: pytest.MonkeyPatch):
    # Without torch a process begins in a moment.
    monkeypatch.setattr(guest, "context", lambda device: multiprocessing.get_context("spawn"))
    made: list[Guest] = []

    def start(name: str, timeout_s: float = 60) -> Guest:
        made.append(Guest(Drawer("theirs", f"their_engine:{name}", place), WORKLOAD, timeout_s))
        return made[-1]

    yield start
    for each in made:
        each.close()
        assert not each._process.is_alive()


def test_what_it_draws_tells_and_needs(invite, tmp_path: Path) -> None:
    theirs = invite("Engine")
    drawn = theirs.draw(["a", "b"], [1, 2])
    assert drawn.pictures.shape == (2, 16, 8, 3)
    assert 0 < drawn.seconds < 30
    assert theirs.tells() == (100, {"calls": 1})
    found = theirs.peak()
    assert found is not None
    assert 2**24 < found.peak < found.process

    pictures = visitors.draw(theirs, WORKLOAD, ["a", "b", "c"], seeds=2, folder=tmp_path)
    assert [part.count for part in pictures.parts] == [2, 1, 2, 1]  # the last batch of each seed was filled up
    assert theirs.tells()[1] == {"calls": 5}
    assert len({each.tobytes() for each in pictures}) == 6
    again = visitors.draw(theirs, WORKLOAD, ["a", "b", "c"], seeds=2, folder=tmp_path)
    assert [part.key for part in again.parts] == [part.key for part in pictures.parts]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "theirs, drawing: RuntimeError: no such engine; see the traceback above, and mend it"),
        ("nothing", "theirs, drawing: a NoneType is no set of pictures; return 2 pictures of 8×16 pixels"),
        ("fewer", "theirs, drawing: 1 pictures for 2 prompts"),
        ("leaves", "theirs, drawing: SystemExit: enough"),
        ("dies", "theirs, drawing: its process died \\(exit code 7\\); see its output above"),
        (
            "two",
            "theirs, loading: theirs: their_engine:two takes other arguments; it gets \\(prompts, seeds, workload\\)",
        ),
        ("number", "theirs, loading: theirs: their_engine:number is a int, no callable"),
        ("absent", "theirs, loading: theirs: their_engine has no absent; name a callable that is there"),
        ("factory_raises", "theirs, loading: ValueError: no weights"),
        ("factory_of_nothing", "theirs, loading: theirs: .* returns a int, no draw\\(prompts, seeds, workload\\)"),
    ],
)
def test_what_it_does_wrong_is_said(invite, name: str, message: str) -> None:
    with pytest.raises(OptsdError, match=message) as caught:
        invite(name).draw(["a", "b"], [1, 2])
    assert "\n" not in str(caught.value)


def test_what_hangs_is_ended_and_says_why_again(invite) -> None:
    theirs = invite("hangs")
    theirs.timeout_s = 0.5
    for _ in range(2):
        with pytest.raises(
            OptsdError, match="theirs, drawing: no answer in 0.5 s; see where it hangs, or give it longer"
        ):
            theirs.draw(["a", "b"], [1, 2])


def test_a_factory_that_hangs_is_ended(invite) -> None:
    with pytest.raises(OptsdError, match="theirs, loading: no answer in 1 s"):
        invite("factory_hangs", timeout_s=1)


def test_an_error_of_one_batch_ends_nothing(invite) -> None:
    theirs = invite("fewer")
    with pytest.raises(OptsdError, match="1 pictures for 2 prompts"):
        theirs.draw(["a", "b"], [1, 2])
    assert theirs.tells() == (None, {})


def test_a_flat_picture_is_none(invite, tmp_path: Path) -> None:
    with pytest.raises(OptsdError, match="theirs draws no pictures: 2 of 2 are of one colour, #808080"):
        visitors.draw(invite("grey"), WORKLOAD, ["a", "b"], seeds=1, folder=tmp_path)
    assert not np.any([file.suffix == ".npy" for file in tmp_path.iterdir()])


@pytest.mark.parametrize(
    ("device", "visible", "left"),
    [("cuda:1", None, "1"), ("cuda:1", "4, GPU-a", "GPU-a"), ("cuda", "4,5", "4,5"), ("cpu", None, None)],
)
def test_it_sees_the_gpu_that_was_asked_for_and_no_other(monkeypatch, device, visible, left) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    guest.see_only(device)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == left

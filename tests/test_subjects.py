"""What is benched beside our variants, before it runs: names, folders, and what a callable may give."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optsd import subjects
from optsd.errors import BadInput, NotFound
from optsd.quality import visitors
from optsd.quality.features import NoNetworks
from optsd.quality.pictures import Pictures
from optsd.quality.readings import Readings
from optsd.records import Workload
from optsd.subjects import Drawer, Folder, checked, parse, parse_all

GREY = np.full((2, 16, 8, 3), 128, np.uint8)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of four pictures, 8×16: two prompts, two seeds."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    rows = []
    for number, (seed, prompt) in enumerate((seed, prompt) for seed in (42, 43) for prompt in ("a dog", "two cats")):
        Image.new("RGB", (8, 16), (number, 0, 0)).save(folder / f"{number}.png")
        rows.append({"prompt": prompt, "seed": seed, "file": f"{number}.png"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_folder_gives_what_is_asked_for_in_its_order(theirs: Path) -> None:
    folder = parse("theirs=theirs", theirs.parent)
    assert isinstance(folder, Folder)
    made = folder.pictures(["two cats", "a dog"], [42, 43], height=16, width=8)
    assert made.shape == (4, 16, 8, 3)
    assert made[:, 0, 0, 0].tolist() == [1, 0, 3, 2]


def test_a_folders_pictures_come_in_the_parts_of_the_baselines(theirs: Path) -> None:
    """Each is read beside its counterpart."""
    work = Workload("theirs", "cpu", "float32", 2, 5.0, height=16, width=8, batch_size=1)
    pictures = visitors.found(Folder("theirs", theirs), work, ["a dog", "two cats"], seeds=2)
    assert [part.count for part in pictures.parts] == [1, 1, 1, 1]
    assert [int(each[0, 0, 0]) for each in pictures] == [0, 1, 2, 3]
    assert len({part.key for part in pictures.parts}) == 4
    baseline = Pictures((*pictures.parts[:1] * 2, *pictures.parts[2:]), pictures.size)
    assert Readings(NoNetworks(BadInput("none", "none"))).pixels(pictures, baseline)["equal"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "0.png").unlink(), "theirs: 0.png is no picture"),
        (lambda folder: (folder / "0.png").write_bytes(b"no"), "theirs: 0.png is no picture"),
        (lambda folder: Image.new("RGB", (9, 16)).save(folder / "0.png"), "0.png has 9×16 pixels, not 8×16; draw at"),
        (lambda folder: _rewrite(folder, "a dog", "a cat"), "lacks 2 of 4 pictures, first of 'a dog' with seed 42"),
        (lambda folder: _rewrite(folder, "0.png", "../0.png"), "'../0.png' is no plain file name"),
        (lambda folder: _rewrite(folder, "43", "42"), "two pictures of 'a dog' with seed 42; leave one of them"),
        (
            lambda folder: _rewrite(folder, '"seed"', '"sed"'),
            "picture 1 has no seed; give prompt, seed and file of each",
        ),
        (lambda folder: _rewrite(folder, '"file"', '"fle"'), "picture 1 has no file"),
        (lambda folder: (folder / "manifest.jsonl").unlink(), "theirs has no manifest; write one manifest.jsonl or"),
        (lambda folder: (folder / "manifest.csv").write_text("x"), "theirs has 2 manifests"),
        (lambda folder: _linked(folder), "'0.png' leads out of its folder"),
    ],
)
def test_a_folder_that_does_not_fit_is_said(theirs: Path, change, message: str) -> None:
    change(theirs)
    with pytest.raises(BadInput, match=message):
        Folder("theirs", theirs).pictures(["a dog", "two cats"], [42, 43], height=16, width=8)


def _rewrite(folder: Path, before: str, after: str) -> None:
    file = folder / "manifest.jsonl"
    file.write_text(file.read_text().replace(before, after))


def _linked(folder: Path) -> None:
    (folder / "0.png").replace(folder.parent / "0.png")
    (folder / "0.png").symlink_to(folder.parent / "0.png")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("theirs", BadInput, "--subject theirs is no subject; write NAME=package.module:callable, or NAME=FOLDER"),
        ("=json:dumps", BadInput, "is no subject"),
        ("a+b=json:dumps", BadInput, "is no subject"),
        ("../a=json:dumps", BadInput, "is no subject"),
        ("mine=", BadInput, "is no subject"),
        ("int8=json:dumps", BadInput, "--subject int8 is the name of a variant of ours; call it something else"),
        ("baseline=json:dumps", BadInput, "is the name of a variant of ours"),
        (
            "mine=nowhere/",
            NotFound,
            "--subject mine: there is no folder nowhere/; name one, or package.module:callable",
        ),
        ("mine=no_such_package.a:b", NotFound, "--subject mine: no module 'no_such_package'; install it, or run where"),
    ],
)
def test_a_wrong_subject_is_one_line(tmp_path: Path, text: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        parse(text, tmp_path)


def test_subjects_have_names_of_their_own(tmp_path: Path) -> None:
    found = parse_all(["one=json:dumps", "two=json:loads"], tmp_path)
    assert found == {"one": Drawer("one", "json:dumps", tmp_path), "two": Drawer("two", "json:loads", tmp_path)}
    with pytest.raises(BadInput, match="--subject one is given twice"):
        parse_all(["one=json:dumps", "one=json:loads"], tmp_path)


@pytest.mark.parametrize(
    "made",
    [GREY, GREY / 255, (GREY / 255).astype(np.float16), [*GREY], [Image.fromarray(each) for each in GREY]],
    ids=["uint8", "float64", "float16", "list", "PIL"],
)
def test_every_form_of_pictures_is_the_same(made) -> None:
    pictures = checked(made, 2, height=16, width=8)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, GREY)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "a NoneType is no set of pictures; return 2 pictures of 8×16 pixels: PIL's, RGB, or an array"),
        (GREY[:1], "1 pictures for 2 prompts"),
        ([], "0 pictures for 2 prompts"),
        (GREY.transpose(0, 2, 1, 3), "picture 0 has 16×8 pixels"),
        ([GREY[0], GREY[1, :8]], "picture 1 has 8×8 pixels"),
        (GREY.transpose(0, 3, 1, 2), "an array of uint8 and shape \\(2, 3, 16, 8\\) is no set of pictures"),
        (GREY.astype(np.int64), "an array of int64"),
        ([each.astype(np.int32) for each in GREY], "picture 0 is of int32"),
        (GREY * 1.0, "picture 0 has numbers that are not from 0 to 1"),
        (GREY * np.nan, "picture 0 has numbers that are not from 0 to 1"),
        ([Image.new("L", (8, 16))] * 2, "picture 0 has the mode L"),
        (["a.png", "b.png"], "picture 0 is a str, no picture"),
    ],
)
def test_what_is_no_picture_is_said(made, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        checked(made, 2, height=16, width=8)


def test_what_a_callable_tells_of_itself() -> None:
    class Draw:
        weight_bytes = 8

        def proof(self) -> dict:
            return {"engine": "theirs", "calls": 3}

    assert subjects.weight_bytes(Draw()) == 8
    assert subjects.proof(Draw()) == {"engine": "theirs", "calls": 3}
    assert subjects.weight_bytes(len) is None
    assert subjects.proof(len) == {}
    for wrong in (0, -1, "8", True):
        Draw.weight_bytes = wrong
        with pytest.raises(BadInput, match="its weight_bytes are .*; give a number of bytes above 0"):
            subjects.weight_bytes(Draw())
    for wrong, message in (({"a": object()}, "cannot be written as JSON"), ([1], "its proof is a list")):
        Draw.proof = wrong
        with pytest.raises(BadInput, match=message):
            subjects.proof(Draw())

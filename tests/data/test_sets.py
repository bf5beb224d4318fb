"""The field's prompt files are read as they are published, and nothing else is."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from optsd.data import captions, sets
from optsd.data.sets import SETS, mlperf_rows, one_caption_each, parti_rows
from optsd.errors import BadInput, NotFound

# The forms of the published files, with sentences of our own.
MLPERF = """\
id\timage_id\tcaption\theight\twidth\tfile_name\tcoco_url
7\t42\tA red kite over a hill.\t640\t480\tCOCO_val2014_000000000042.jpg\thttp://example.org/COCO_val2014_000000000042.jpg
9\t58\t"A sign that reads ""Open"" on a door."\t427\t640\tCOCO_val2014_000000000058.jpg\thttp://example.org/x.jpg
"""
PARTI = """\
Prompt\tCategory\tChallenge\tNote
kite\tAbstract\tBasic\tA word, "as it is"
A sign that reads "Open"\tArtifacts\tWriting & Symbols\t
"""


def _coco(images: int = 6, each: int = 5) -> captions.Captions:
    """COCO 2014's form: file names with the set's name, several captions an image, ids in no order."""
    data = {
        "info": {"year": 2014},
        "images": [
            {"id": i * 7, "file_name": f"COCO_val2014_{i * 7:012}.jpg", "height": 4, "width": 3} for i in range(images)
        ],
        "annotations": [
            {"id": 1000 - i * each - k, "image_id": i * 7, "caption": f"picture {i},  text {k}\n"}
            for i in range(images)
            for k in range(each)
        ],
    }
    return captions.check(data, "test")


def test_mlperfs_form() -> None:
    first, second = mlperf_rows(MLPERF, "file")
    assert (first.text, first.image_id, first.file_name) == (
        "A red kite over a hill.",
        42,
        "COCO_val2014_000000000042.jpg",
    )
    assert second.text == 'A sign that reads "Open" on a door.'


def test_partis_form() -> None:
    assert [prompt.text for prompt in parti_rows(PARTI, "file")] == ["kite", 'A sign that reads "Open"']


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_may_end_as_on_windows(newline: str) -> None:
    assert len(mlperf_rows(MLPERF.replace("\n", newline), "file")) == 2


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (mlperf_rows, "", "file is empty"),
        (parti_rows, MLPERF, "file has other columns than Prompt, Category, Challenge, Note"),
        (mlperf_rows, PARTI, "file has other columns than id, image_id"),
        (mlperf_rows, MLPERF.replace("\t640\t480", "", 1), "file, row 2 is not 7 fields"),
        (mlperf_rows, MLPERF.replace("\t42\t", "\tx\t"), "file, row 2: image_id 'x' is no number"),
        (
            mlperf_rows,
            MLPERF.replace("\tCOCO_val2014_000000000058.jpg", "\t../../etc/passwd"),
            "row 3: '../../etc/passwd' is no plain",
        ),
        (mlperf_rows, MLPERF.replace("A red kite over a hill.", " "), "file, row 2 is not 7 fields of text"),
        (mlperf_rows, MLPERF.replace('door."', "door."), "file is no table of tabs"),
        (parti_rows, PARTI + "x" * 5000 + "\tA\tB\t\n", "file, row 4 is not 4 fields"),
    ],
)
def test_any_other_form_names_the_row(read, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        list(read(text, "file"))


def test_one_caption_of_each_of_some_images() -> None:
    chosen = one_caption_each(_coco(40), 30, 42)
    assert len({prompt.image_id for prompt in chosen}) == 30
    assert chosen == one_caption_each(_coco(40), 30, 42)
    assert chosen != one_caption_each(_coco(40), 30, 43)
    assert chosen[:10] == one_caption_each(_coco(40), 10, 42)  # more only add
    assert {prompt.file_name for prompt in chosen} == {f"COCO_val2014_{prompt.image_id:012}.jpg" for prompt in chosen}
    assert all(prompt.text == f"picture {prompt.image_id // 7}, text {prompt.text[-1]}" for prompt in chosen)
    which = Counter(prompt.text[-1] for prompt in one_caption_each(_coco(400), 400, 42))
    assert set(which) == set("01234")
    assert max(which.values()) < 130


def test_a_file_is_found_by_its_hash(tmp_path: Path, monkeypatch) -> None:
    own = replace(SETS["mlperf"], count=2, sha256=hashlib.sha256(MLPERF.encode()).hexdigest())
    monkeypatch.setitem(SETS, "mlperf", own)
    with pytest.raises(NotFound, match="captions_source.tsv; give captions_source.tsv as MLCommons"):
        own.prompts(tmp_path)
    (tmp_path / own.file).write_bytes(MLPERF.encode())
    assert len(own.prompts(tmp_path)) == 2
    (tmp_path / own.file).write_bytes(MLPERF.encode() + b" ")
    with pytest.raises(BadInput, match="is not the published captions_source.tsv: its SHA-256 differs"):
        own.prompts(tmp_path)
    monkeypatch.setitem(SETS, "mlperf", replace(own, count=3, sha256=own.sha256))
    (tmp_path / own.file).write_bytes(MLPERF.encode())
    with pytest.raises(BadInput, match="gives 2 prompts, not 3"):
        SETS["mlperf"].prompts(tmp_path)


def test_coco_2014_is_refused_where_it_is_too_small(tmp_path: Path) -> None:
    import json

    file = tmp_path / SETS["coco2014"].file
    file.parent.mkdir()
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}))
    with pytest.raises(BadInput, match="has 1 images, not 30,000 or more"):
        SETS["coco2014"].prompts(tmp_path)


def test_coco_2017s_five_thousand(coco_captions: Path) -> None:
    chosen = SETS["coco2017"].prompts(coco_captions.parents[1])
    assert len({prompt.image_id for prompt in chosen}) == 5000
    assert sets.prompts.digest(chosen) == "270f95b8027c1639e3ceb0ac809d6548c7bafd9afc1cff35275e06cd2f0a6837"


def test_an_unknown_set_lists_them() -> None:
    with pytest.raises(BadInput, match="no prompt set 'x'; choose from standard, coco2017"):
        sets.find("x")


def test_every_set_says_its_protocol() -> None:
    for name, own in SETS.items():
        assert own.name == name
        assert own.protocol
        assert own.count >= 1000

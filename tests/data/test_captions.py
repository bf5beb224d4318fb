"""A caption file is input from outside: whatever is wrong with it is named, and nothing is written anywhere."""

import json

import pytest

from optsd.data import captions
from optsd.errors import BadInput, NotFound

GOOD = {
    "images": [{"id": 7, "file_name": "000000000007.jpg"}],
    "annotations": [{"id": 1, "image_id": 7, "caption": "A dog."}],
}


def _write(tmp_path, data) -> object:
    file = tmp_path / "captions.json"
    file.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return file


def test_a_good_file_is_read(tmp_path) -> None:
    read = captions.read(_write(tmp_path, GOOD))
    assert read.files == {7: "000000000007.jpg"}
    assert read.annotations == (captions.Annotation(1, 7, "A dog."),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 7, "file_name": "../../x"}]}, r"images\[0\]: '../../x' is no plain file name"),
        ({"images": [{"id": 7, "file_name": "/etc/passwd"}]}, "is no plain file name"),
        ({"images": [{"id": 7, "file_name": "a\\b.jpg"}]}, "is no plain file name"),
        ({"images": [{"id": 7, "file_name": ".hidden"}]}, "is no plain file name"),
        ({"images": [{"id": 7, "file_name": "a.jpg\n"}]}, "is no plain file name"),
        ({"images": GOOD["images"] * 2}, r"images\[1\]: image id 7 is there twice"),
        ({"annotations": GOOD["annotations"] * 2}, r"annotations\[1\]: caption id 1 is there twice"),
        ({"annotations": [{"id": 1, "image_id": 7}]}, r"annotations\[0\] has no 'caption'"),
        ({"annotations": [{"image_id": 7, "caption": "x"}]}, r"annotations\[0\] has no 'id'"),
        ({"annotations": [{"id": 1, "image_id": 7, "caption": 5}]}, "has 'caption' of type int"),
        ({"annotations": [{"id": True, "image_id": 7, "caption": "x"}]}, "has 'id' of type bool"),
        ({"annotations": [{"id": 1, "image_id": 8, "caption": "x"}]}, "there is no image 8"),
        ({"annotations": ["x"]}, r"annotations\[0\] is no object"),
        ({"annotations": None}, "it has no list 'annotations'"),
        ({"images": {}}, "it has no list 'images'"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, message) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        captions.read(_write(tmp_path, {**GOOD, **change}))
    assert "optsd coco fetch captions" in caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": "\xff\xfe"}', "is not UTF-8"),
        (b"no json", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "its top level is no object"),
        (json.dumps(GOOD).encode()[:-10], "is no JSON"),
    ],
)
def test_a_file_that_is_no_caption_file_is_named(tmp_path, content, message) -> None:
    with pytest.raises(BadInput, match=message):
        captions.read(_write(tmp_path, content))


def test_a_missing_file_a_folder_and_a_file_too_large_are_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(NotFound, match="there is no caption file"):
        captions.read(tmp_path / "nothing.json")
    with pytest.raises(BadInput, match="cannot read"):
        captions.read(tmp_path)
    monkeypatch.setattr(captions, "MAX_FILE_BYTES", 10)
    with pytest.raises(BadInput, match="too much for captions"):
        captions.read(_write(tmp_path, GOOD))


def test_the_hash_is_of_the_content_not_of_the_layout(tmp_path) -> None:
    shuffled = {"extra": 1, "annotations": GOOD["annotations"], "images": GOOD["images"]}
    one = captions.read(_write(tmp_path, GOOD)).sha256
    assert captions.read(_write(tmp_path, json.dumps(shuffled, indent=8).encode())).sha256 == one
    changed = {**GOOD, "annotations": [{"id": 1, "image_id": 7, "caption": "A cat."}]}
    assert captions.read(_write(tmp_path, changed)).sha256 != one

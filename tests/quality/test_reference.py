"""Pictures from outside: read, or left out and counted; never an error that stops a run, never a file elsewhere."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optsd.errors import BadInput, NotFound
from optsd.quality import reference
from optsd.quality.reference import read_image
from optsd.quality.store import Store


def _picture(folder: Path, name: str, mode: str = "RGB", size=(80, 60), colour=None) -> str:
    Image.new(mode, size, colour).save(folder / name)
    return name


def _images(read: reference.Reference) -> np.ndarray:
    return np.stack(list(read.pictures))


def test_grey_transparent_and_palette_pictures_become_rgb(tmp_path: Path) -> None:
    names = [
        _picture(tmp_path, "rgb.png", colour=(10, 20, 30)),
        _picture(tmp_path, "grey.png", "L", colour=100),
        _picture(tmp_path, "rgba.png", "RGBA", colour=(10, 20, 30, 0)),
        _picture(tmp_path, "palette.png", "P"),
        _picture(tmp_path, "cmyk.jpg", "CMYK"),
    ]
    read = reference.read(tmp_path, names, 64, 48)
    assert _images(read).shape == (5, 48, 64, 3)
    assert _images(read).dtype == np.uint8
    assert _images(read)[:3, 20, 20].tolist() == [[10, 20, 30], [100, 100, 100], [255, 255, 255]]
    assert read.note == ""


def test_what_is_left_out_is_counted(tmp_path: Path, monkeypatch) -> None:
    good = [_picture(tmp_path, name) for name in ("a.png", "b.png")]
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "c.png", format="TIFF")
    names = [
        *good,
        "truncated.png",
        "text.png",
        "folder.png",
        "c.png",
        _picture(tmp_path, "dot.png", size=(1, 1)),
        "nowhere.png",
        "../a.png",
        "/etc/hostname",
    ]
    read = reference.read(tmp_path, names, 32, 32)
    assert len(_images(read)) == 2
    assert read.skipped == {"damaged": 4, "too small": 1, "missing": 1, "outside the folder": 2}
    assert read.note == "4 damaged, 1 missing, 2 outside the folder, 1 too small"
    monkeypatch.setattr(reference, "MAX_PIXELS", 1000)
    assert reference.read_image(tmp_path, "a.png", 32, 32) == "too large"


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    _picture(tmp_path, "secret.png")
    (tmp_path / "inside" / "link.png").symlink_to(tmp_path / "secret.png")
    assert reference.read_image(tmp_path / "inside", "link.png", 32, 32) == "outside the folder"


def test_the_middle_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    picture = reference.read_image(tmp_path, "wide.png", 64, 64)
    assert isinstance(picture, np.ndarray)
    assert (picture == 200).all()


def test_too_few_pictures_name_the_folder_and_the_remedy(tmp_path: Path) -> None:
    names = [_picture(tmp_path, "a.png"), "b.png", "c.png"]
    with pytest.raises(NotFound, match=r"holds 1 of the prompts' 3 photographs.*optsd coco fetch images"):
        reference.read(tmp_path, names, 64, 64)


def test_the_store_remembers_what_is_left_out_until_a_file_changes(tmp_path: Path, monkeypatch) -> None:
    photographs, store = tmp_path / "photographs", Store(tmp_path / "store")
    photographs.mkdir()
    names = [*(_picture(photographs, f"{index}.png") for index in range(40)), "text.png"]
    (photographs / "text.png").write_text("no picture")
    seen: list[str] = []
    monkeypatch.setattr(
        reference, "read_image", lambda folder, name, *size: seen.append(name) or read_image(folder, name, *size)
    )
    first = reference.read(photographs, names, 32, 32, store)
    assert seen == names
    again = reference.read(photographs, names, 32, 32, store)
    assert seen == names
    assert first.skipped == again.skipped == {"damaged": 1}
    assert [part.key for part in first.pictures.parts] == [part.key for part in again.pictures.parts]
    (photographs / "39.png").write_text("damaged later")
    assert reference.read(photographs, names, 32, 32, store).skipped == {"damaged": 2}
    with pytest.raises(BadInput, match="photographs in .* change while they are read"):
        list(first.pictures)


def test_photographs_at_another_size_are_other_pictures(tmp_path: Path) -> None:
    names = [_picture(tmp_path, f"{index}.png") for index in range(2)]
    keys = {reference.read(tmp_path, names, width, 32).pictures.parts[0].key for width in (32, 48)}
    assert len(keys) == 2

import dataclasses
import shutil

import pytest
from PIL import Image

from optsd.report import contact_sheet, pictures
from optsd.report.pictures import album, embed, inside


def test_the_contact_sheet_has_variants_down_and_prompts_across(results, run_folder, tmp_path):
    shutil.copytree(run_folder / "images", tmp_path / "images")
    with Image.open(contact_sheet(results, tmp_path)) as sheet:
        assert sheet.height > len(results.variants) * 128
        assert sheet.width > 8 * 128
        assert len(sheet.getcolors(1 << 24)) > 20


def test_the_same_pictures_give_the_same_contact_sheet(results, run_folder, tmp_path):
    shutil.copytree(run_folder / "images", tmp_path / "images")
    first = contact_sheet(results, tmp_path).read_bytes()
    assert contact_sheet(results, tmp_path).read_bytes() == first


def test_without_pictures_there_is_no_contact_sheet(results, tmp_path):
    assert contact_sheet(results, tmp_path) is None
    assert not (tmp_path / "contact-sheet.png").exists()


def test_missing_and_damaged_pictures_leave_a_gap(results, run_folder, tmp_path):
    shutil.copytree(run_folder / "images", tmp_path / "images")
    (tmp_path / "images/int8/0000.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (tmp_path / "images/int4/0000.png").unlink()
    assert contact_sheet(results, tmp_path) is not None
    urls = embed(album(results, tmp_path)).urls
    assert ("int8", 0) not in urls
    assert ("int4", 0) not in urls
    assert ("flash", 0) in urls


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a\0b", "images", "", "x" * 5000])
def test_no_file_outside_the_folder_is_ever_read(name, tmp_path):
    (tmp_path / "run/images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    assert inside(tmp_path / "run", name) is None


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "run/link.png").symlink_to(tmp_path / "secret.png")
    assert inside(tmp_path / "run", "link.png") is None


def test_the_worst_pictures_are_those_furthest_from_the_baselines(results, run_folder):
    found = album(results, run_folder)
    samples = results.get("int8", "lpips_shapes").samples
    assert found.worst("int8", 3) == sorted(range(12), key=lambda number: -samples[number])[:3]
    assert found.worst("baseline", 3) == []


def test_readings_that_do_not_match_the_pictures_are_not_shown_beside_them(results, run_folder):
    fewer = dataclasses.replace(results, images=results.images[:20])
    assert ("baseline", 0) in album(fewer, run_folder).pictures
    assert album(fewer, run_folder).lost == {}
    assert set(album(results, run_folder).lost["int8", 3]) == {"lpips_shapes", "ssim", "psnr_db"}


def test_each_worst_picture_comes_with_the_baselines(results, run_folder):
    chosen = embed(album(results, run_folder))
    for variant, numbers in chosen.worst.items():
        assert len(numbers) == 4
        assert all({(variant, number), ("baseline", number)} <= chosen.urls.keys() for number in numbers)


def test_too_many_bytes_leave_fewer_pictures(results, run_folder, monkeypatch):
    all_of_them = embed(album(results, run_folder))
    monkeypatch.setattr(pictures, "MOST_BYTES", sum(map(len, all_of_them.urls.values())) // 3)
    fewer = embed(album(results, run_folder))
    assert 0 < len(fewer.urls) < len(all_of_them.urls)
    assert sum(map(len, fewer.urls.values())) <= pictures.MOST_BYTES
    monkeypatch.setattr(pictures, "MOST_BYTES", 10)
    assert embed(album(results, run_folder)).urls == {}


def test_large_pictures_are_carried_smaller_and_that_is_known(results, tmp_path):
    row = {"variant": "int8", "prompt": "p", "seed": 1, "index": 0, "file": "a.png"}
    Image.new("RGBA", (640, 320), "red").save(tmp_path / "a.png")
    chosen = embed(album(dataclasses.replace(results, images=(row,)), tmp_path))
    assert chosen.smaller
    assert chosen.urls["int8", 0].startswith("data:image/webp;base64,")


def test_rows_that_name_no_picture_are_passed_over(results, tmp_path):
    odd = ({}, {"variant": "int8"}, {"variant": 3, "file": "a.png"}, {"variant": "int8", "file": "a.png", "index": "x"})
    assert list(album(dataclasses.replace(results, images=odd), tmp_path).pictures) == [("int8", 3)]

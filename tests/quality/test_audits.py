"""Wrong pictures are made as said, metrics are said to see them or not, and a run that looks like them is named."""

import numpy as np
import pytest

from optsd.errors import BadInput
from optsd.quality import audits
from optsd.quality.audits import Finding, suspicions, table, verdict
from optsd.quality.features import NoNetworks
from optsd.quality.measure import Judge
from optsd.quality.pictures import Pictures
from optsd.quality.readings import Readings
from optsd.records import Measurement

NOTHING = NoNetworks(BadInput("no networks", "none"))
COUNT = 70


def _images(count: int = COUNT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (count, 16, 16, 3), dtype=np.uint8)


def _damaged(name: str, images: np.ndarray) -> np.ndarray:
    return np.stack(list(audits.damaged(Pictures.of(images))[name]))


def test_each_damage_is_what_its_name_says() -> None:
    images = _images()
    assert (_damaged("black", images) == 0).all()
    assert (_damaged("grey", images) == 128).all()
    assert len({picture.tobytes() for picture in _damaged("noise", images)}) == COUNT
    np.testing.assert_array_equal(_damaged("one over and over", images), images[:1].repeat(COUNT, 0))
    np.testing.assert_array_equal(_damaged("of other prompts", images), np.roll(images, -1, axis=0))
    shifted = _damaged("shifted by a row", images)
    np.testing.assert_array_equal(shifted[:, :-1], images[:, 1:])
    jpeg = _damaged("JPEG of quality 30", images)
    assert 0 < abs(jpeg.astype(int) - images).mean() < 80


def test_damages_are_other_pictures_with_other_keys() -> None:
    healthy = Pictures.of(_images())
    keys = [part.key for each in [healthy, *audits.damaged(healthy).values()] for part in each.parts]
    assert len(set(keys)) == len(keys)


def _row(low: float, high: float, name: str = "fid") -> Measurement:
    return Measurement("x", name, "", (low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("name", "found", "says"),
    [
        ("fid", (3, 4), "worse"),
        ("fid", (0.1, 0.2), "better"),
        ("fid", (1.5, 4), "not seen"),
        ("clip", (3, 4), "better"),
        ("clip", (0.1, 0.2), "worse"),
    ],
)
def test_a_metric_sees_what_moves_its_interval_away(name: str, found: tuple[float, float], says: str) -> None:
    assert verdict(_row(1, 2, name), _row(*found, name)) == says


def test_what_was_not_measured_says_nothing() -> None:
    assert verdict(_row(1, 2), Measurement("x", "fid", "", None, note="no weights")) == "not measured"


def test_every_metric_is_asked_about_every_damage() -> None:
    judge = Judge(_images(), ["a"] * COUNT, BadInput("none", "none"), NOTHING)
    damages = audits.damaged(judge.baseline)
    findings = audits.audit(judge, damages)
    assert {(row.damage, row.metric) for row in findings} >= {(name, "ssim") for name in damages}
    assert {row.says for row in findings if row.metric in ("ssim", "psnr_db")} == {"worse"}
    assert {row.says for row in findings if row.metric == "clip"} == {"not measured"}
    text = table(findings)
    assert text.splitlines()[0] == "| | SSIM | PSNR |"
    assert len(text.splitlines()) == 3 + len(damages)


def test_the_table_says_who_is_blind_and_who_is_fooled() -> None:
    rows = [
        Finding("black", "fid", "worse", _row(1, 2), _row(3, 4)),
        Finding("black", "clip", "better", _row(1, 2, "clip"), _row(3, 4, "clip")),
        Finding("grey", "fid", "not seen", _row(1, 2), _row(1, 3)),
        Finding("grey", "clip", "worse", _row(1, 2, "clip"), _row(0, 0.5, "clip")),
    ]
    assert table(rows).splitlines()[2:] == [
        "| healthy | 1.5 | 1.5 |",
        "| black | 3.5 | 3.5 **fooled** |",
        "| grey | 2 blind | 0.25 |",
    ]


def _said(images: np.ndarray, baseline: np.ndarray, prompts: int = COUNT) -> str:
    return "; ".join(suspicions(Readings(NOTHING), Pictures.of(images), Pictures.of(baseline), prompts))


def test_healthy_pictures_are_not_suspected() -> None:
    assert _said(_images(), _images()) == ""
    assert _said(_images(seed=1), _images()) == ""
    assert _said(_images(1), _images(1), 1) == ""


def test_what_looks_wrong_is_named() -> None:
    images, other = _images(), _images(seed=1)
    black = images.copy()
    black[[7, 9]] = 0
    assert (
        _said(black, images) == "2 of 70 pictures are one flat colour (the first is number 7); "
        "picture 9 equals number 7, another prompt's"
    )
    coloured = images.copy()
    coloured[5] = (10, 20, 30)
    assert _said(coloured, images).startswith("1 of 70 pictures are one flat colour (the first is number 5)")
    assert _said(other[:1].repeat(COUNT, 0), images) == "all 70 pictures are equal"
    twice = other.copy()
    twice[40] = twice[3]
    assert _said(twice, images) == "picture 40 equals number 3, another prompt's"
    assert _said(twice, images, 37) == "picture 40 equals number 3, that of another seed"
    assert _said(np.roll(images, 1, axis=0), images) == "picture 0 equals the baseline's number 69, another prompt's"

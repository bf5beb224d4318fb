"""What networks read is read once, by the network that is asked, of the pictures that are given."""

from pathlib import Path

import numpy as np
import pytest

from optsd.errors import BadInput, NotFound
from optsd.metrics import MAX_PSNR_DB
from optsd.quality import readings
from optsd.quality.pictures import Pictures
from optsd.quality.readings import Readings, Table
from optsd.quality.store import Store


class Counting:
    """Networks that say how often they were asked."""

    suffix = ""

    def __init__(self, weights: str = "w") -> None:
        self.weights, self.asked = weights, []

    def made_by(self, reading: str) -> list[str]:
        return [self.weights]

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32), images[:, 0, 0].astype(np.float32)

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        return self.features(images)[1]

    def agreement(self, images: np.ndarray, texts) -> np.ndarray:
        self.asked.append(len(images))
        return np.array([image.mean() * len(text) for image, text in zip(images, texts, strict=True)])

    def distances(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        self.asked.append(len(images))
        return abs(images.astype(float) - others).mean((1, 2, 3))


def _images(count: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path / "home"))


def _all(networks: Counting, images: np.ndarray, others: np.ndarray, store: Store | None) -> list[np.ndarray]:
    pictures, counterparts = Pictures.of(images), Pictures.of(others)
    own = Readings(networks, store)
    features, logits = own.features(pictures)
    texts = ["x" * (index % 5) for index in range(len(images))]
    pixels = own.pixels(pictures, counterparts)
    return [
        features[:],
        logits[:],
        own.embeddings(pictures)[:],
        own.agreement(pictures, texts),
        own.distances(pictures, counterparts),
        *(pixels[name] for name in ("equal", "ssim", "psnr_db")),
    ]


def test_from_the_store_as_from_the_networks(tmp_path: Path) -> None:
    first, again = Counting(), Counting()
    plain = _all(Counting(), _images(), _images(seed=1), None)
    for networks in (first, again):
        for ours, expected in zip(_all(networks, _images(), _images(seed=1), Store(tmp_path)), plain, strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert first.asked == [32, 32, 6] * 4
    assert again.asked == []


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _all(Counting(), _images(64), _images(64, 1), store)
    more = Counting()
    _all(more, _images(70), _images(70, 1), store)  # the first 64 are the same pictures
    assert sum(more.asked) == 4 * 6


@pytest.mark.parametrize("change", ["weights", "pictures", "counterparts", "code"])
def test_what_something_else_made_is_not_taken(tmp_path: Path, monkeypatch, change: str) -> None:
    store = Store(tmp_path)
    _all(Counting(), _images(8), _images(8, 1), store)
    if change == "code":
        monkeypatch.setattr(readings, "code_version", lambda: "another")
    networks = Counting("v" if change == "weights" else "w")
    _all(networks, _images(8, 5 * (change == "pictures")), _images(8, 1 + 5 * (change == "counterparts")), store)
    assert networks.asked == [8] * (1 if change == "counterparts" else 4)


def test_texts_belong_to_the_reading(tmp_path: Path) -> None:
    own = Readings(Counting(), Store(tmp_path))
    pictures = Pictures.of(_images(8))
    one, other = own.agreement(pictures, ["a"] * 8), own.agreement(pictures, ["bb"] * 8)
    np.testing.assert_allclose(other, 2 * one)


@pytest.mark.parametrize("stored", [True, False])
def test_one_picture_over_and_over_is_as_many_pictures(tmp_path: Path, stored: bool) -> None:
    same = _images(1).repeat(96, 0)
    found = Readings(Counting(), Store(tmp_path) if stored else None).features(Pictures.of(same))[0]
    assert found.shape == (96, 48)


def test_the_same_pictures_differ_by_nothing_and_are_not_read() -> None:
    networks, pictures = Counting(), Pictures.of(_images(8))
    pixels = Readings(networks).pixels(pictures, pictures)
    assert (pixels["equal"].all(), set(pixels["ssim"]), set(pixels["psnr_db"])) == (True, {1.0}, {MAX_PSNR_DB})
    assert not Readings(networks).distances(pictures, pictures).any()
    assert networks.asked == []


def test_a_missing_network_is_missing_also_where_nothing_is_to_be_read() -> None:
    class Missing(Counting):
        def made_by(self, reading: str) -> list[str]:
            raise NotFound("no weights", "fetch them")

    pictures = Pictures.of(_images(8))
    for read in (Readings(Missing()).features, lambda each: Readings(Missing()).distances(each, each)):
        with pytest.raises(NotFound, match="no weights"):
            read(pictures)


def test_a_table_is_the_rows_that_were_appended() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    table = Table()
    assert (len(table), table.shape[0]) == (0, 0)
    for first in range(0, 20, 6):
        table.append(rows[first : first + 6])
    assert table.shape == (20, 5)
    for index in (slice(None), slice(3, 9), slice(15, 99), slice(9, 3), slice(0, 20, 7), np.array([19, 0, 0, 7])):
        np.testing.assert_array_equal(table[index], rows[index])
    table.append(rows[:1])
    np.testing.assert_array_equal(table[:], np.concatenate([rows, rows[:1]]))
    with pytest.raises(BadInput, match="read all with one network"):
        table.append(rows[:, :4])

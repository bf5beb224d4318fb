"""What a set of images is said to be worth, with networks whose answers are known."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from optsd.errors import BadInput, NotFound
from optsd.metrics import METRICS
from optsd.quality.features import NoNetworks
from optsd.quality.measure import Judge
from optsd.quality.reference import Reference
from optsd.records import Measurement

COUNT = 24
PROMPTS = ["a large green cross on a black background"] * COUNT


class MeanColours:
    """Features are mean colours; agreement is the first of them; distance is the largest difference."""

    suffix = "_shapes"

    def made_by(self, reading: str) -> list[str]:
        return ["mean colours"]

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        colours = images.reshape(len(images), -1, 3).mean(1) / 255
        return colours, np.tile(colours, (1, 8)) * 20 - 5

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        colours = self.features(images)[0]
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)

    def agreement(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        assert len(images) == len(texts)
        return self.features(images)[0][:, 0]

    def distances(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        return abs(images.astype(float) - others).max((1, 2, 3)) / 255


def _images(seed: int = 0, count: int = COUNT) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.uniform(60, 200, (count, 1, 1, 3)) + rng.normal(0, 5, (count, 16, 16, 3))).astype(np.uint8)


def _judge(**changes) -> Judge:
    settings = {
        "baseline": _images(),
        "prompts": PROMPTS,
        "reference": Reference(_images(1, 100) + np.uint8(40)),
        "networks": MeanColours(),
        "counts_objects": True,
    }
    return Judge(**{**settings, **changes})


def _by_metric(found: list[Measurement]) -> dict[str, Measurement]:
    assert len({each.metric for each in found}) == len(found)
    return {each.metric: each for each in found}


def test_every_metric_of_the_family_with_count_and_interval() -> None:
    damaged = np.clip(_images().astype(int) - 30, 0, 255).astype(np.uint8)
    found = _by_metric(_judge().measure("int4", damaged))
    family = {name for name, row in METRICS.items() if row.kind == "quality" and name.endswith("_shapes")}
    assert family | {"objects_right", "psnr_db", "ssim"} <= set(found)
    for name in (*family, "psnr_db", "ssim"):
        row = found[name]
        assert row.variant == "int4"
        assert row.value is not None, name
        assert row.low <= row.value <= row.high, name
        assert f"n={COUNT}" in row.note, name
    assert found["clip_shapes_retention"].value < 1
    assert found["fid_shapes_retention"].value < 1  # baseline ÷ optimized: FID rose
    assert "baseline ÷ optimized" in found["fid_shapes_retention"].note
    assert "p = " in found["clip_shapes_retention"].note
    assert len(found["clip_shapes"].samples) == COUNT


def test_the_baseline_against_itself() -> None:
    judge = _judge()
    found = _by_metric(judge.measure("baseline", judge.baseline))
    assert found["lpips_shapes"].value == 0
    assert found["ssim"].value == 1
    assert found["psnr_db"].value == 100
    assert f"{COUNT} of {COUNT} images equal" in found["psnr_db"].note
    kept = [row for name, row in found.items() if name.endswith("_retention")]
    assert len(kept) == 8
    assert {row.value for row in kept} == {1.0}


def test_a_reference_that_is_missing_costs_fid_and_kid_only() -> None:
    found = _by_metric(_judge(reference=NotFound("no photographs", "fetch them")).measure("int8", _images(3)))
    for name in ("fid_shapes", "kid_shapes", "cmmd_shapes", "fid_shapes_retention", "cmmd_shapes_retention"):
        assert found[name].value is None
        assert found[name].note == "no photographs; fetch them"
    assert found["is_shapes"].value is not None
    assert found["clip_shapes"].value is not None


def test_networks_that_are_missing_cost_their_metrics_only() -> None:
    class NoClip(MeanColours):
        suffix = ""

        def made_by(self, reading):
            if reading == "agreement":
                raise NotFound("clip needs a file", "fetch it")
            return super().made_by(reading)

    found = _by_metric(_judge(networks=NoClip(), counts_objects=False).measure("int8", _images(3)))
    assert found["clip"].value is None
    assert found["clip"].note == "clip needs a file; fetch it"
    assert found["clip_retention"].value is None
    assert {"fid", "kid", "is", "lpips"} <= {name for name, row in found.items() if row.value is not None}
    assert not any(name.endswith("_shapes") for name in found)


def test_networks_of_photographs_have_dinov2_and_the_others_do_not() -> None:
    class Seeing(MeanColours):
        suffix = ""

        def dinov2(self, images: np.ndarray) -> np.ndarray:
            return 2 * self.features(images)[0]

    found = _by_metric(_judge(networks=Seeing(), counts_objects=False).measure("int8", _images(3)))
    assert found["fd_dinov2"].value == pytest.approx(4 * found["fid"].value)  # a distance of squares
    assert found["fd_dinov2"].low <= found["fd_dinov2"].value <= found["fd_dinov2"].high
    assert "reference n=100" in found["fd_dinov2"].note
    assert found["fd_dinov2_retention"].value == pytest.approx(found["fid_retention"].value)
    assert not any("dinov2" in name for name in _by_metric(_judge().measure("int8", _images(3))))
    alone = _judge(networks=Seeing(), reference=NotFound("no photographs", "fetch them"), counts_objects=False)
    assert _by_metric(alone.measure("int8", _images(3)))["fd_dinov2"].note == "no photographs; fetch them"


def test_no_networks_leave_the_pairs() -> None:
    reason = BadInput("random weights: quality means nothing", "use sd15")
    found = _by_metric(_judge(networks=NoNetworks(reason), counts_objects=False).measure("int8", _images(3)))
    measured = {name for name, row in found.items() if row.value is not None}
    assert measured == {"ssim", "psnr_db"}
    assert all("random weights" in row.note for name, row in found.items() if name not in measured)
    assert {"fd_dinov2", "cmmd", "clip"} <= set(found)


def test_a_ratio_of_nothing_is_not_a_number() -> None:
    judge = _judge(reference=Reference(_images()))
    found = _by_metric(judge.measure("int8", _images(3)))
    assert found["kid_shapes_retention"].value is None
    assert "not surely above zero" in found["kid_shapes_retention"].note


def test_what_the_reference_left_out_is_in_the_note() -> None:
    reference = Reference(_images(1, 100), Counter({"damaged": 2}))
    found = _by_metric(_judge(reference=reference).measure("int8", _images(3)))
    assert found["fid_shapes"].note.endswith("left out: 2 damaged")
    assert "left out" not in found["is_shapes"].note


def test_several_seeds_are_one_sample_of_whole_prompts() -> None:
    baseline = np.concatenate([_images(0), _images(5)])
    found = _by_metric(_judge(baseline=baseline).measure("int8", np.concatenate([_images(0), _images(6)])))
    assert f"n={2 * COUNT}" in found["clip_shapes"].note
    assert f"paired over {COUNT} prompts" in found["clip_shapes_retention"].note


@pytest.mark.parametrize("images", [_images(count=COUNT - 1), _images()[:, :8]])
def test_images_of_other_prompts_or_sizes_are_refused(images: np.ndarray) -> None:
    with pytest.raises(BadInput, match=r"int8 has 2[34] images of \(\d+, 16\), the baseline 24 of"):
        _judge().measure("int8", images)


def test_images_must_belong_to_the_prompts() -> None:
    with pytest.raises(BadInput, match="24 images of 5 prompts"):
        _judge(prompts=PROMPTS[:5])


def test_the_worst_pictures_are_those_that_lost_most() -> None:
    images = _images().copy()
    images[5, 0, 0] = 255
    images[9, 0, 0] = 0
    images[2, 0, 0, 0] += 1
    expected = MeanColours().distances(images, _images())
    worst = _judge().worst(images, 2)
    assert {row for row, _ in worst} == {5, 9}
    assert worst[0][1] == expected.max() >= worst[1][1]
    assert [row for row, _ in _judge().worst(images, 10)][-1] == 2
    assert _judge().worst(_images(), 4) == []
    without = _judge(networks=NoNetworks(BadInput("no networks", "none")))
    assert {row for row, _ in without.worst(images, 2)} == {5, 9}

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.models.shapes import scenes
from optsd.models.shapes.scenes import Scene, Thing


def test_the_caption_says_what_is_there() -> None:
    scene = Scene((Thing("small", "red", "circle"), Thing("large", "blue", "square")), "to the left of", "beige")
    assert scene.caption == "a small red circle to the left of a large blue square on a beige background"
    assert (
        Scene((Thing("large", "green", "cross"),), None, "black").caption == "a large green cross on a black background"
    )


def test_the_same_seed_gives_the_same_pixels() -> None:
    first, pictures = scenes.dataset(5, 8)
    again, same = scenes.dataset(5, 8)
    assert first == again
    assert np.array_equal(pictures, same)
    assert not np.array_equal(pictures, scenes.dataset(6, 8)[1])


def test_held_out_captions_are_never_among_the_trained_ones() -> None:
    held = {scene.caption for scene in islice(scenes.scenes(1, held_out=True), 200)}
    trained = {scene.caption for scene in islice(scenes.scenes(2, held_out=False), 5000)}
    assert not held & trained


@given(st.integers(0, 2**32 - 1))
def test_two_things_are_told_apart_and_lie_as_the_relation_says(seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    scene = scenes.sample_scene(rng, share_of_pairs=1.0)
    assert scene.labels.sum() == 2
    picture = scenes.render(scene, rng).astype(float)
    assert picture.shape == (64, 64, 3)

    def centre(thing: Thing) -> np.ndarray:
        others = [scenes.COLOURS[other.colour] for other in scene.things if other != thing]
        colours = np.array([scenes.COLOURS[thing.colour], *others, scenes.BACKGROUNDS[scene.background]])
        nearest = np.linalg.norm(picture[:, :, None] - colours, axis=-1).argmin(-1)
        return np.argwhere(nearest == 0).mean(0)

    if scene.things[0].colour == scene.things[1].colour:
        return  # pixels of one colour cannot say which thing they belong to
    (y0, x0), (y1, x1) = centre(scene.things[0]), centre(scene.things[1])
    holds = {"to the left of": x0 < x1, "to the right of": x0 > x1, "above": y0 < y1, "below": y0 > y1}
    assert holds[scene.relation]


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_shapes_have_the_area_of_their_geometry(shape: str) -> None:
    half = 13.0
    inside = np.clip(0.5 - scenes._signed_distance(shape, 32, 32, half), 0, 1).sum()
    area = {
        "circle": np.pi * half**2,
        "square": (2 * 0.88 * half) ** 2,
        "cross": 2 * (2 * half) * (0.72 * half) - (0.72 * half) ** 2,
        "triangle": half * 1.8 * half,
    }[shape]
    assert inside == pytest.approx(area, rel=0.02)


def test_an_unknown_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown shape 'star'; known: circle"):
        scenes._signed_distance("star", 0, 0, 1)


def test_annotations_have_cocos_form() -> None:
    chosen, _ = scenes.dataset(3, 4)
    data = scenes.coco_annotations(chosen)
    assert [row["image_id"] for row in data["annotations"]] == [row["id"] for row in data["images"]]
    assert data["annotations"][2]["caption"] == chosen[2].caption

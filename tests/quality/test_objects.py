"""Captions parse back to what they say, and objects are counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.models.shapes import scenes
from optsd.quality.objects import count_objects, parse


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 10_000))
def test_parse_is_the_inverse_of_a_caption(seed: int) -> None:
    scene = scenes.sample_scene(np.random.Generator(np.random.PCG64(seed)))
    assert parse(scene.caption) == scene


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red circle on a beige background",
        "a small red circle on a beige background.",
        "a small red circle on a pink background",
        "A small red circle on a beige background",
        "a small red circle near a large blue square on a beige background",
        "a small red circle above a large blue square below a small red cross on a beige background",
        "a small red circle on a beige background\n",
    ],
)
def test_other_texts_are_refused(caption: str) -> None:
    with pytest.raises(BadInput, match="describes no scene"):
        parse(caption)


def test_an_object_counts_when_it_is_more_likely_there_than_not() -> None:
    captions = [
        "a small red circle above a large blue square on a beige background",
        "a small red circle above a large blue square on a beige background",
        "a large green cross on a black background",
    ]
    logits = np.full((3, len(scenes.CLASSES)), -3.0)
    red_circle, green_cross = scenes.CLASSES.index(("red", "circle")), scenes.CLASSES.index(("green", "cross"))
    logits[0, red_circle] = 0.1
    logits[1, red_circle] = -0.1
    logits[1, green_cross] = 5
    logits[2, green_cross] = 5
    found, asked = count_objects(captions, logits)
    assert found.tolist() == [1, 0, 1]
    assert asked.tolist() == [2, 2, 1]


def test_a_caption_an_image() -> None:
    with pytest.raises(BadInput, match="2 images and 1 captions"):
        count_objects(["a large green cross on a black background"], np.zeros((2, 24)))

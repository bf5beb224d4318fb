import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.errors import OptsdError
from optsd.measure.pictures import check_pictures

NOISE = np.random.default_rng(0).random((3, 8, 6, 3))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.nan, "int8 draws no pictures: they are NaN or infinite; use --dtype float32"),
        (np.inf, "they are NaN or infinite"),
        (0.0, "int8 draws no pictures: 1 of 3 are of one colour, #000000; look at its weights"),
        (0.5, "1 of 3 are of one colour, #808080"),
        (1.0, "#ffffff"),
    ],
)
def test_what_is_no_picture_is_named(value: float, problem: str) -> None:
    images = NOISE.copy()
    check_pictures(images, "int8")
    images[1] = value
    with pytest.raises(OptsdError, match=problem):
        check_pictures(images, "int8")


def test_one_pixel_of_nan_is_enough_and_a_colour_is_no_picture() -> None:
    images = NOISE.copy()
    images[2, 3, 4, 1] = np.nan
    with pytest.raises(OptsdError, match="NaN"):
        check_pictures(images, "baseline")
    with pytest.raises(OptsdError, match="2 of 2 are of one colour, #ff0033"):
        check_pictures(np.broadcast_to([1.0, 0.0, 0.2], (2, 8, 8, 3)), "baseline")
    with pytest.raises(OptsdError, match="of one colour"):  # but for its last bits
        check_pictures(0.5 + 1e-3 * NOISE, "baseline")


@given(st.floats(0, 1), st.floats(0, 1))
def test_two_colours_make_a_picture(one: float, other: float) -> None:
    images = np.full((1, 4, 4, 3), one)
    images[0, 0, 0, 0] = other
    with contextlib.nullcontext() if abs(one - other) >= 2 / 255 else pytest.raises(OptsdError, match="one colour"):
        check_pictures(images, "flash")

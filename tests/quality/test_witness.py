"""What was timed is what is judged, and is drawn each time."""

import numpy as np
import pytest

from optsd.measure.run import batch_of
from optsd.quality.store import checksum
from optsd.quality.witness import Witness, keeps_answers

PROMPTS = [f"prompt {number}" for number in range(10)]
SIZE = 4


def _picture(index: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([index, seed]).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _seen(rounds: int, judged_first: bool, other: int | None = None, prompts: list[str] | None = None) -> Witness:
    witness = Witness()
    digests = [checksum(_picture(index, int(index == other))) for index in range(len(PROMPTS))]
    if judged_first:
        witness.saw_judged("int8", PROMPTS, digests, SIZE)
    for number in range(rounds + 1):
        batch, first = batch_of(prompts or PROMPTS, SIZE, number)
        witness.saw_timed("int8", batch, first, [_picture(first + place) for place in range(SIZE)])
    if not judged_first:
        witness.saw_judged("int8", PROMPTS, digests, SIZE)
    return witness


@pytest.mark.parametrize("judged_first", [True, False])
@pytest.mark.parametrize("other", range(10))
def test_one_other_picture_of_any_batch_is_named(other: int, judged_first: bool) -> None:
    found = _seen(4, judged_first, other).difference("int8")
    if other < 8:
        assert "int8: 1 of 8 pictures that were timed are not those that are judged" in found
        assert f"the first is number {other}" in found
    else:
        assert not found  # of a batch that is filled up where it is judged, and goes on where it is timed


def test_equal_pictures_other_variants_and_other_prompts_are_no_difference() -> None:
    assert not _seen(4, True).difference("int8")
    assert not _seen(4, True, 0).difference("int4")
    assert not _seen(4, True, 0, [f"another {number}" for number in range(10)]).difference("int8")
    assert not Witness().difference("int8")


def test_a_batch_that_is_timed_again_counts_once_and_as_it_was_first() -> None:
    witness = _seen(1, True, 5)
    witness.saw_timed("int8", *batch_of(PROMPTS, SIZE, 1), [_picture(4 + place, int(place == 1)) for place in range(4)])
    assert "1 of 8" in witness.difference("int8")


def test_an_answer_that_comes_back_in_less_than_half_the_time_was_kept() -> None:
    assert "mine keeps its answers" in keeps_answers("mine", 0.001, [1.0, 1.2])
    assert "took 0.001 s, new prompts at least 1 s" in keeps_answers("mine", 0.001, [1.0, 1.2])
    assert not keeps_answers("mine", 0.51, [1.0, 3.0])
    assert not keeps_answers("mine", 2.0, [1.0])

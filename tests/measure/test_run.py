from dataclasses import replace

import numpy as np

from optsd.measure.run import batch_of, run_batch, timing_prompts
from optsd.models.shapes.scenes import IMAGE_SIZE
from optsd.records import Workload

WORKLOAD = Workload("shapes", "cpu", "float32", 2, 5.0, 64, 64, 2)


def test_the_same_options_give_identical_pictures(untrained) -> None:
    pipe, prompts = untrained(), timing_prompts("shapes", 2)
    first, again = (np.stack(run_batch(pipe, WORKLOAD, prompts)) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (2, IMAGE_SIZE, IMAGE_SIZE, 3)
    other = np.stack(run_batch(pipe, replace(WORKLOAD, seed=43), prompts))
    assert not np.array_equal(first, other)


def test_a_picture_starts_from_the_noise_of_its_index(untrained) -> None:
    pipe, prompts = untrained(), timing_prompts("shapes", 3)
    whole = run_batch(pipe, WORKLOAD, prompts)
    shard = run_batch(pipe, WORKLOAD, prompts[2:], first=2)
    # The batch size changes rounding, hence not identical: but another noise would be another picture.
    assert np.abs(np.asarray(whole[2], int) - np.asarray(shard[0], int)).max() <= 1


def test_prompts_are_the_models_own_kind() -> None:
    assert all("background" in prompt for prompt in timing_prompts("shapes", 5))
    assert timing_prompts("shapes", 5) == timing_prompts("shapes", 5)
    assert len(set(timing_prompts("sd15", 30))) == 30
    assert timing_prompts("sd15", 30)[:6] == timing_prompts("sd15", 6)


def test_batches_of_a_run_have_new_noise_and_new_prompts_while_there_are_some() -> None:
    assert batch_of("abcdef", 4, 0) == (["a", "b", "c", "d"], 0)
    assert batch_of("abcdef", 4, 1) == (["e", "f", "a", "b"], 4)
    assert batch_of("ab", 4, 3) == (["a", "b", "a", "b"], 12)

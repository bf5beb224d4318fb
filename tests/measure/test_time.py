import time

import pytest
import small_pipelines
import torch

from optsd import anatomy
from optsd.measure.run import run_batch, timing_prompts
from optsd.measure.time import seconds, stage_times
from optsd.records import Workload

WORKLOAD = Workload("shapes", "cpu", "float32", 3, 5.0, 64, 64, 1)


def test_seconds_are_seconds() -> None:
    began = time.perf_counter()
    taken = seconds(lambda: time.sleep(0.05), torch.device("cpu"))
    assert 0.05 <= taken <= time.perf_counter() - began


def test_every_stage_is_timed_and_nothing_stays_behind(untrained) -> None:
    pipe = untrained()
    with stage_times(pipe) as times:
        run_batch(pipe, WORKLOAD, timing_prompts("shapes", 1))
    # With guidance the prompt and the empty prompt are encoded apart; a step is one UNet call on both.
    assert {stage: len(readings) for stage, readings in times.items()} == {
        "text_encoder_s": 2,
        "unet_step_s": 3,
        "vae_decode_s": 1,
    }
    assert all(reading > 0 for readings in times.values() for reading in readings)
    assert all("forward" not in vars(module) and "decode" not in vars(module) for module in (pipe.unet, pipe.vae))


@pytest.mark.parametrize(("family", "readings"), [("SDXL", 1), ("SD3", 2), ("FLUX.1", 1), ("Sana", 2)])
def test_one_to_three_text_encoders_are_one_stage(family, readings) -> None:
    """One reading for the prompt and one for the empty prompt (SDXL takes zeros), whatever number of encoders read."""
    pipe = small_pipelines.make(family)
    with stage_times(pipe) as times:
        small_pipelines.draw(family, pipe, num_inference_steps=2, output_type="np")
    counts = {stage: len(each) for stage, each in times.items()}
    assert counts == {"text_encoder_s": readings, "unet_step_s": 2, "vae_decode_s": 1}
    assert not any("_optsd_parts" in vars(m) for n in anatomy.networks(pipe).values() for m in n.modules())


def test_a_method_that_a_technique_has_replaced_is_put_back(untrained) -> None:
    pipe = untrained()
    original = pipe.unet.forward

    def replaced(*arguments, **options):
        return original(*arguments, **options)

    pipe.unet.forward = replaced
    with pytest.raises(RuntimeError, match="stop"), stage_times(pipe):
        raise RuntimeError("stop")
    assert pipe.unet.forward is replaced


def test_no_technique_takes_the_clock_for_another_one_in_its_place(untrained, recwarn) -> None:
    """flash-enhanced replaces the decoder's `decode`, and so does the clock."""
    import optsd

    pipe = untrained()
    patch = optsd.apply(pipe, "flash-enhanced")
    with stage_times(pipe):
        run_batch(pipe, WORKLOAD, timing_prompts("shapes", 1))
        assert patch.active
    assert not [each for each in recwarn if "no longer on this pipeline" in str(each.message)]
    assert not patch.displaced

import copy
import threading

import pytest
import torch
from diffusers import StableDiffusionPipeline

from optsd.calls import parts
from optsd.errors import BadInput, Unsupported
from optsd.optimizations.deepcache import DeepCache
from optsd.optimizations.kernels import example_inputs


@pytest.mark.parametrize(("every", "steps", "whole"), [(2, 1, 1), (2, 4, 2), (3, 7, 3), (9, 4, 1)])
def test_one_whole_step_in_n_and_the_first_of_every_call(pipe, paint, every, steps, whole):
    patch = DeepCache(every).apply(pipe)
    for calls in (1, 2):
        paint(pipe, steps=steps)
        assert patch.proof == {"whole_steps": whole * calls, "shallow_steps": (steps - whole) * calls}


def test_a_call_of_whole_steps_only_is_the_baselines(pipe, paint):
    expected = paint(pipe, 2, steps=1)
    DeepCache(3).apply(pipe)
    assert torch.equal(paint(pipe, 2, steps=1), expected)


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "no-mid"])
def test_a_shallow_step_on_unchanged_deep_features_is_exact(small_unet, bare, family):
    """The same latents at almost the same time: all that a shallow step leaves out would come out the same."""
    unet = small_unet(family)
    inputs = example_inputs(unet, 2, (8, 12))
    inputs["sample"] = torch.randn(inputs["sample"].shape)
    patch = DeepCache(2).apply(bare(unet))
    with torch.no_grad():
        whole = unet(**inputs | {"timestep": 500.0}).sample
        shallow = unet(**inputs | {"timestep": 499.9999}).sample
    assert patch.proof == {"whole_steps": 1, "shallow_steps": 1}
    torch.testing.assert_close(shallow, whole, rtol=1e-4, atol=1e-5)


def test_shallow_steps_see_the_new_latents(small_unet, bare):
    unet = small_unet()
    inputs = example_inputs(unet, 1, (8, 8))
    patch = DeepCache(2).apply(bare(unet))
    noise = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        whole = unet(**inputs | {"timestep": 500, "sample": noise}).sample
        shallow = unet(**inputs | {"timestep": 400, "sample": noise + torch.randn(1, 4, 8, 8) / 2}).sample
    assert patch.proof["shallow_steps"] == 1
    assert not torch.allclose(shallow, whole, atol=1e-2)


def test_latents_that_are_not_the_same_picture_have_features_of_their_own(small_unet, bare):
    """Tiles of one picture, or pictures in turn, under one prompt tensor, in any order: each is what it is alone."""
    unet = small_unet()
    inputs = example_inputs(unet, 1, (8, 8))
    starts = [torch.randn(1, 4, 8, 8) for _ in range(3)]
    DeepCache(3).apply(bare(unet))

    def step(sample, timestep):
        return sample - 0.1 * unet(**inputs | {"timestep": timestep, "sample": sample}).sample

    with torch.no_grad():
        alone = []
        for sample in starts:
            for timestep in (900, 700, 500, 300):
                sample = step(sample, timestep)
            alone.append(sample)
        found = dict(enumerate(starts))
        for timestep, order in ((900, (0, 1, 2)), (700, (2, 0, 1)), (500, (1, 2, 0)), (300, (0, 2, 1))):
            for number in order:
                found[number] = step(found[number], timestep)
    assert all(torch.equal(found[number], alone[number]) for number in found)


def test_a_later_start_does_not_continue_another_picture(small_unet, bare):
    unet = small_unet()
    inputs = example_inputs(unet, 1, (8, 8))
    patch = DeepCache(5).apply(bare(unet))
    with torch.no_grad():
        for timestep in (900, 400):
            unet(**inputs | {"timestep": timestep, "sample": torch.randn(1, 4, 8, 8)})
    assert patch.proof == {"whole_steps": 2, "shallow_steps": 0}


def test_a_swapped_prompt_another_size_and_a_rising_time_begin_anew(small_unet, bare):
    unet = small_unet()
    inputs = example_inputs(unet, 1, (8, 8))
    patch = DeepCache(5).apply(bare(unet))
    with torch.no_grad():
        for change in (
            {"timestep": 500},
            {"timestep": 400, "encoder_hidden_states": torch.ones_like(inputs["encoder_hidden_states"])},
            {"timestep": 400, "sample": torch.zeros(1, 4, 16, 8)},
            {"timestep": 500},
            {"timestep": 500},
        ):
            unet(**inputs | change)
    assert patch.proof == {"whole_steps": 5, "shallow_steps": 0}


def test_an_error_leaves_no_trace(small_unet, bare, denoise):
    unet = small_unet()
    patch = DeepCache(2).apply(bare(unet))
    expected = denoise(unet)
    inputs = example_inputs(unet, 1, (8, 8))
    with torch.no_grad():
        unet(**inputs | {"timestep": 500})
        with pytest.raises(RuntimeError):
            unet(**inputs | {"timestep": 400, "sample": torch.zeros(1, 3, 8, 8)})
    assert torch.equal(denoise(unet), expected)
    patch.undo()
    assert not any(parts(module) for module in unet.modules())


def test_a_first_step_that_failed_leaves_nothing_to_reuse(small_unet, bare):
    unet = small_unet()
    inputs = example_inputs(unet, 1, (8, 8))
    with torch.no_grad():
        expected = unet(**inputs | {"timestep": 400}).sample
    patch = DeepCache(3).apply(bare(unet))
    unet.forward = lambda *args, **kwargs: 1 / 0
    with torch.no_grad():
        with pytest.raises(ZeroDivisionError):
            unet(**inputs | {"timestep": 500})
        del unet.forward
        assert torch.equal(unet(**inputs | {"timestep": 400}).sample, expected)
    assert patch.proof == {"whole_steps": 1, "shallow_steps": 0}


def test_threads_that_share_a_unet(pipe, paint):
    prompts = ["a small red circle", "a large blue square"]
    # What two threads cannot share is their own: the scheduler, and the tokenizer, which keeps how it pads.
    own = {name: copy.deepcopy(pipe.components[name]) for name in ("scheduler", "tokenizer")}
    pipes = [pipe, StableDiffusionPipeline(**pipe.components | own)]
    pipes[1].set_progress_bar_config(disable=True)
    DeepCache(3).apply(pipe)
    expected = [paint(each, steps=4, prompt=[prompt]) for each, prompt in zip(pipes, prompts, strict=True)]
    found: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        found[index] = paint(pipes[index], steps=4, prompt=[prompts[index]])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[index], expected[index]) for index in range(2))


def test_a_controlnet_may_add_to_what_is_left_out(small_unet, bare):
    unet = small_unet()
    inputs = example_inputs(unet, 1, (8, 8))
    inputs["sample"] = torch.randn(1, 4, 8, 8)
    shapes = [(32, 8), (32, 8), (32, 8), (32, 4), (64, 4), (64, 4)]
    residuals = tuple(torch.ones(1, channels, size, size) for channels, size in shapes)
    more = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": torch.ones(1, 64, 4, 4)}
    patch = DeepCache(2).apply(bare(unet))
    with torch.no_grad():
        unet(**inputs | more | {"timestep": 500})
        assert unet(**inputs | more | {"timestep": 400}).sample.isfinite().all()
    assert patch.proof["shallow_steps"] == 1


def test_refusals(small_unet, bare):
    for text in ("", "1", "0", "03", "x", "-2", "2.5"):
        with pytest.raises(BadInput, match="is no interval; give a whole number of steps from 2 on"):
            DeepCache.from_text(text)
    unet = small_unet()
    DeepCache().apply(bare(unet))
    with pytest.raises(Unsupported, match="T2I-Adapter"), torch.no_grad():
        unet(**example_inputs(unet, 1, (8, 8)), down_intrablock_additional_residuals=[])
    other = small_unet(up_block_types=("UpBlock2D", "AttnUpBlock2D"))
    with pytest.raises(Unsupported, match="last layer of AttnUpBlock2D"):
        DeepCache().check(bare(other))

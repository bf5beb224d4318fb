"""What diffusers asserts of its own processors and pipelines, asked of a patched pipeline."""

import pytest
import torch

from optsd.variants import parse

ALIKE = ["sdpa", "flash", "flash+kvcache"]
EXACT = ["flash-enhanced", "kvcache", *ALIKE]
close = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(params=["flash-enhanced", "kvcache", *(pytest.param(name, marks=pytest.mark.whole) for name in ALIKE)])
def patched(request, untrained):
    pipe = untrained()
    parse(request.param).apply(pipe)
    return pipe


def test_the_order_of_calls_does_not_matter(patched, paint):
    first = paint(patched, prompt=["a small red circle"])
    paint(patched, prompt=["a large blue square"])
    assert torch.equal(paint(patched, prompt=["a small red circle"]), first)


def test_one_of_a_batch_is_what_it_would_be_alone(patched, paint):
    torch.testing.assert_close(paint(patched, 3)[:1], paint(patched, 1), **close)


def test_images_per_prompt(patched, paint):
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    images = paint(patched, prompt=["a small red circle"], num_images_per_prompt=2, generator=generators)
    torch.testing.assert_close(images, paint(patched, 2), **close)


def test_embeddings_in_place_of_prompts(patched, paint):
    text, negative = patched.encode_prompt(["a small red circle"], "cpu", 1, True)
    options = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": negative}
    expected = paint(patched)
    assert torch.equal(paint(patched, **options), expected)
    assert torch.equal(paint(patched, **options), expected)
    alone = {"prompt": None, "prompt_embeds": text, "guidance_scale": 1.0}
    assert torch.equal(paint(patched, **alone), paint(patched, guidance_scale=1.0))


def test_a_tuple_in_place_of_the_output_class(patched):
    def run(**options):
        generator = torch.Generator().manual_seed(0)
        return patched("a", num_inference_steps=2, generator=generator, output_type="np", **options)

    assert (run(return_dict=False)[0] == run().images).all()


def test_vae_slicing_and_tiling(patched, paint):
    expected = paint(patched, 2)
    patched.vae.enable_slicing()
    torch.testing.assert_close(paint(patched, 2), expected, **close)
    patched.vae.enable_tiling()
    torch.testing.assert_close(paint(patched, 2), expected, **close)


def test_a_callback_that_clears_the_latents(patched, paint):
    def clear(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    images = paint(patched, 2, steps=3, callback_on_step_end=clear)
    torch.testing.assert_close(images[:1], images[1:], **close)


def test_an_interrupted_call_leaves_the_next_one_alone(patched, paint):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    expected = paint(patched, steps=3)
    stopped = paint(patched, steps=3, callback_on_step_end=stop)
    assert not torch.equal(stopped, expected)
    assert torch.equal(paint(patched, steps=3), expected)


def test_attention_slicing_gives_way_and_comes_back(untrained, paint):
    """diffusers' own slicing is a processor too: ours takes its place, and undo returns it."""
    pipe = untrained()
    expected = paint(pipe)
    pipe.enable_attention_slicing()
    patch = parse("flash").apply(pipe)
    torch.testing.assert_close(paint(pipe), expected, **close)
    assert patch.proof["kernel_calls"] == 2 * len(patch.touched)
    patch.undo()
    assert "Sliced" in type(next(iter(pipe.unet.attn_processors.values()))).__name__


def test_the_output_of_joined_projections(untrained, paint):
    """diffusers' test of `fuse_qkv_projections`: the same before, joined, and apart again."""
    pipe = untrained()
    before = paint(pipe)
    patch = parse("flash-enhanced").apply(pipe)
    torch.testing.assert_close(paint(pipe), before, **close)
    patch.undo()
    assert torch.equal(paint(pipe), before)


@pytest.mark.parametrize("name", ["flash", "kvcache", "flash+kvcache"])
def test_a_patched_pipeline_is_saved_as_it_was(untrained, paint, tmp_path, name):
    from diffusers import StableDiffusionPipeline

    pipe = untrained()
    expected = paint(pipe)
    parse(name).apply(pipe)
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(paint(again), expected)


def test_another_type_after_patching(untrained, paint):
    pipe = untrained()
    patch = parse("flash+kvcache").apply(pipe)
    paint(pipe)
    pipe.to(torch.bfloat16)
    assert paint(pipe).isfinite().all()
    patch.undo()

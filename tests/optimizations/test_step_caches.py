"""The memory of a step cache lives with one call's prompt, whatever the pipeline and its guidance."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from small_pipelines import draw, make

from optsd import anatomy
from optsd.errors import BadInput, NothingMatched, Unsupported
from optsd.variants import canonical, parse

TWO_CALLS = {"negative_prompt": ["blue", "dogs"], "true_cfg_scale": 2.0}
CACHES = ["fbcache:0.5", "taylorseer:2", "pab:2"]


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("family", ["SD3", "FLUX.1"])
def test_nothing_is_left_for_the_next_call(family, name) -> None:
    """A call gives what it gives on a fresh pipeline, after one that was broken off, and with the same embeddings."""
    pipe = make(family)
    patch = parse(name).apply(pipe)
    expected = draw(family, pipe)
    reused = patch.proof["layers_reused"]
    assert reused > 0

    def stop(pipe, step, timestep, tensors):
        if step == 2:
            raise KeyboardInterrupt
        return tensors

    with pytest.raises(KeyboardInterrupt):
        draw(family, pipe, callback_on_step_end=stop)
    before = patch.proof["layers_reused"]
    assert torch.equal(draw(family, pipe), expected)
    assert patch.proof["layers_reused"] == before + reused


@pytest.mark.parametrize("name", CACHES)
def test_the_same_embeddings_again(name) -> None:
    """FLUX hands the caller's very tensor to the transformer: a call that begins anew is told by its timestep."""
    pipe = make("FLUX.1")
    parse(name).apply(pipe)
    with torch.no_grad():
        prompt, pooled, _ = pipe.encode_prompt(["a red circle", "two cats"], None, max_sequence_length=16)

    def call() -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
        sizes = {"height": 16, "width": 16, "num_inference_steps": 5, "output_type": "latent"}
        return pipe(prompt_embeds=prompt, pooled_prompt_embeds=pooled, generator=seeds, **sizes).images

    assert torch.equal(call(), call())


@pytest.mark.parametrize("name", CACHES)
def test_guidance_in_two_calls_is_two_memories(name) -> None:
    """With the same text for both, each half is what it is without guidance."""
    same = {"negative_prompt": ["a red circle", "two cats"], "true_cfg_scale": 2.0}
    pipe = make("FLUX.1")
    patch = parse(name).apply(pipe)
    alone = draw("FLUX.1", pipe)
    once = patch.proof["layers_reused"]
    both = draw("FLUX.1", pipe, **same)
    assert patch.proof["layers_reused"] == 3 * once
    assert torch.allclose(both, alone, atol=1e-4)
    assert not torch.allclose(draw("FLUX.1", pipe, **TWO_CALLS), both, atol=1e-2)


def test_what_is_spared_is_what_the_kernel_does_not_run() -> None:
    pipe = make("FLUX.1")
    patch = parse("int8+flash+taylorseer:2").apply(pipe)
    draw("FLUX.1", pipe)
    assert patch.proof["kernel_calls"] == patch.proof["layers_computed"] > 0
    assert patch.proof["layers_computed"] + patch.proof["layers_reused"] == 5 * patch.proof["cached_layers"]
    assert "left_to" not in patch.proof


def test_undo_leaves_no_hook() -> None:
    pipe = make("SD3")
    patch = parse("fbcache:0.5").apply(pipe)
    patch.undo()
    modules = list(anatomy.denoiser(pipe).modules())[1:]
    assert not any({"forward", "_diffusers_hook"} & set(vars(module)) for module in modules)
    parse("pab:2").apply(pipe)


def test_another_cache_is_on() -> None:
    pipe = make("FLUX.1")
    anatomy.denoiser(pipe).enable_cache(FirstBlockCacheConfig(0.1))
    with pytest.raises(Unsupported, match="a cache of diffusers is on already; call disable_cache"):
        parse("taylorseer").check(pipe)
    with pytest.raises(Unsupported, match="both decide the steps"):
        parse("fbcache+pab")


def test_a_transformer_without_anything_to_keep() -> None:
    pipe = make("SD3")
    network = anatomy.denoiser(pipe)
    network.transformer_blocks = network.transformer_blocks[:1]
    with pytest.raises(NothingMatched, match="found nothing that it can keep"):
        parse("fbcache").check(pipe)


@pytest.mark.parametrize("name", ["fbcache:0", "fbcache:1", "fbcache:x", "fbcache:0.10", "taylorseer:1", "pab:02"])
def test_parameters_that_are_none(name) -> None:
    with pytest.raises(BadInput, match=f"{name} is no"):
        parse(name)


def test_parameters() -> None:
    assert [canonical(name) for name in ("fbcache", "taylorseer", "pab")] == ["fbcache:0.1", "taylorseer:3", "pab:2"]

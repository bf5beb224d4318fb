import gc

import pytest
import torch
from torch import nn

from optsd.anatomy import attentions
from optsd.calls import parts
from optsd.errors import Unsupported
from optsd.optimizations import kernels
from optsd.optimizations.flash_enhanced import FlashOrNext, HalvedBatch, SlicedDecoding
from optsd.optimizations.kernels import example_inputs
from optsd.optimizations.projections import JoinedProjections, lie_together, projections
from optsd.variants import parse


def _limit_unet(unet, latents: int) -> list[int]:
    """Let the UNet run out of memory above a batch of `latents`; returns the batches that it ran, as they come."""
    whole, batches = unet.forward, []

    def forward(sample, *args, **kwargs):
        if len(sample) > latents:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        batches.append(len(sample))
        return whole(sample, *args, **kwargs)

    unet.forward = forward
    return batches


def test_projections_are_joined_without_holding_weights_twice(pipe, paint):
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    expected = paint(pipe)
    patch = parse("flash-enhanced").apply(pipe)
    after = pipe.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in after.values()}
    assert sum(held.values()) == sum(tensor.nbytes for tensor in before.values())
    for attention in (attention for _, attention in attentions(pipe)):
        assert lie_together(projections(attention))
    joined = linear_products(pipe, paint)
    patch.undo()
    spared = sum(1 if attention.is_cross_attention else 2 for _, attention in attentions(pipe))
    assert linear_products(pipe, paint) - joined == 2 * spared
    assert torch.equal(paint(pipe), expected)
    after = pipe.unet.state_dict()
    assert list(after) == list(before)
    storages = [tensor.untyped_storage().data_ptr() for tensor in after.values()]
    assert len(set(storages)) == len(storages)


def linear_products(pipe, paint) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        paint(pipe, steps=2)
    return sum(event.count for event in profile.key_averages() if event.key == "aten::linear")


def to_bfloat16(unet):
    unet.to(torch.bfloat16)


def louder(unet):
    unet.load_state_dict({name: tensor * 1.1 for name, tensor in unet.state_dict().items()}, assign=True)


@pytest.mark.parametrize("move", [to_bfloat16, louder])
def test_weights_that_were_moved_are_joined_again(small_unet, bare, denoise, move):
    unet, plain = small_unet(), small_unet()
    patch = parse("flash-enhanced").apply(bare(unet))
    joined = patch.proof["joined_projections"]
    assert joined == len(list(attentions(bare(unet))))
    for each in (unet, plain):
        move(each)
    torch.testing.assert_close(denoise(unet), denoise(plain), rtol=0.05, atol=0.05)
    assert patch.proof["joined_projections"] == joined


def test_projections_with_biases(small_unet, bare, denoise):
    unet = small_unet()
    for _, attention in attentions(bare(unet)):
        for name in ("to_q", "to_k", "to_v"):
            layer = getattr(attention, name)
            layer.bias = nn.Parameter(torch.randn(layer.out_features))
    expected = denoise(unet)
    for patch in (JoinedProjections().apply(bare(unet)), FlashOrNext().apply(bare(unet))):
        assert patch.touched
    torch.testing.assert_close(denoise(unet), expected, rtol=1e-4, atol=1e-5)


def test_only_plain_linear_layers_are_joined(pipe, paint):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for _, attention in attentions(pipe):
        attention.to_k.__class__ = Doubled
    expected = paint(pipe)
    patch = parse("flash-enhanced").apply(pipe)
    torch.testing.assert_close(paint(pipe), expected, rtol=0, atol=1e-4)
    layers = len(list(attentions(pipe)))
    assert (patch.proof["joined_projections"], patch.proof["separate_projections"]) == (0, layers)


def test_fallbacks_in_the_declared_order_with_their_reasons(monkeypatch, small_unet, bare, denoise):
    unet = small_unet()
    expected = denoise(unet)

    def fail(*args):
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(kernels.CpuFlash, "__call__", fail)
    monkeypatch.setattr(kernels.CpuFlash, "refusal", kernels.Flash.refusal)  # wherever the test runs
    monkeypatch.setattr(kernels.Flash, "__call__", fail)
    patch = FlashOrNext().apply(bare(unet))
    torch.testing.assert_close(denoise(unet), expected, rtol=1e-4, atol=1e-5)
    assert patch.proof == {
        "kernel": "aten::softmax",
        "kernel_calls": 3 * len(patch.touched),
        "passed_over": {
            "flash-attn": "it runs on CUDA, not on cpu",
            "CPU flash": "it failed: no kernel image is available",
            "cuDNN flash": "it runs on CUDA, not on cpu",
            "SDPA flash": "it failed: no kernel image is available",
            "memory-efficient": "it runs on CUDA, not on cpu",
        },
    }


def test_a_kernel_that_runs_out_of_memory_is_not_passed_over(monkeypatch, small_unet, bare, denoise):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels.CpuFlash, "__call__", fail)
    monkeypatch.setattr(kernels.Flash, "__call__", fail)
    unet = small_unet()
    FlashOrNext().apply(bare(unet))
    with pytest.raises(torch.OutOfMemoryError):
        denoise(unet)


def test_a_halved_batch_gives_the_smaller_batchs_images(untrained, paint):
    small = untrained()
    parse("flash-enhanced+kvcache").apply(small)
    options = {"prompt": ["a small red circle", "a large blue square"]}
    expected = paint(small, 2, **options)

    pipe = untrained()
    batches = _limit_unet(pipe.unet, 4)
    patch = parse("flash-enhanced+kvcache").apply(pipe)
    images = paint(pipe, 4, steps=2, prompt=options["prompt"] * 2)
    assert torch.equal(images[:2], expected)
    assert batches == [4, 4] * 2
    assert patch.proof["batch_retries"] == 1
    assert patch.proof["batch_limits"] == {"4×16×16": 4}
    layers = patch.proof["text_layers"]
    assert (patch.proof["text_computed"], patch.proof["text_reused"]) == (2 * layers, 2 * layers)
    batches.clear()
    paint(pipe, 4)
    assert batches == [4, 4] * 2
    assert patch.proof["batch_retries"] == 1


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("as_tuple", [True, False])
def test_halving_divides_every_argument(small_unet, bare, family, as_tuple):
    unet = small_unet(family)
    inputs = example_inputs(unet, 3, (8, 8))
    inputs["sample"] = torch.randn(3, 4, 8, 8)
    inputs["timestep"] = torch.tensor([900, 500, 100])
    inputs["encoder_attention_mask"] = torch.ones(3, 77)
    with torch.no_grad():
        expected = unet(**inputs).sample
        batches = _limit_unet(unet, 1)
        patch = HalvedBatch().apply(bare(unet))
        output = unet(**inputs, return_dict=not as_tuple)
    torch.testing.assert_close(output[0] if as_tuple else output.sample, expected, rtol=1e-4, atol=1e-5)
    assert batches == [1, 1, 1]
    assert patch.proof == {"batch_retries": 2, "batch_limits": {"4×8×8": 1}}


def test_halved_texts_die_with_the_prompt(small_unet, bare):
    unet = small_unet()
    _limit_unet(unet, 1)
    HalvedBatch().apply(bare(unet))
    inputs = example_inputs(unet, 2, (8, 8))
    with torch.no_grad():
        unet(**inputs)
    store = parts(unet)[-1].parts
    assert len(store) == 1
    del inputs
    gc.collect()
    assert len(store) == 0


def test_one_latent_too_many_and_other_errors_are_raised(small_unet, bare):
    unet = small_unet()
    _limit_unet(unet, 0)
    HalvedBatch().apply(bare(unet))
    with pytest.raises(torch.OutOfMemoryError), torch.no_grad():
        unet(**example_inputs(unet, 4, (8, 8)))
    unet.forward = small_unet().forward
    with pytest.raises(RuntimeError, match="channels"), torch.no_grad():
        unet(**example_inputs(unet, 4, (8, 8)) | {"sample": torch.zeros(4, 3, 8, 8)})


def test_decoding_one_by_one_and_in_tiles_only_when_memory_runs_out(pipe, paint):
    expected = paint(pipe, 2)
    whole, batches = pipe.vae._decode, []

    def _decode(latents, **kwargs):
        batches.append(len(latents))
        if latents.shape[-1] > 16 and not pipe.vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(latents, **kwargs)

    pipe.vae._decode = _decode
    patch = SlicedDecoding().apply(pipe)
    torch.testing.assert_close(paint(pipe, 2), expected, rtol=0, atol=1e-5)
    assert batches == [1, 1]
    assert patch.proof == {"vae_slicing": True, "vae_tiled_retries": 0}
    assert paint(pipe, 1, height=64, width=96).shape == (1, 3, 64, 96)
    assert patch.proof["vae_tiled_retries"] == 1
    patch.undo()
    assert (pipe.vae.use_slicing, pipe.vae.use_tiling) == (False, False)


def test_decoding_errors_are_raised(pipe, bare):
    def fail(latents, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    pipe.vae._decode = fail
    patch = SlicedDecoding().apply(pipe)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        pipe.vae.decode(torch.zeros(1, 4, 8, 8))
    assert patch.proof["vae_tiled_retries"] == 1
    other = bare(pipe.unet)
    other.vae = None
    with pytest.raises(Unsupported, match="needs a VAE"):
        SlicedDecoding().check(other)

import copy
import gc
import threading

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from optsd.calls import interpose, parts
from optsd.errors import NothingMatched, Unsupported
from optsd.optimizations.kvcache import CachedText, KVCache


@pytest.mark.parametrize(("steps", "guidance"), [(1, 5.0), (2, 1.0), (4, 5.0)])
def test_computed_once_a_layer_and_call(pipe, paint, steps, guidance):
    patch = KVCache().apply(pipe)
    layers = len(patch.touched)
    for calls in (1, 2):
        paint(pipe, steps=steps, guidance_scale=guidance)
        assert patch.proof == {
            "text_layers": layers,
            "text_computed": layers * calls,
            "text_reused": layers * calls * (steps - 1),
        }


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_equal_to_the_bit(pipe, paint, guidance):
    expected = paint(pipe, 2, guidance_scale=guidance)
    KVCache().apply(pipe)
    assert torch.equal(paint(pipe, 2, guidance_scale=guidance), expected)


def _swap(pipe, step, timestep, tensors):
    return {"prompt_embeds": tensors["prompt_embeds"].flip(1)} if step == 1 else {}


def _change_in_place(pipe, step, timestep, tensors):
    tensors["prompt_embeds"].mul_(-1)
    return {}


@pytest.mark.parametrize("callback", [_swap, _change_in_place])
def test_prompts_that_change_in_mid_run(pipe, paint, callback):
    options = {
        "steps": 4,
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    plain = paint(pipe, steps=4)
    expected = paint(pipe, **options)
    patch = KVCache().apply(pipe)
    assert torch.equal(paint(pipe, **options), expected)
    assert not torch.equal(expected, plain)
    assert patch.proof["text_computed"] == patch.proof["text_layers"] * (2 if callback is _swap else 4)


def test_two_pipelines_that_share_a_unet_and_threads(pipe, paint):
    prompts = ["a small red circle", "a large blue square"]
    # What two threads cannot share is their own: the scheduler, and the tokenizer, which keeps how it pads.
    own = {name: copy.deepcopy(pipe.components[name]) for name in ("scheduler", "tokenizer")}
    pipes = [pipe, StableDiffusionPipeline(**pipe.components | own)]
    pipes[1].set_progress_bar_config(disable=True)
    expected = [paint(each, steps=4, prompt=[prompt]) for each, prompt in zip(pipes, prompts, strict=True)]
    KVCache().apply(pipes[0])
    found: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        found[index] = paint(pipes[index], steps=4, prompt=[prompts[index]])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert torch.equal(found[index], expected[index])
        assert torch.equal(paint(pipes[index], steps=4, prompt=[prompts[index]]), expected[index])


def test_nothing_outlives_the_call(pipe, paint):
    patch = KVCache().apply(pipe)
    (store,) = {part.store for module in pipe.unet.modules() for part in parts(module) if hasattr(part, "store")}
    paint(pipe)
    assert patch.proof["text_computed"]
    gc.collect()
    assert len(store) == 0


@given(st.lists(st.sampled_from(["same", "new", "change", "load", "inference", "change inference"]), max_size=12))
def test_never_anothers_keys(events):
    """Whatever happens between calls, the layer returns what it would compute now. Addresses are reused on purpose."""
    layer = nn.Linear(3, 2)
    cached = CachedText()
    interpose(layer, cached)
    text = torch.randn(1, 2, 3)
    with torch.no_grad():
        for event in ("same", *events):
            if event == "new":
                del text
                text = torch.randn(1, 2, 3)
            elif event == "inference":
                with torch.inference_mode():
                    text = torch.randn(1, 2, 3)
            elif event == "change inference":
                with torch.inference_mode():
                    text.add_(1)
            elif event == "change" and not text.is_inference():
                text.add_(1)
            elif event == "load":
                layer.load_state_dict({"weight": torch.randn(2, 3), "bias": torch.randn(2)})
            assert torch.equal(layer(text), layer.forward(text))
    assert cached.tally["computed"] + cached.tally["reused"] == 1 + len(events)


def test_inference_mode_reuses_too(pipe, paint):
    patch = KVCache().apply(pipe)
    with torch.inference_mode():
        paint(pipe, steps=3)
    assert patch.proof["text_reused"] == 2 * patch.proof["text_layers"]


def test_training_is_left_alone(pipe):
    patch = KVCache().apply(pipe)
    text = torch.randn(1, 4, 128)
    for _ in range(2):
        pipe.unet(torch.randn(1, 4, 8, 8), 10, text).sample.sum().backward()
    assert patch.proof["text_reused"] == 0


def test_a_deep_copy_has_weights_of_its_own(pipe):
    KVCache().apply(pipe)
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    twin = copy.deepcopy(pipe.unet).mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    nn.init.zeros_(twin.weight)
    text = torch.randn(1, 4, 128)
    with torch.no_grad():
        assert not twin(text).any()
        assert layer(text).any()


def test_layers_keep_their_names_and_weights(pipe):
    before = set(pipe.unet.state_dict())
    patch = KVCache().apply(pipe)
    assert set(pipe.unet.state_dict()) == before
    patch.undo()
    assert not any(parts(module) for module in pipe.unet.modules())


def test_refusals(small_unet, bare):
    with pytest.raises(Unsupported, match="projects the text anew in every step"):
        KVCache().check(bare(small_unet(encoder_hid_dim=10)))
    normed = small_unet()
    normed.mid_block.attentions[0].transformer_blocks[0].attn2.norm_cross = nn.LayerNorm(24)
    with pytest.raises(Unsupported, match="normalizes the text anew in every step"):
        KVCache().check(bare(normed))
    untold = small_unet(
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type="UNetMidBlock2D"
    )
    with pytest.raises(NothingMatched, match="no cross-attention"):
        KVCache().apply(bare(untold))

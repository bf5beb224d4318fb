"""Where two pipelines part: mistakes are planted, and found where they are."""

import pytest
import small_pipelines
import torch

from optsd import anatomy
from optsd.measure.divergence import diverge
from optsd.variants import against_eager


def course(name="SD 1.5", a="baseline", b="baseline", plant=None, steps=3):
    """Pipelines of variants `a` and `b`, compared; `plant(pipe)` changes the second one."""
    pipes = []
    for variant in (a, b):
        pipes.append(small_pipelines.make(name))
        against_eager(variant).apply(pipes[-1])
    if plant:
        plant(pipes[1])

    def run(pipe):
        return lambda: small_pipelines.draw(name, pipe, num_inference_steps=steps, output_type="np")

    with torch.no_grad():
        return diverge(*pipes, *map(run, pipes))


def replace_output(pipe, network, module, call, change):
    """In each picture, from a certain call of its network on, a module gives something else."""
    networks, count = anatomy.networks(pipe), [0]
    root = networks[network]
    networks["text_encoder"].register_forward_pre_hook(lambda *_: count.__setitem__(0, 0))
    root.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))

    def hook(_, __, output):
        return change(output) if count[0] >= call else None

    anatomy.at(root, module)[0].register_forward_hook(hook)


def test_equal_pipelines_do_not_part():
    found = course()
    assert found.first is None
    assert {point.network for point in found.course} >= {"text_encoder", "unet", "vae"}
    assert all(point.error == 0 < point.rounding < 1e-3 for point in found.course)


@pytest.mark.parametrize("technique", ["flash", "kvcache", "flash+kvcache"])
def test_exact_techniques_round_otherwise_and_no_more(technique):
    assert course(b=technique).first is None


@pytest.mark.parametrize(
    ("module", "call"),
    [("mid_block.attentions.0.transformer_blocks.0.attn1", 2), ("up_blocks.0.resnets.1", 3), ("conv_in", 1)],
)
def test_a_wrong_sign_is_found_in_the_block_and_step_where_it_is(module, call):
    found = course(plant=lambda pipe: replace_output(pipe, "unet", module, call, torch.neg))
    assert (found.first.network, found.first.call, found.first.module) == ("unet", call, module)


def test_in_the_text_encoder():
    name = "text_model.encoder.layers.1.mlp.fc2"
    encoder = anatomy.networks(small_pipelines.make("SD 1.5"))["text_encoder"]
    module = next(place for place, _ in encoder.named_modules() if place.endswith(name.removeprefix("text_model.")))
    found = course(plant=lambda pipe: replace_output(pipe, "text_encoder", module, 1, torch.neg))
    assert (found.first.network, found.first.module) == ("text_encoder", module)


def test_nan_on_one_side_alone_parts():
    found = course(plant=lambda pipe: replace_output(pipe, "unet", "conv_norm_out", 2, lambda x: x * torch.nan))
    assert (found.first.call, found.first.module, found.first.error) == (2, "conv_norm_out", float("inf"))


def test_an_approximate_technique_parts_at_once():
    found = course(b="int8")
    assert (found.first.network, found.first.call) == ("unet", 1)


def test_hooks_are_gone_afterwards():
    pipe = small_pipelines.make("SD 1.5")
    run = lambda: small_pipelines.draw("SD 1.5", pipe, num_inference_steps=1, output_type="np")  # noqa: E731
    with torch.no_grad():
        diverge(pipe, pipe, run, run)
    assert not any(part._forward_hooks for root in anatomy.networks(pipe).values() for part in root.modules())

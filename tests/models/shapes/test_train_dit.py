import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, safe_open

from optsd.models.shapes import fitting, networks, train, train_dit


@pytest.fixture
def small(monkeypatch) -> None:
    """The recipe of the transformer, with hardly any steps and scenes."""
    monkeypatch.setattr(train_dit, "DIT", replace(train_dit.DIT, steps=3, batch=2))
    monkeypatch.setattr(train_dit, "DIT_SCENES", 4)
    monkeypatch.setattr(fitting, "CHECKPOINT_EVERY", 2)


@pytest.mark.parametrize("number", [0, 1, 77, 256])
def test_one_token_that_weighs_as_much_is_as_good_as_many(number: int) -> None:
    torch.manual_seed(number)
    model = networks.dit().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)  # as it begins, every block is the identity
    latents, texts, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 32, 256), torch.randn(2, 256)
    when = torch.tensor([100.0, 900.0])
    many = model(latents, F.pad(texts, (0, 0, 0, number)), pooled, when).sample
    model.set_attn_processor(train_dit.WeighedJointAttention())
    mask = F.pad(torch.tensor([[[[math.log(number) if number else -math.inf]]]]), (64 + 32, 0))
    one = model(latents, F.pad(texts, (0, 0, 0, 1)), pooled, when, joint_attention_kwargs={"attention_mask": mask})
    torch.testing.assert_close(one.sample, many, rtol=1e-4, atol=1e-4)


def test_the_stage_resumes_and_ships_a_whole_pipeline(small: None, tmp_path: Path, monkeypatch) -> None:
    import diffusers

    train.train(["dit"], tmp_path / "whole", "cpu")
    with monkeypatch.context() as broken:
        broken.setattr(fitting.nn.utils, "clip_grad_norm_", _interrupt_at(3))
        with pytest.raises(KeyboardInterrupt):
            train.train(["dit"], tmp_path / "cut", "cpu")
    train.train(["dit"], tmp_path / "cut", "cpu", weights=tmp_path / "shipped")
    whole, resumed = (load_file(tmp_path / folder / "dit.safetensors") for folder in ("whole", "cut"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert any(tensor.any() for name, tensor in whole.items() if name == "proj_out.weight")  # it learned something

    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "shipped" / "dit", dtype=torch.float32, **absent)
    assert type(pipe) is diffusers.StableDiffusion3Pipeline
    assert torch.equal(pipe.transformer.proj_out.weight, whole["proj_out.weight"].half().float())
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a small red circle on a grey background", num_inference_steps=1).images[0].size == (64, 64)
    with safe_open(tmp_path / "shipped" / "dit" / "vae" / "diffusion_pytorch_model.safetensors", "pt") as stored:
        shipped = load_file(train_dit.WEIGHTS / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(stored.get_tensor(name), tensor) for name, tensor in shipped.items())


def _interrupt_at(call: int):
    clip, calls = torch.nn.utils.clip_grad_norm_, iter(range(1, 100))

    def clip_or_stop(*arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return clip(*arguments)

    return clip_or_stop

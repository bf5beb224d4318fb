"""diffusers' blocks and what takes their place between quantized layers: the same but for bfloat16's rounding."""

import copy

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from optsd import native
from optsd.quantization.boundary import FUSED

pytestmark = pytest.mark.skipif(bool(native.refusal()), reason=f"{native.refusal()}")


def agree(block: torch.nn.Module, x: torch.Tensor, *others: torch.Tensor | None, operators: dict[str, int]) -> None:
    """The fused block in bfloat16 against diffusers' own in float32, and how often each operator ran."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(parameter.bfloat16() + torch.randn_like(parameter).bfloat16() / 16)
        wanted = block(x, *others)
        fused = copy.deepcopy(block).bfloat16().to(memory_format=torch.channels_last)
        fused.__class__ = FUSED[type(block)]
        x = x.bfloat16()
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            given_back = fused(x, *(each if each is None else each.bfloat16() for each in others))
    wanted, given_back = (getattr(each, "sample", each) for each in (wanted, given_back))
    assert given_back.dtype == torch.bfloat16
    assert (given_back - wanted).abs().max() < 0.03 * wanted.abs().max()
    calls = {event.key: event.count for event in profile.key_averages() if event.key.startswith("optsd::")}
    assert calls == operators


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 2),
        ({"out_channels": 24}, 2),
        ({"temb_channels": None}, 0),
        ({"skip_time_act": True}, 2),
        ({"output_scale_factor": 2.0}, 2),
        ({"up": True}, 0),
        ({"down": True}, 0),
        ({"time_embedding_norm": "scale_shift"}, 0),
        ({"non_linearity": "gelu"}, 0),
    ],
    ids=str,
)
def test_residual_blocks(options, calls) -> None:
    """What the fused form does not know is left to diffusers."""
    torch.manual_seed(0)
    block = ResnetBlock2D(**{"in_channels": 16, "temb_channels": 8, "groups": 4} | options).eval()
    time = None if block.time_emb_proj is None else torch.randn(2, 8).bfloat16().float() * 3
    x = torch.randn(2, 16, 6, 6).bfloat16().float()
    agree(block, x, time, operators={"optsd::group_norm_silu": calls} if calls else {})


@pytest.mark.parametrize("linear", [False, True])
def test_transformers(linear) -> None:
    torch.manual_seed(0)
    block = Transformer2DModel(2, 8, 16, norm_num_groups=4, use_linear_projection=linear).eval()
    x = torch.randn(2, 16, 6, 5).bfloat16().float()
    # its GEGLU is diffusers' own here
    agree(block, x, operators={})


def test_geglu() -> None:
    torch.manual_seed(0)
    agree(GEGLU(12, 20), torch.randn(3, 12).bfloat16().float(), operators={"optsd::geglu": 1})

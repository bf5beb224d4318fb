"""Norms with SiLU and GEGLU as a GPU computes them, in Triton's interpreter, against torch in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from optsd.errors import Unsupported
from optsd.quantization import between

pytest.importorskip("triton")
ORDERS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("shape", "groups", "mean"),
    [
        *(((2, 20, 6, 5), 4, 0.0), ((1, 70, 9, 7), 7, 0.0), ((2, 8, 37, 31), 2, 0.0), ((1, 4, 1, 1), 1, 0.0)),
        ((1, 8, 16, 16), 2, 300.0),  # squares of such numbers leave nothing of what differs, in float32
    ],
)
@pytest.mark.parametrize("silu", [True, False])
def test_a_group_norm_is_torch_s(shape, groups, mean, order, silu, device) -> None:
    x = (torch.randn(shape) * 2 + mean).to(device, memory_format=ORDERS[order])
    norm = nn.GroupNorm(groups, shape[1], eps=1e-5).requires_grad_(False)
    norm.weight.copy_(torch.randn(shape[1]))
    norm.bias.copy_(torch.randn(shape[1]))
    wanted = norm.double()(x.cpu().double())
    wanted = functional.silu(wanted) if silu else wanted
    found = between.group_norm(x, norm.float().to(device), silu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 5, 600), (3, 8), (1, 0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_geglu_is_torch_s(shape, dtype, device) -> None:
    x = torch.randn(shape).to(device, dtype) * 2
    values, gate = x.cpu().double().chunk(2, -1)
    found = between.geglu(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), values * functional.gelu(gate), rtol=1e-3, atol=1e-3)


def test_holes_in_memory_are_seen(device) -> None:
    x = torch.randn(2, 8, 6, 10, device=device)[..., ::2]
    norm = nn.GroupNorm(2, 8).to(device).requires_grad_(False)
    torch.testing.assert_close(between.group_norm(x, norm, silu=False), norm(x), rtol=1e-4, atol=1e-4)


def test_who_follows_sees_the_operators_by_name(device) -> None:
    """Elsewhere the kernels are called past torch's dispatcher."""
    x, norm = torch.randn(1, 8, 4, 4, device=device), nn.GroupNorm(2, 8).to(device).requires_grad_(False)
    between.group_norm(x, norm, silu=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        between.group_norm(x, norm, silu=True)
    seen = {event.key for event in profile.key_averages()}
    assert {"optsd::channel_moments", "optsd::group_scales", "optsd::scaled"} <= seen


def test_there_is_no_backward_pass(device) -> None:
    """Without a word torch would leave the gradient out."""
    x, norm = torch.randn(1, 8, 4, 4, device=device, requires_grad=True), nn.GroupNorm(2, 8).to(device)
    with pytest.raises(Unsupported, match="no backward pass"):
        between.group_norm(x, norm, silu=True).sum().backward()

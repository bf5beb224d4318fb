"""Norms with SiLU and GEGLU as a GPU computes them, in Triton's interpreter, against torch in float64."""

import copy

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.nn import functional

from optsd.errors import Unsupported
from optsd.quantization import between, blocks, boundary, quantizing
from optsd.quantization.kernels import KERNELS
from optsd.quantization.layers import QuantizedLayer, quantize_layer
from optsd.quantization.operators import compiled

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


@pytest.mark.parametrize("shape", [(2, 5, 600), (700, 8), (1, 3, 1000)])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_norm_is_torch_s_and_carries_its_integers(shape, adds, dtype, device) -> None:
    x, added = ((torch.randn(shape) * 2 + 5).to(device, dtype) for _ in range(2))
    norm = nn.LayerNorm(shape[-1]).requires_grad_(False)
    norm.weight.copy_(torch.randn(shape[-1]))
    norm.bias.copy_(torch.randn(shape[-1]))
    norm = norm.to(device, dtype)
    total, found = between.add_layer_norm(x, added, norm) if adds else (x, between.layer_norm(x, norm))
    assert torch.equal(total, x + added if adds else x)
    wanted = functional.layer_norm(total.double(), (shape[-1],), norm.weight.double(), norm.bias.double(), norm.eps)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3 if dtype == torch.float16 else 1e-5)
    carries_its_integers(found)


@pytest.mark.parametrize("shape", [(2, 5, 600), (700, 8), (1, 3, 2000)])
def test_geglu_carries_its_integers(shape, device) -> None:
    x = torch.randn(shape).to(device, torch.float16) * 2
    found = between.geglu_to_integers(x)
    assert torch.equal(found, between.geglu(x))
    carries_its_integers(found)


@pytest.mark.parametrize(
    "shape", [(2, 20, 6, 5), (1, 70, 9, 7), (2, 8, 37, 31), pytest.param((1, 576, 8, 920), marks=pytest.mark.whole)]
)
def test_a_group_norm_carries_its_ranges(shape, device) -> None:
    x = (torch.randn(shape) * 2).to(device, torch.float16, memory_format=torch.channels_last)
    x[0, 1, 2, 3] = 30.0
    norm = nn.GroupNorm(2, shape[1]).to(device, torch.float16).requires_grad_(False)
    found = between.group_norm(x, norm, silu=True, to_integers=True)
    plain = between.group_norm(x, norm, silu=True)
    assert torch.equal(found, plain)
    assert quantizing.carried(found, 1)
    assert quantizing.carried(plain, 1) is None
    assert quantizing.carried(found, 3) is None  # no integers of rows
    same(quantizing.pictures(found, (1, 1, 1, 1)), quantizing.pictures(plain, (1, 1, 1, 1)))


def test_of_too_many_blocks_none_tells_its_range(device) -> None:
    """As of a VAE's pictures: every block that makes integers would read them all."""
    assert blocks.has_ranges(4096, 960)
    assert not blocks.has_ranges(512 * 512, 256)
    assert len(between._empty_pictures(torch.empty(2, 256, 512, 512, device="meta"), None, True, False)[1]) == 0


def carries_its_integers(x: torch.Tensor) -> None:
    """Those that it would be given, until it is changed."""
    assert quantizing.carried(x, 3)
    same(quantizing.rows(x, x.ndim - 1), quantizing.rows(x.clone(), x.ndim - 1))
    x[..., 0] = 7
    assert quantizing.carried(x, 3) is None
    same(quantizing.rows(x, x.ndim - 1), quantizing.rows(x.clone(), x.ndim - 1))


def same(found, wanted) -> None:
    for ours, theirs in zip(vars(found).values(), vars(wanted).values(), strict=True):
        assert torch.equal(ours.flatten(), theirs.flatten())


OPTIONS = {"norm_num_groups": 4, "cross_attention_dim": 16}
BLOCKS = {
    "residual": (lambda: ResnetBlock2D(in_channels=16, temb_channels=8, groups=4), [(2, 16, 6, 6), (2, 8)]),
    "wider": (lambda: ResnetBlock2D(in_channels=16, out_channels=24, temb_channels=None, groups=4), [(2, 16, 6, 6), 0]),
    "pictures": (lambda: Transformer2DModel(2, 8, 16, **OPTIONS), [(2, 16, 6, 5), (2, 7, 16)]),
    "linear": (
        lambda: Transformer2DModel(2, 8, 16, use_linear_projection=True, **OPTIONS),
        [(2, 16, 6, 5), (2, 7, 16)],
    ),
    "tokens": (lambda: BasicTransformerBlock(16, 2, 8, cross_attention_dim=16), [(2, 7, 16), 0, (2, 5, 16)]),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_on_a_gpu_are_diffusers_own(name, bits, device, monkeypatch) -> None:
    """The same but for last bits; and not where somebody wants to see what lies between."""
    monkeypatch.setattr(boundary, "on_cpu", lambda x: False)
    monkeypatch.setattr(type(KERNELS["triton"]), "refusal", lambda *_, **__: "")
    torch.manual_seed(0)
    make, shapes = BLOCKS[name]
    plain = make().eval().requires_grad_(False).to(device)
    for parent in list(plain.modules()):
        for place, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | nn.Conv2d):
                setattr(parent, place, quantize_layer(child, bits, 4, "triton"))
    plain = plain.to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    for module in fused.modules():
        module.__class__ = boundary.FUSED.get(type(module), type(module))
    given = [torch.randn(shape).to(device) if shape else None for shape in shapes]

    def run(module: nn.Module) -> tuple[torch.Tensor, dict[str, int]]:
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            output = module(*given)
        return getattr(output, "sample", output), {each.key: each.count for each in profile.key_averages()}

    (wanted, before), (found, after) = run(plain), run(fused)
    close = 0.02 * wanted.abs().max()
    assert (found - wanted).abs().max() < close
    assert launches(after) < launches(before)
    seen: list[int] = []
    norms = [module for module in fused.modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm)]
    layers = [module for module in fused.modules() if isinstance(module, QuantizedLayer)]
    for module in (*norms, *layers):
        module.register_forward_hook(lambda layer, args, output: seen.append(id(layer)))
    with torch.no_grad():
        output = fused(*given)
        again = getattr(output, "sample", output)
    assert (again - wanted).abs().max() < close
    assert {*seen} == {*map(id, (*norms, *layers))}


def launches(seen: dict[str, int]) -> int:
    ours = sum(count for key, count in seen.items() if key.startswith("optsd::"))
    return ours + sum(
        seen.get(f"aten::{name}", 0) for name in ("add", "native_group_norm", "native_layer_norm", "silu")
    )


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


def test_a_sum_of_two_types_or_sizes_is_torch_s(device) -> None:
    """As autocast leaves them."""
    norm = nn.LayerNorm(8).to(device).requires_grad_(False)
    x, added = torch.randn(2, 3, 8, device=device, dtype=torch.float16), torch.randn(1, 3, 8, device=device) * 1e5
    total, normal = between.add_layer_norm(x, added, norm)
    assert torch.equal(total, x + added)
    assert total.dtype == torch.float32
    torch.testing.assert_close(normal, norm(total), rtol=1e-4, atol=1e-4)


def test_norms_of_other_types_are_other_kernels(device) -> None:
    """What is compiled for one shape is not launched for numbers of another type."""
    made = compiled("triton_between")
    before = [each.cache_info().misses for each in (made.of_layer_norm, made.of_scales)]
    for kinds in ((torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.float32)):
        for make, shape in ((nn.LayerNorm, (2, 3, 8)), (lambda width: nn.GroupNorm(2, width), (2, 8, 3, 3))):
            norm = make(8).requires_grad_(False).to(device)
            norm.weight.data, norm.bias.data = (torch.randn(8, device=device).to(kind) for kind in kinds)
            x = torch.randn(shape, device=device)
            found = between.layer_norm(x, norm) if len(shape) == 3 else between.group_norm(x, norm, silu=False)
            torch.testing.assert_close(found, norm.float()(x), rtol=1e-4, atol=1e-4)
    after = [each.cache_info().misses for each in (made.of_layer_norm, made.of_scales)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 3]


def test_there_is_no_backward_pass(device) -> None:
    """Without a word torch would leave the gradient out, be it of what is added."""
    x, norm = torch.randn(2, 8, device=device), nn.LayerNorm(8).to(device).requires_grad_(False)
    with pytest.raises(Unsupported, match="no backward pass"):
        between.add_layer_norm(x, x.clone().requires_grad_(), norm)[0].sum().backward()
    x, norm = torch.randn(1, 8, 4, 4, device=device, requires_grad=True), nn.GroupNorm(2, 8).to(device)
    with pytest.raises(Unsupported, match="no backward pass"):
        between.group_norm(x, norm, silu=True).sum().backward()

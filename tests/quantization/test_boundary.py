"""diffusers' blocks and what takes their place between quantized layers: the same but for bfloat16's rounding."""

import copy

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from optsd import native
from optsd.quantization.boundary import FUSED
from optsd.quantization.layers import QuantizedLayer, quantize_layer

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
        ({"temb_channels": None}, 2),
        ({"temb_channels": None, "time_embedding_norm": "group"}, 2),
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
    agree(block, x, time, operators={"optsd::group_norm": calls} if calls else {})


@pytest.mark.parametrize("linear", [False, True])
def test_transformers(linear) -> None:
    torch.manual_seed(0)
    block = Transformer2DModel(2, 8, 16, norm_num_groups=4, use_linear_projection=linear).eval()
    x = torch.randn(2, 16, 6, 5).bfloat16().float()
    # its GEGLU and its block are diffusers' own here
    agree(block, x, operators={"optsd::group_norm": 1})


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 2),
        ({"attention_bias": True}, 2),
        ({"only_cross_attention": True}, 2),
        ({"final_dropout": True}, 0),
        ({"norm_elementwise_affine": False}, 0),
        ({"attention_type": "gated"}, 2),  # as long as nothing is given to GLIGEN
        ({"positional_embeddings": "sinusoidal", "num_positional_embeddings": 7}, 0),
        ({"chunked": True}, 0),
    ],
    ids=str,
)
def test_transformer_blocks(options, calls) -> None:
    torch.manual_seed(0)
    options = {"cross_attention_dim": 12, "activation_fn": "geglu"} | options
    chunked = options.pop("chunked", False)
    block = BasicTransformerBlock(16, 2, 8, **options).eval()
    if chunked:
        block.set_chunk_feed_forward(7, 1)
    x, text = torch.randn(2, 7, 16).bfloat16().float(), torch.randn(2, 5, 12).bfloat16().float()
    agree(block, x, None, text, operators={"optsd::add_layer_norm": calls} if calls else {})


def test_geglu() -> None:
    torch.manual_seed(0)
    agree(GEGLU(12, 20), torch.randn(3, 12).bfloat16().float(), operators={"optsd::geglu": 1})


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: ResnetBlock2D(in_channels=16, temb_channels=8, groups=4), [(2, 16, 6, 6), (2, 8)]),
        (lambda: ResnetBlock2D(in_channels=16, out_channels=24, temb_channels=None, groups=4), [(2, 16, 6, 6), None]),
        (lambda: Transformer2DModel(2, 8, 16, norm_num_groups=4), [(2, 16, 6, 5)]),
        (lambda: Transformer2DModel(2, 8, 16, norm_num_groups=4, use_linear_projection=True), [(2, 16, 6, 5)]),
        (lambda: BasicTransformerBlock(16, 2, 8, cross_attention_dim=16), [(2, 7, 16)]),
        (lambda: GEGLU(16, 64), [(2, 7, 16)]),
        (lambda: GEGLU(16, 20), [(2, 7, 16)]),  # not so wide that the layer could end in it
    ],
    ids=[
        "residual block",
        "decoder's block",
        "transformer",
        "linear projections",
        "transformer's block",
        "GEGLU",
        "narrow GEGLU",
    ],
)
def test_what_follows_a_quantized_layer_is_computed_with_it(make, shapes, bits) -> None:
    """The same but for what is no longer rounded between; and not where somebody wants to see what lies between."""
    torch.manual_seed(0)
    block = make().eval()
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear | torch.nn.Conv2d):
                setattr(parent, name, quantize_layer(child, bits, 4))
    plain = block.bfloat16().to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    for module in fused.modules():
        if type(module) in FUSED:
            module.__class__ = FUSED[type(module)]
    given = [None if shape is None else torch.randn(shape).bfloat16() for shape in shapes]
    given[0] = given[0].contiguous(memory_format=torch.channels_last) if given[0].ndim == 4 else given[0]

    def run(module: torch.nn.Module) -> tuple[torch.Tensor, dict[str, int]]:
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            output = module(*given)
        return getattr(output, "sample", output), {each.key: each.count for each in profile.key_averages()}

    (wanted, before), (given_back, after) = run(plain), run(fused)
    assert (given_back - wanted).abs().max() < 0.03 * wanted.abs().max()
    passes = ("aten::add", "aten::add_", "aten::gelu", "optsd::geglu")
    assert (
        sum(after.get(key, 0) for key in passes) < sum(before.get(key, 0) for key in passes)
        or type(fused) is FUSED[GEGLU]
    )
    seen: list[torch.Tensor] = []
    met: list[torch.nn.Module] = []
    norms = [module for module in fused.modules() if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)]
    for module in norms:
        module.register_forward_hook(lambda layer, args, output: met.append(layer))
    for module in fused.modules():
        if isinstance(module, QuantizedLayer):
            module.register_forward_hook(lambda layer, args, output: seen.append(output))
    seen_by, _ = run(fused)
    assert (seen_by - wanted).abs().max() < 0.03 * wanted.abs().max()
    assert {*map(id, met)} == {*map(id, norms)}
    widths = [len(layer.scale) for layer in fused.modules() if isinstance(layer, QuantizedLayer)]
    assert sorted(widths) == sorted(each.shape[1 if each.ndim == 4 else -1] for each in seen)


def test_a_forward_that_others_have_set_is_called() -> None:
    """As accelerate and diffusers' own hooks set it."""
    torch.manual_seed(0)
    block = BasicTransformerBlock(16, 2, 8, cross_attention_dim=16).eval().bfloat16()
    block.__class__ = FUSED[BasicTransformerBlock]
    called: list[str] = []

    def set_forward(name: str) -> None:
        module = block.get_submodule(name)
        own = module.forward

        def forward(*args, **kwargs):
            called.append(name)
            return own(*args, **kwargs)

        module.forward = forward

    x = torch.randn(2, 7, 16).bfloat16()
    with torch.no_grad():
        for names in (["norm2"], ["norm2", "norm3"], ["norm2", "norm3", "ff"]):
            set_forward(names[-1])
            called.clear()
            block(x)
            assert sorted(called) == sorted(names)


def test_what_all_pixels_get_is_added_after_a_pointwise_convolution() -> None:
    torch.manual_seed(0)
    layer = quantize_layer(torch.nn.Conv2d(16, 24, 1), 8, 4)
    x, plus = torch.randn(2, 16, 5, 4), torch.randn(2, 24, 1, 1)
    with torch.no_grad():
        assert torch.allclose(layer(x, plus=plus), layer(x) + plus, atol=1e-5)

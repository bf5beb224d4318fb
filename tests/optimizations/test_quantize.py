"""Int8 and Int4 on UNets of every family: what is converted, what is left, what is refused."""

import copy
import gc
import pickle
import re
import weakref
from collections import OrderedDict

import pytest
import small_pipelines
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

import optsd
from optsd import native
from optsd.errors import BadInput, NothingMatched, OptsdError, Unsupported
from optsd.optimizations.attention import Flash
from optsd.optimizations.quantize import Int4, Int8
from optsd.quantization import kernels
from optsd.quantization.convert import KEPT
from optsd.quantization.layers import QConv2d, QLinear, QuantizedLayer
from optsd.variants import parse

BLOCKS = (GEGLU, ResnetBlock2D, Transformer2DModel, BasicTransformerBlock)
both = pytest.mark.parametrize("technique", [Int8(), Int4()], ids=["int8", "int4"])


def counts(unet: torch.nn.Module) -> tuple[int, int]:
    """Linear and Conv2d layers of full precision; the quantized ones are layers of these kinds too."""
    layers = [layer for layer in unet.modules() if not isinstance(layer, QuantizedLayer)]
    return tuple(sum(isinstance(layer, kind) for layer in layers) for kind in (torch.nn.Linear, torch.nn.Conv2d))


@both
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "no-mid"])
def test_every_family_of_unet(technique, family, small_unet, bare, denoise) -> None:
    unet = small_unet(family)
    wanted = denoise(unet, steps=1)
    linear, conv2d = counts(unet)
    pipe = bare(unet)
    technique.check(pipe)
    patch = technique.apply(pipe)
    proof = patch.proof
    left_linear, left_conv2d = counts(unet)
    assert proof[f"{technique.name}_linear"] == linear - left_linear > 0
    finer = sum(name.endswith("conv_shortcut") for name in patch.touched) if technique.name == "int4" else 0
    assert proof[f"{technique.name}_conv2d"] == conv2d - left_conv2d - finer > 0
    assert proof.get("int8_conv2d", 0) == finer or technique.name == "int8"
    assert left_conv2d == 2  # the first and the last
    assert len(proof["left_in_high_precision"]) == left_linear + left_conv2d
    assert set(proof["left_in_high_precision"].values()) <= {f"kept by {pattern!r}" for pattern in KEPT}
    assert len(patch.touched) == linear + conv2d - left_linear - left_conv2d
    assert proof["integer_kernel_calls"] == 0

    images = denoise(unet, steps=1)
    assert images.dtype == wanted.dtype
    calls = patch.proof["integer_kernel_calls"]
    assert calls >= len(patch.touched)
    error = (images - wanted).square().mean().sqrt() / wanted.std()
    assert 0 < error < (0.03 if technique.name == "int8" else 0.2)


@pytest.mark.skipif(bool(native.refusal()), reason=f"{native.refusal()}")
@pytest.mark.parametrize(
    ("technique", "family", "options"),
    [
        pytest.param(Int4(), "sd15", {}, id="sd15-int4"),
        pytest.param(Int8(), "sd21", {}, id="sd21-int8"),
        pytest.param(Int8(), "sd15", {"resnet_time_scale_shift": "scale_shift"}, id="scale-shift-int8"),
        pytest.param(Int8(), "sd15", {}, id="sd15-int8", marks=pytest.mark.whole),
        pytest.param(Int4(), "sd21", {}, id="sd21-int4", marks=pytest.mark.whole),
        pytest.param(Int4(), "sd15", {"resnet_time_scale_shift": "scale_shift"}, marks=pytest.mark.whole),
    ],
)
def test_the_native_kernels_run_and_change_the_images_little(
    technique, family, options, small_unet, bare, denoise, monkeypatch
) -> None:
    # elsewhere float32 passes between the layers, which diffusers' own blocks compute
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    native_name = f"optsd.native ({native.instruction_set().name})"

    def run(unet: torch.nn.Module) -> tuple[torch.Tensor, dict]:
        patch = technique.apply(bare(unet))
        Flash().apply(bare(unet))
        return denoise(unet, steps=1), patch.proof

    fused, plain = small_unet(family, **options), small_unet(family, **options)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        images, proof = run(fused)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert "optsd::geglu" not in calls  # it is computed as the layer before it is
    assert "aten::gelu" not in calls
    blocks = sum(isinstance(module, ResnetBlock2D) for module in fused.modules())
    transformers = sum(isinstance(module, Transformer2DModel) for module in fused.modules())
    in_blocks = 0 if "resnet_time_scale_shift" in options else 2 * blocks
    assert calls["optsd::group_norm"] == in_blocks + transformers
    assert calls["optsd::flash_attention"] == sum(isinstance(module, Attention) for module in fused.modules())
    multiplied_by = kernels.choose(torch.device("cpu"), bits=technique.bits).name  # int_mm where the CPU has AMX
    monkeypatch.setattr(native, "refusal", lambda: "there is no C++ compiler")
    without, other = run(plain)
    assert (proof["activations_quantized_by"], proof["integer_kernel"]) == (native_name, multiplied_by)
    assert proof["fused_blocks"] == sum(isinstance(module, BLOCKS) for module in fused.modules())
    assert (other["activations_quantized_by"], other["fused_blocks"]) == ("torch (there is no C++ compiler)", 0)
    error = (images - without).square().mean().sqrt() / without.std()
    assert error < 0.02


@both
def test_the_original_weights_are_released(technique, small_unet, bare) -> None:
    unet = small_unet()
    weight = weakref.ref(unet.mid_block.resnets[0].conv1.weight)
    technique.apply(bare(unet))
    gc.collect()
    assert weight() is None


@both
def test_undo_is_refused_with_the_reason(technique, small_unet, bare) -> None:
    patch = technique.apply(bare(small_unet()))
    with pytest.raises(OptsdError, match="cannot be undone: the original weights were released.*; load the pipeline"):
        patch.undo()


@both
@pytest.mark.parametrize("second", [Int8(), Int4()], ids=["int8", "int4"])
def test_quantizing_twice_is_refused(technique, second, small_unet, bare) -> None:
    pipe = bare(small_unet())
    technique.apply(pipe)
    for attempt in (second.check, second.apply):
        with pytest.raises(Unsupported, match="unet is quantized already .*; load the pipeline again"):
            attempt(pipe)


def test_both_at_once_are_refused() -> None:
    with pytest.raises(Unsupported, match="int8 and int4 cannot be combined: both decide the weights"):
        parse("int8+int4")


@both
def test_a_model_of_another_library_is_refused(technique, small_unet, bare) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    unet = small_unet()
    unet.mid_block.resnets[0].time_emb_proj = bitsandbytes.nn.Linear4bit(128, 64)
    with pytest.raises(Unsupported, match=r"time_emb_proj has been quantized by bitsandbytes; load the model in float"):
        technique.check(bare(unet))


@both
def test_integer_weights_of_nobody_knows_whom_are_refused(technique, small_unet, bare) -> None:
    unet = small_unet()
    layer = unet.mid_block.resnets[0].conv1
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(Unsupported, match="conv1 has been quantized by another library; load the model in float"):
        technique.check(bare(unet))


@both
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_weights_name_their_layer_and_change_nothing(technique, broken, small_unet, bare) -> None:
    unet = small_unet()
    with torch.no_grad():
        unet.up_blocks[0].resnets[0].conv1.weight[0, 0, 0, 0] = broken
    with pytest.raises(BadInput, match=r"unet.up_blocks.0.resnets.0.conv1: a weight is NaN or infinite; repair"):
        technique.apply(bare(unet))
    assert not any(isinstance(module, QuantizedLayer) for module in unet.modules())


def test_a_filter_decides_what_is_kept(small_unet, bare) -> None:
    unet = small_unet()
    Int8(keep=("*attn*",)).apply(bare(unet))
    assert isinstance(unet.conv_in, QConv2d)
    assert not any(
        isinstance(module, QuantizedLayer)
        for module in unet.mid_block.attentions[0].transformer_blocks[0].attn1.modules()
    )
    assert isinstance(unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2], QLinear)


def test_a_filter_that_keeps_everything(small_unet, bare) -> None:
    with pytest.raises(NothingMatched, match="unet has no Linear or Conv2d layer to quantize; keep fewer layers"):
        Int8(keep=("*",)).apply(bare(small_unet()))


def test_layers_that_compute_something_else_are_left(small_unet, bare) -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    unet = small_unet()
    unet.mid_block.resnets[0].time_emb_proj = Doubled(128, 64)
    patch = Int8().apply(bare(unet))
    assert patch.proof["left_in_high_precision"]["unet.mid_block.resnets.0.time_emb_proj"].startswith("a Doubled may")


def test_a_layer_under_two_names_is_replaced_under_both(small_unet, bare) -> None:
    unet = small_unet()
    block = unet.mid_block.resnets[0]
    block.alias = block.conv1
    Int8().apply(bare(unet))
    assert block.alias is block.conv1
    assert isinstance(block.alias, QConv2d)


@both
def test_bfloat16_between_the_layers(technique, small_unet, bare, denoise, monkeypatch) -> None:
    """Callers see float32 on both sides; the timestep is not rounded, and the text is cast once for all steps."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    unet = small_unet()
    seen = []
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    unet.time_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 24)
    patch = technique.apply(bare(unet))
    assert patch.proof["between_layers"] == "bfloat16"
    assert unet.dtype == torch.bfloat16
    with torch.no_grad():
        assert unet(sample, torch.tensor(999.0), text).sample.dtype == torch.float32
        assert (
            unet(sample, torch.tensor(998.0), encoder_hidden_states=text, return_dict=False)[0].dtype == torch.float32
        )
        text.mul_(2)
        unet(sample, torch.tensor(1000.0), text)
    first_time, first_text, second_time, second_text, third_time, third_text = seen
    assert first_text is second_text
    assert torch.equal(third_text, first_text * 2)
    assert first_text.dtype == torch.bfloat16
    assert not torch.equal(first_time, second_time)
    assert not torch.equal(first_time, third_time)


def test_the_same_type_between_the_layers(small_unet, bare) -> None:
    unet = small_unet()
    assert Int8(between="same").apply(bare(unet)).proof["between_layers"] == "float32"
    with pytest.raises(BadInput, match="int8 cannot compute between='int8'; choose auto or same"):
        Int8(between="int8").check(bare(unet))


def test_components(untrained) -> None:
    pipe = untrained()
    patch = Int8(components=("denoiser", "text_encoder", "vae")).apply(pipe)
    for component in ("unet", "text_encoder", "vae"):
        assert any(name.startswith(f"{component}.") for name in patch.touched)
    with pytest.raises(BadInput, match="int8 cannot quantize .*; choose from denoiser, text_encoder, vae"):
        Int8(components=("tokenizer",)).check(pipe)


def test_a_missing_component(small_unet, bare) -> None:
    with pytest.raises(Unsupported, match="int8: SimpleNamespace has no text_encoder; leave it out"):
        Int8(components=("unet", "text_encoder")).check(bare(small_unet()))


@pytest.mark.parametrize("name", ["int8", "int4", "int8+flash", "int8+flash+kvcache", "int4+flash"])
def test_variants_paint_nearly_the_same_picture(name, untrained, paint) -> None:
    """The whole pipeline, with the techniques that are applied after quantization."""
    wanted = paint(untrained())
    pipe = untrained()
    patch = optsd.apply(pipe, name)
    image = paint(pipe)
    mean_square = (image - wanted).square().mean()
    assert 0 < mean_square < (1e-3 if name.startswith("int8") else 1e-2)
    assert patch.proof["integer_kernel_calls"] > 0
    assert patch.proof["integer_kernel"] in ("native", "int_mm")


def test_same_seed_same_bits(untrained, paint) -> None:
    pipe = untrained()
    Int8().apply(pipe)
    assert torch.equal(paint(pipe), paint(pipe))


@both
def test_a_lora_file_is_loaded_into_a_quantized_flux(technique) -> None:
    """diffusers asks the state dictionary for each layer's weight, to compare its shape."""
    pipe, unpatched = small_pipelines.make("FLUX.1"), small_pipelines.make("FLUX.1")
    technique.apply(pipe)
    place = "single_transformer_blocks.0.attn.to_k"
    layer = unpatched.transformer.get_submodule(place)
    noise = torch.Generator().manual_seed(0)
    lora = {
        f"transformer.{place}.lora_A.weight": torch.randn(4, layer.in_features, generator=noise),
        f"transformer.{place}.lora_B.weight": torch.randn(layer.out_features, 4, generator=noise),
    }
    before, wanted = small_pipelines.draw("FLUX.1", pipe), small_pipelines.draw("FLUX.1", unpatched)
    for each in (pipe, unpatched):
        each.load_lora_weights(dict(lora), adapter_name="style")
        each.load_lora_weights(dict(lora), adapter_name="again")  # a layer that has an adapter already
    now, changed = small_pipelines.draw("FLUX.1", pipe), small_pipelines.draw("FLUX.1", unpatched)
    assert (now - changed).norm() < 2 * (before - wanted).norm() + 1e-3
    assert not torch.equal(now, before)


def test_a_state_dictionary_knows_the_weights_and_does_not_hold_them(small_unet, bare) -> None:
    unet = small_unet()
    Int8().apply(bare(unet))
    found = unet.state_dict()
    place = "mid_block.resnets.0.conv1"
    assert f"{place}.weight" not in found.keys()  # noqa: SIM118 - what is saved
    assert torch.equal(found[f"{place}.weight"], unet.get_submodule(place).weight)
    assert found._metadata
    for absent in (f"{place}.scales", "nosuch.weight", "conv_norm_out.nosuch", ""):
        with pytest.raises(KeyError, match=re.escape(absent)):
            found[absent]
    assert type(pickle.loads(pickle.dumps(found))) is OrderedDict  # noqa: S301 - its own
    for made in (found.copy(), copy.copy(found), copy.deepcopy(found), found | {}, OrderedDict(found)):
        assert made.keys() == found.keys()
        with pytest.raises(KeyError):
            made[f"{place}.weight"]
    assert {*found} == {*copy.deepcopy(unet).state_dict()}

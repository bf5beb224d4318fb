"""Precision layer by layer, by a variant's name, on a UNet and on a transformer."""

import copy
from collections import Counter
from fnmatch import fnmatchcase

import pytest
import torch
from small_pipelines import make

import optsd
from optsd import anatomy, quantization
from optsd.errors import BadInput, NothingMatched, OptsdError
from optsd.quantization import boundary
from optsd.quantization.layers import QLinear, QuantizedLayer
from optsd.variants import parse

FAMILIES = {"SD 1.5": ("up_blocks.*", "*.attn2.*"), "SD3": ("transformer_blocks.0.*", "*.ff.*")}


def image(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=2, height=16, width=16, generator=generator, output_type="pt").images


def bits(module) -> dict[str, int]:
    return {name: layer.bits for name, layer in module.named_modules() if isinstance(layer, QuantizedLayer)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_contract(family, tmp_path) -> None:
    coarse, plain = FAMILIES[family]
    pipe = make(family)
    prefix, denoiser = anatomy.denoiser_name(pipe), anatomy.denoiser(pipe)
    before, weights = image(pipe), copy.deepcopy(denoiser.state_dict())
    usual = make(family)
    kept = optsd.apply(usual, "int8").proof["left_in_high_precision"]

    for wrong in (f"int8:{coarse}=int4:nosuch=int8", f"int8:{coarse}=int8", "int8:*=int4"):
        variant = parse(wrong)
        for attempt in (variant.check, variant.apply):
            with pytest.raises(NothingMatched, match=f"int8:.*{prefix if 'nosuch' in wrong else 'int8'}"):
                attempt(pipe)
    now = denoiser.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in now.items())
    assert not optsd.patches(pipe)
    assert torch.equal(image(pipe), before), "a refused one has left a trace"

    name = f"int8:{coarse}=int4:{plain}=float"
    patch = optsd.apply(pipe, name)
    found = bits(denoiser)
    names = [place.removeprefix(f"{prefix}.") for place in optsd.apply(make(family), "int8").touched]
    wanted = {layer: 4 if fnmatchcase(layer, coarse) else 8 for layer in names if not fnmatchcase(layer, plain)}
    assert found == wanted
    assert {4, 8} == set(found.values())
    assert set(patch.touched) == {f"{prefix}.{layer}" for layer in found}
    proof = patch.proof
    assert Counter(found.values()) == {
        8: proof["int8_linear"] + proof["int8_conv2d"],
        4: proof["int4_linear"] + proof["int4_conv2d"],
    }
    floats = {f"{prefix}.{layer}": f"kept by {plain!r}" for layer in names if fnmatchcase(layer, plain)}
    assert floats
    assert proof["left_in_high_precision"] == kept | floats
    drawn = image(pipe)
    assert patch.proof["integer_kernel_calls"] > 0
    assert not torch.equal(drawn, before)
    assert not torch.equal(drawn, image(usual))
    with pytest.raises(OptsdError, match="cannot be undone: the original weights were released"):
        patch.undo()
    assert torch.equal(image(pipe), drawn)

    quantization.save(pipe, tmp_path)
    loaded = optsd.load(str(tmp_path), "cpu")
    assert bits(anatomy.denoiser(loaded)) == found
    weights, again = denoiser.state_dict(), anatomy.denoiser(loaded).state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    # Float layers of what comes from a file lie elsewhere in memory, and torch's last bits depend on where.
    assert (image(loaded) - drawn).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("family", "base", "other", "has_bfloat16"),
    [("SD 1.5", "int8", "int4", True), ("SD 1.5", "int8", "int4", False), ("SD3", "int4", "int8", True)],
)
def test_all_networks(family, base, other, has_bfloat16, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(boundary, "has_bfloat16", lambda: has_bfloat16)
    pipe = make(family)
    before = image(pipe)
    name = f"{base}:all:{FAMILIES[family][0]}={other}"
    patch = optsd.apply(pipe, name)
    networks = anatomy.networks(pipe)
    proof = patch.proof
    assert set(proof["quantized"]) == set(networks)
    assert min(proof["quantized"].values()) > 0
    assert (
        sum(proof["quantized"].values())
        == len(patch.touched)
        == sum(proof[f"int{each}_{kind}"] for each in (4, 8) for kind in ("linear", "conv2d"))
    )
    assert {*bits(networks[anatomy.denoiser_name(pipe)]).values()} == {4, 8}, "rules are for the denoiser"
    for place, network in networks.items():
        if place != anatomy.denoiser_name(pipe):
            assert {*bits(network).values()} == {8}, "4 cost too much there"
    decoder = bits(anatomy.decoder(pipe))
    assert all(layer.startswith("decoder.") for layer in decoder), "what encodes pictures is not used"
    assert not {"decoder.conv_in", "decoder.conv_out"} & {*decoder}
    assert not [layer for place, network in networks.items() for layer in bits(network) if layer.endswith(".wo")]
    inside = torch.bfloat16 if has_bfloat16 else torch.float32
    assert (pipe.vae.decoder.conv_in.weight.dtype, pipe.vae.encoder.conv_in.weight.dtype) == (inside, torch.float32)
    drawn = image(pipe)
    assert drawn.dtype == torch.float32
    assert patch.proof["integer_kernel_calls"] > len(patch.touched)
    assert 0 < (drawn - before).square().mean() < 1e-2
    with pytest.raises(OptsdError, match="cannot be undone"):
        patch.undo()
    quantization.save(pipe, tmp_path)
    again = optsd.load(str(tmp_path), "cpu")
    assert again.vae.decoder.conv_in.weight.dtype == inside
    assert (image(again) - drawn).abs().max() < 1e-2


def test_broken_weights_in_one_network_leave_all_as_they_were() -> None:
    pipe = make("SD 1.5")
    with torch.no_grad():
        pipe.vae.decoder.mid_block.resnets[0].conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(BadInput, match=r"vae.decoder.mid_block.resnets.0.conv1: a weight is NaN or infinite; repair"):
        optsd.apply(pipe, "int8:all")
    assert not any(map(bits, anatomy.networks(pipe).values()))


def test_what_is_named_is_what_is_measured(untrained_folder) -> None:
    """`optsd.load(variant=…)`, and with other techniques in one name."""
    pipe = optsd.load(str(untrained_folder), "cpu", variant="flash+int8:unet.up*=int4")
    (patch,) = optsd.patches(pipe)
    assert patch.name == "flash+int8:up*=int4"
    assert {patch.slots["weights"], patch.slots["attention"]} == {"int8:up*=int4", "flash"}
    assert min(patch.proof["int4_conv2d"], patch.proof["int8_conv2d"]) > 0
    with pytest.raises(BadInput, match="is no rule for layers"):
        optsd.load(str(untrained_folder), "cpu", variant="int8:up*")


def test_the_denoisers_own_name_may_stand_before_a_pattern() -> None:
    assert {parse(f"int8:{name}.up*=int4").name for name in anatomy.DENOISERS} == {"int8:up*=int4"}


def test_size_is_between_the_two(small_unet, bare) -> None:
    def weight_bytes(name: str) -> int:
        unet = small_unet()
        parse(name).apply(bare(unet))
        return sum(tensor.nbytes for tensor in (*unet.parameters(), *unet.buffers()))

    names = ("int8", "int8:up_blocks.*=int4:*.conv_shortcut=int8", "int4", "int4:*.conv_shortcut=int4")
    int8, mixed, int4, all_of_it = map(weight_bytes, names)
    assert all_of_it < int4 < mixed < int8
    assert weight_bytes("int4:down_blocks.*=int8:mid_block.*=int8") == mixed, "the same by other words"


def test_patterns_are_of_the_model_whatever_was_loaded_into_it(small_unet, bare) -> None:
    """A LoRA's wrapper has the layer's name, and the layer another one inside it."""
    peft = pytest.importorskip("peft")
    unet = small_unet()
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k"]))
    patch = parse("int8:*.to_q=int4:*.to_k=float").apply(bare(unet))
    found = bits(unet)
    assert {found[layer] for layer in found if ".to_q." in layer} == {4}
    assert not any(".to_k." in layer for layer in found)
    assert patch.active


def test_joined_projections_get_the_highest_precision_of_their_parts(small_unet, bare) -> None:
    unet = small_unet()
    parse("int8:*.attn2.to_v=float:*.to_q=int4:up_blocks.*.to_v=int4:up_blocks.*.to_k=int4").apply(bare(unet))
    unet.fuse_qkv_projections()
    for place, attention in anatomy.attentions_of(unet):
        if place.endswith("attn2"):
            assert not isinstance(attention.to_kv, QLinear), "one part is in high precision"
        else:
            assert attention.to_qkv.bits == (4 if place.startswith("up_blocks") else 8)

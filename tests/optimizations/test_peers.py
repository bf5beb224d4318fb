"""The field's quantizers: they convert what they can, say what they left, and say why they cannot run."""

import sys

import pytest
import torch

from optsd.errors import NothingMatched, Unsupported
from optsd.optimizations.peers import Int4Bnb, Int4Torchao, Int8Bnb, Int8Torchao, Peer
from optsd.optimizations.quantize import Int8

PEERS = [Int8Bnb(), Int4Bnb(), Int8Torchao(), Int4Torchao()]
each = pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])


@each
def test_it_quantizes_or_says_why_not(peer, small_unet, bare, denoise) -> None:
    pytest.importorskip(peer.library)
    unet = small_unet()
    wanted = denoise(unet, steps=1)
    pipe = bare(unet)
    try:
        peer.check(pipe)
    except Unsupported as error:
        assert str(error).startswith(f"{peer.library} cannot run {peer.name} on cpu in torch.float32: ")  # noqa: PT017
        return
    patch = peer.apply(pipe)
    assert patch.proof[f"{peer.name}_linear"] == len(patch.touched) > 0
    assert patch.proof[f"{peer.name}_conv2d_left"] == sum(isinstance(m, torch.nn.Conv2d) for m in unet.modules())
    assert patch.why_lossy
    error = (denoise(unet, steps=1) - wanted).square().mean().sqrt() / wanted.std()
    assert 0 < error < 0.2
    with pytest.raises(Unsupported, match="quantized by"):
        Int8().check(pipe)


@each
def test_a_missing_library(peer, small_unet, bare, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, peer.library, None)
    with pytest.raises(Unsupported, match=f"{peer.name} needs {peer.library} .*; pip install {peer.library}"):
        peer.check(bare(small_unet()))


def test_a_quantized_model_is_refused(small_unet, bare) -> None:
    pipe = bare(small_unet())
    Int8().apply(pipe)
    with pytest.raises(Unsupported, match="unet is quantized already"):
        Int8Bnb().check(pipe)


class Broken(Peer):
    def convert(self, layer: torch.nn.Linear) -> torch.nn.Module:
        raise RuntimeError("no kernel image\nmore")


class Idle(Peer):
    def convert(self, layer: torch.nn.Linear) -> torch.nn.Module:
        return layer


class Nan(Peer):
    def convert(self, layer: torch.nn.Linear) -> torch.nn.Module:
        layer.weight.data.fill_(torch.nan)
        return layer


def test_a_kernel_that_fails_is_one_line(small_unet, bare) -> None:
    with pytest.raises(Unsupported, match=r"json cannot run x on cpu in torch.float32: no kernel image; leave x out"):
        Broken("x", "json").check(bare(small_unet()))


def test_nan_is_no_result(small_unet, bare) -> None:
    with pytest.raises(Unsupported, match=r"json's x gives NaN on cpu in torch.float32; leave x out"):
        Nan("x", "json").check(bare(small_unet()))


def test_nothing_converted(small_unet, bare) -> None:
    with pytest.raises(NothingMatched, match="json converted no layer of the unet; choose another"):
        Idle("x", "json").apply(bare(small_unet()))


def test_on_a_gpu_torchao_leaves_layers_that_see_a_row_of_each_picture() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    one_row = ("time_embedding.linear_1", "down_blocks.0.resnets.0.time_emb_proj", "transformer_blocks.3.norm1.linear")
    assert all(Int8Torchao().leaves(name, gpu) for name in (*one_row, "norm_out.linear", "adaln_single.linear"))
    assert not any(Int8Torchao().leaves(name, cpu) for name in one_row)
    token = ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "transformer_blocks.3.ff.net.2", "proj_in")
    assert not any(Int8Torchao().leaves(name, gpu) for name in token)
    assert not any(Int8Bnb().leaves(name, gpu) for name in one_row)

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from optsd.errors import Unsupported
from optsd.optimizations import compile as compiling
from optsd.optimizations.compile import Compile
from optsd.quantization.layers import quantize_layer


def test_compiled_output_seconds_and_undo(small_unet, bare, denoise):
    unet = small_unet(layers_per_block=1)
    expected = denoise(unet)
    patch = Compile(backend="eager").apply(bare(unet))
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(denoise(unet), expected, rtol=1e-4, atol=1e-5)
    proof = patch.proof
    assert proof["compilations"] >= 1
    assert proof["compile_s"] > 0
    denoise(unet)
    assert patch.proof == proof, "the same shapes were compiled twice"
    patch.undo()
    assert unet.conv_in.weight.is_contiguous()
    assert torch.equal(denoise(unet), expected)


def test_code_that_was_compiled_for_a_network_without_hooks_serves_none_with_them(small_unet, bare, denoise):
    def doubled(unet, pre: bool, post: bool):
        if pre:
            unet.conv_in.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
        if post:
            unet.conv_out.register_forward_hook(lambda module, arguments, output: 2 * output)
        return unet

    for hooks in ((False, False), (True, False), (False, True), (True, True)):
        expected = denoise(doubled(small_unet(layers_per_block=1), *hooks), steps=1)
        unet = doubled(small_unet(layers_per_block=1), *hooks)
        Compile(backend="eager").apply(bare(unet))
        torch.testing.assert_close(denoise(unet, steps=1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_layers_are_compiled_once(bits):
    """What counts their calls is no part of what was compiled: it would be compiled anew for each number."""
    layers = torch.nn.Sequential(*(quantize_layer(torch.nn.Linear(32, 32), bits, 32, "reference") for _ in range(2)))
    compiled = CompileCounter()
    run = torch.compile(layers, backend=compiled)
    x = torch.randn(4, 32)
    with torch.no_grad():
        expected = layers(x)
        run(x)
        once = compiled.frame_count  # in parts, as on a CPU quantizing looks for what is not finite
        for _ in range(4):
            torch.testing.assert_close(run(x), expected)
    assert compiled.frame_count == once > 0
    assert [layer.kernel_calls for layer in layers] == [1, 1]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_inductor(small_unet, bare, denoise):
    one_level = {"block_out_channels": (32,), "down_block_types": ("CrossAttnDownBlock2D",)}
    unet = small_unet(**one_level, up_block_types=("UpBlock2D",), layers_per_block=1, mid_block_type=None)
    expected = denoise(unet, steps=2)
    patch = Compile().apply(bare(unet))
    torch.testing.assert_close(denoise(unet, steps=2), expected, rtol=1e-4, atol=1e-5)
    assert patch.proof["compile_s"] > 1


def test_without_a_compiler(monkeypatch, small_unet, bare):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(Unsupported, match="needs a C\\+\\+ compiler.*install g\\+\\+"):
        Compile().check(bare(small_unet()))


def test_without_triton(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(compiling.anatomy, "denoiser", lambda pipe: pipe.unet)
    monkeypatch.setattr(compiling.anatomy, "device", lambda module: module.device)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match="needs triton"):
        Compile().check(SimpleNamespace(unet=SimpleNamespace(device=torch.device("cuda"))))


def test_a_compiler_with_a_launcher_is_one(monkeypatch, small_unet, bare):
    monkeypatch.setenv("CXX", "env g++ -O0")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name == "env" and "/usr/bin/env")
    Compile().check(bare(small_unet()))

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from optsd import native
from optsd.anatomy import attentions
from optsd.calls import interpose, parts
from optsd.errors import NothingMatched, Unsupported
from optsd.optimizations import kernels
from optsd.optimizations.attention import Attend, Eager, FirstOf, Flash, KernelProcessor, Sdpa, is_out_of_memory
from optsd.optimizations.sage import Sage


def seen(unet):
    return kernels.kernels_seen(unet, lambda: unet(**kernels.example_inputs(unet, 2, (8, 8))))


TORCH_FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
CPU_FLASH = TORCH_FLASH if native.refusal() else "optsd::flash_attention"
CPU_SAGE = "aten::softmax" if native.refusal() else "optsd::sage_attention"


@pytest.mark.parametrize(
    ("technique", "operator"),
    [(Eager(), "aten::softmax"), (Sdpa(), TORCH_FLASH), (Flash(), CPU_FLASH), (Sage(), CPU_SAGE)],
)
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_a_profile_shows_the_kernel_in_every_layer(small_unet, bare, technique, operator, family):
    unet = small_unet(family)
    patch = technique.apply(bare(unet))
    assert seen(unet) == {operator: len(patch.touched)}
    assert patch.proof["kernel_calls"] == len(patch.touched)
    if technique in (Flash(), Sage()):
        assert patch.proof["kernel"] == operator


@pytest.mark.parametrize("technique", [Eager(), Sdpa(), Flash(), Sage()])
def test_processors_stay_diffusers_own(pipe, technique):
    layers = [attention for _, attention in attentions(pipe)]
    before = [(type(layer), layer.processor) for layer in layers]
    patch = technique.apply(pipe)
    assert patch.touched == tuple(name for name, _ in attentions(pipe))
    assert all(layer.processor is processor for layer, (_, processor) in zip(layers, before, strict=True))
    assert all(parts(layer) for layer in layers)
    assert not parts(pipe.vae.decoder.mid_block.attentions[0])
    patch.undo()
    assert [(type(layer), layer.processor) for layer in layers] == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", [kernels.CpuFlash(), kernels.Flash(), kernels.Plain()])
def test_kernels_agree_with_torch(kernel, masked, dtype):
    if reason := kernel.refusal(torch.device("cpu"), dtype, 5, masked):
        pytest.skip(reason)
    query, key = torch.randn(2, 3, 10, 5).to(dtype), torch.randn(2, 3, 7, 5).to(dtype)
    mask = torch.randn(2, 3, 1, 7).to(dtype) if masked else None
    expected = F.scaled_dot_product_attention(query, key, key, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(kernel(query, key, key, mask, 0.3), expected, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("width", [5, 8, 13])
def test_padding_to_a_multiple_of_eight_changes_nothing(width):
    widths: list[int] = []

    def attend(query, key, value, *, scale):
        widths.append(query.shape[-1])
        return (F.scaled_dot_product_attention(query, key, value, scale=scale),)

    query, key = torch.randn(1, 2, 6, width), torch.randn(1, 2, 4, width)
    expected = F.scaled_dot_product_attention(query, key, key, scale=0.3)
    torch.testing.assert_close(kernels._padded_to_eight(attend, query, key, key, 0.3), expected)
    assert widths == [-(-width // 8) * 8]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", [kernels.Flash(), kernels.Plain()])
def test_a_layer_does_what_diffusers_does(small_unet, masked, kernel):
    """On latents, on images (the VAE's kind of layer), with a text mask, normed, rescaled, with a residual."""
    from diffusers.models.attention_processor import Attention

    for options, states in (
        ({"cross_attention_dim": 6, "qk_norm": "layer_norm", "cross_attention_norm": "layer_norm"}, (2, 9, 8)),
        ({"norm_num_groups": 2, "residual_connection": True, "rescale_output_factor": 2.0}, (2, 8, 3, 4)),
    ):
        layer = Attention(8, heads=2, dim_head=4, **options)
        hidden = torch.randn(states)
        text = torch.randn(2, 5, 6) if "cross_attention_dim" in options else None
        mask = torch.zeros(2, 1, 5 if text is not None else 12) if masked else None
        if masked:
            mask[..., 2:] = -10000.0
        expected = layer(hidden, text, mask)
        assert isinstance(layer.processor, AttnProcessor2_0)
        first = FirstOf((kernel,))
        interpose(layer, Attend(KernelProcessor(first), first))
        torch.testing.assert_close(layer(hidden, text, mask), expected)
        assert first.proof()["kernel_calls"] == 1


def test_eager_and_sdpa_are_diffusers_own(pipe, paint):
    for technique, original in ((Eager(), AttnProcessor()), (Sdpa(), AttnProcessor2_0())):
        pipe.unet.set_attn_processor(original)
        expected = paint(pipe)
        patch = technique.apply(pipe)
        assert torch.equal(paint(pipe), expected)
        patch.undo()


def test_flash_says_why_it_cannot_run(monkeypatch, small_unet, bare):
    place = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    flash = kernels.Flash()
    assert "older than compute capability 8.0" in flash.refusal(place, torch.float16, 40, False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "not in float32" in flash.refusal(place, torch.float32, 40, False)
    assert "not 512" in flash.refusal(place, torch.float16, 512, False)
    assert "mask" in flash.refusal(place, torch.float16, 40, True)
    assert flash.refusal(place, torch.bfloat16, 40, False) == ""
    assert "mask" in kernels.MemoryEfficient().refusal(place, torch.float32, 40, True)
    assert kernels.MemoryEfficient().refusal(place, torch.float32, 40, False) == ""
    assert "not on cpu" in kernels.MemoryEfficient().refusal(torch.device("cpu"), torch.float32, 40, False)

    assert "not on cuda" in kernels.CpuFlash().refusal(place, torch.bfloat16, 40, False)
    assert "not in float16" in kernels.CpuFlash().refusal(torch.device("cpu"), torch.float16, 40, False)
    assert "mask" in kernels.CpuFlash().refusal(torch.device("cpu"), torch.bfloat16, 40, True)

    for kernel in (kernels.CpuFlash, kernels.Flash):
        monkeypatch.setattr(kernel, "refusal", lambda *_, **__: "it is out of order")
    unet = small_unet()
    with pytest.raises(Unsupported, match="flash cannot serve unet.down_blocks.0.*it is out of order"):
        Flash().check(bare(unet))
    Flash().apply(bare(unet))
    with pytest.raises(Unsupported, match="no attention kernel can run: .*it is out of order"):
        seen(unet)


def test_the_flash_attn_package(monkeypatch):
    """Its absence and a broken build are reasons; where it loads, its layout of B×N×heads×d is served."""
    from types import SimpleNamespace

    place = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    package = kernels.FlashAttnPackage()
    kernels._package_refusal.cache_clear()
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in package.refusal(place, torch.float16, 40, False)

    def broken(name):
        raise ImportError("undefined symbol")

    kernels._package_refusal.cache_clear()
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(kernels.importlib, "import_module", broken)
    assert "does not load (undefined symbol)" in package.refusal(place, torch.float16, 40, False)
    kernels._package_refusal.cache_clear()

    def flash_attn_func(query, key, value, softmax_scale):
        rows = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        return F.scaled_dot_product_attention(*rows, scale=softmax_scale).transpose(1, 2)

    found = SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setattr(kernels.importlib, "import_module", lambda name: found)
    query, key = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 4, 8)
    expected = F.scaled_dot_product_attention(query, key, key, scale=0.3)
    torch.testing.assert_close(package(query, key, key, None, 0.3), expected)


class Softmaxed:
    """Somebody's processor that computes attention by itself."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **more):
        return AttnProcessor()(attn, hidden_states, encoder_hidden_states, attention_mask)


class Asked(Softmaxed):
    """Somebody's processor that asks torch, with a mask of booleans."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **more):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        mask = torch.ones(len(key), 1, 1, key.shape[2], dtype=torch.bool)
        mask[..., -1] = False
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("technique", [Eager(), Sdpa(), Flash()])
def test_other_processors_keep_what_they_do(pipe, paint, technique):
    """What they ask torch for goes to the technique's kernel; what they compute themselves is left, and said."""
    for processor, left in ((Asked(), 0), (Softmaxed(), 1)):
        pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(processor)
        expected = paint(pipe)
        patch = technique.apply(pipe)
        torch.testing.assert_close(paint(pipe), expected, rtol=0, atol=1e-4)
        assert patch.proof["kernel_calls"] == 2 * (len(patch.touched) - left)
        assert patch.proof.get("left_to") == ({"Softmaxed": 2} if left else None)
        patch.undo()


def test_hooks_of_others_see_the_layers_own_call(pipe, paint):
    shapes = []
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    handle = layer.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape))
    patch = Flash().apply(pipe)
    paint(pipe)
    assert len(shapes) == 2
    assert patch.proof["kernel_calls"] == 2 * len(patch.touched)
    handle.remove()


def test_refusals(small_unet, bare):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False}
    other = DDPMPipeline(UNet2DModel(block_out_channels=(32,), **blocks), DDPMScheduler())
    with pytest.raises(NothingMatched, match="flash found no attention layer in the UNet2DModel"):
        Flash().check(other)
    with pytest.raises(Unsupported, match="has no unet and no transformer; use a text-to-image pipeline"):
        Flash().check(object())
    untold = small_unet(
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type="UNetMidBlock2D"
    )
    with pytest.raises(NothingMatched, match="flash found no attention layer"):
        Flash().apply(bare(untold))


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as allocation:
        torch.empty(10**15)
    assert is_out_of_memory(allocation.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))

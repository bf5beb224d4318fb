import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, IPAdapterAttnProcessor2_0

from optsd import native
from optsd.errors import NothingMatched, Unsupported
from optsd.optimizations import kernels
from optsd.optimizations.attention import Eager, Flash, KernelProcessor, Sdpa, attentions, is_out_of_memory


def seen(unet):
    return kernels.kernels_seen(unet, lambda: unet(**kernels.example_inputs(unet, 2, (8, 8))))


TORCH_FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
CPU_FLASH = TORCH_FLASH if native.refusal() else "optsd::flash_attention"


@pytest.mark.parametrize(
    ("technique", "operator"), [(Eager(), "aten::softmax"), (Sdpa(), TORCH_FLASH), (Flash(), CPU_FLASH)]
)
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_a_profile_shows_the_kernel_in_every_layer(small_unet, bare, technique, operator, family):
    unet = small_unet(family)
    patch = technique.apply(bare(unet))
    assert seen(unet) == {operator: len(patch.touched)}
    assert patch.proof["kernel_calls"] == len(patch.touched)
    if technique == Flash():
        assert patch.proof["kernel"] == operator


@pytest.mark.parametrize("technique", [Eager(), Sdpa(), Flash()])
def test_undo_puts_the_very_processors_back(pipe, technique):
    before = [attention.processor for _, attention in attentions(pipe)]
    patch = technique.apply(pipe)
    vae_before = pipe.vae.decoder.mid_block.attentions[0].processor
    assert patch.touched == tuple(name for name, _ in attentions(pipe))
    assert all(attention.processor not in before for _, attention in attentions(pipe))
    assert pipe.vae.decoder.mid_block.attentions[0].processor is vae_before
    patch.undo()
    assert all(a is b for a, (_, b) in zip(before, ((n, x.processor) for n, x in attentions(pipe)), strict=True))


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
@pytest.mark.parametrize("mine", [KernelProcessor((kernels.Flash(),)), KernelProcessor((kernels.Plain(),))])
def test_the_processor_does_what_diffusers_does(small_unet, masked, mine):
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
        expected = AttnProcessor2_0()(layer, hidden, text, mask)
        torch.testing.assert_close(mine(layer, hidden, text, mask), expected)


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


def test_other_attention_is_not_replaced(pipe, small_unet, bare):
    attention = next(attention for _, attention in attentions(pipe))
    attention.set_processor(IPAdapterAttnProcessor2_0(160, 128))
    for technique in (Eager(), Sdpa(), Flash()):
        with pytest.raises(Unsupported, match="would drop what IPAdapterAttnProcessor2_0 does in unet.down_blocks"):
            technique.check(pipe)
    other = DDPMPipeline(UNet2DModel(block_out_channels=(32,) * 4, attention_head_dim=8), DDPMScheduler())
    with pytest.raises(Unsupported, match="needs a UNet2DConditionModel, DDPMPipeline has UNet2DModel"):
        Flash().check(other)
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
    assert not is_out_of_memory(RuntimeError("shape mismatch"))

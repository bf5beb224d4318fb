from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st

from optsd import native
from optsd.calls import interpose
from optsd.errors import Unsupported
from optsd.optimizations import sage
from optsd.optimizations.attention import Attend, FirstOf, KernelProcessor
from optsd.optimizations.kernels import example_inputs, kernels_seen
from optsd.optimizations.sage import REMEDY, CpuSage, Reference, Sage
from optsd.variants import parse

HERE = (Reference(),) if native.refusal() else (CpuSage(), Reference())
of_every_kernel = pytest.mark.parametrize("kernel", HERE, ids=lambda kernel: kernel.name)
needs_native = pytest.mark.skipif(bool(native.refusal()), reason=f"{native.refusal()}")
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)
WIDTHS = (1, 4, 40, 63, 64, 80, 160)
# against the largest value: sums in another order; in bfloat16 weights and both results are rounded, by 2^-9 each
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 3 * 2**-9, torch.float16: 2**-10}


def tokens(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(query, key, value, mask, scale):
    """In float64."""
    scores = query.double() @ key.double().transpose(-1, -2) * scale
    return (scores if mask is None else scores + mask).softmax(-1) @ value.double()


def bound(query, key, value, scale):
    """The most that rounding tokens to integers can change, query by query.

    A score is off by δ at most: half a step of each query's number times the key, and half a step of each key's number
    times the query. So weights are off by a factor of exp(2δ) at most.
    """
    query, smooth = query.double(), key.double() - key.double().mean(-2, keepdim=True)
    steps = [tensor.abs().amax(-1, keepdim=True) / 127 for tensor in (query, smooth)]
    of_query = steps[0] / 2 * smooth.abs().sum(-1).amax(-1)[..., None, None]
    of_keys = steps[1].amax(-2, keepdim=True) / 2 * (query.abs().sum(-1, keepdim=True) + query.shape[-1] * steps[0] / 2)
    return torch.expm1(2 * scale * (of_query + of_keys)) * value.abs().amax()


masks = st.sampled_from(["none", "of keys", "of each", "of booleans"])


def mask_of(kind: str, batch: int, heads: int, queries: int, keys: int, seed: int) -> torch.Tensor | None:
    if kind == "none":
        return None
    if kind == "of each":
        return tokens(batch, heads, queries, keys, seed=seed)
    mask = torch.zeros(batch, 1, 1, keys)
    mask[..., : keys // 2] = -torch.inf if kind == "of booleans" else -10000.0
    return mask


@of_every_kernel
@few
@given(
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([1, 5, 48, 49, 130]),
    st.sampled_from([1, 2, 15, 77, 512, 513, 1100]),
    st.sampled_from(WIDTHS),
    st.floats(0.01, 0.5),
    st.sampled_from([0.0, 30.0]),
    masks,
    st.sampled_from([torch.float32, torch.bfloat16]),
    seeds,
)
def test_it_is_attention_but_for_the_rounding_to_integers(
    kernel, batch, heads, queries, keys, width, scale, bias, masked, dtype, seed
):
    query = tokens(batch, queries, heads, width, seed=seed, dtype=dtype).transpose(1, 2)
    key = (tokens(batch, heads, keys, width, seed=seed + 1) + bias * tokens(width, seed=seed + 2)).to(dtype)
    value = tokens(batch, heads, keys, 2 * width, seed=seed + 3, dtype=dtype)[..., width:]
    mask = mask_of(masked, batch, heads, queries, keys, seed)
    out = kernel(query, key, value, mask, scale)
    assert (out.dtype, out.shape) == (dtype, query.shape)
    # scores of 100 are off by their own rounding in float32
    allowed = bound(query, key, value, scale) + 10 * ROUNDING[dtype] * value.abs().max()
    assert ((out - exact(query, key, value, mask, scale)).abs() <= allowed).all()


@needs_native
@few
@given(
    st.integers(1, 2),
    st.sampled_from([1, 47, 48, 49, 130]),
    st.sampled_from([1, 2, 15, 16, 77, 511, 512, 513, 1100]),
    st.sampled_from(WIDTHS),
    st.sampled_from([1e-3, 1.0, 20.0]),
    masks,
    st.sampled_from(native.TYPES),
    seeds,
)
def test_the_native_kernel_has_the_references_integers(heads, queries, keys, width, size, masked, dtype, seed):
    """One integer that is another one changes more than the order of sums does."""
    query = (tokens(1, queries, heads, width, seed=seed) * size).to(dtype).transpose(1, 2)
    key = (tokens(1, heads, keys, width, seed=seed + 1) + 5 * tokens(width, seed=seed + 2)).to(dtype)
    value = tokens(1, heads, keys, width, seed=seed + 3, dtype=dtype)
    mask = mask_of(masked, 1, heads, queries, keys, seed)
    if mask is not None and queries > 1:
        mask = mask.to(dtype)
    mine, theirs = (kernel(query, key, value, mask, 0.2) for kernel in (CpuSage(), Reference()))
    assert (mine.float() - theirs.float()).abs().max() <= ROUNDING[dtype] * value.abs().max()


@of_every_kernel
def test_the_error_is_that_of_eight_bits(kernel):
    """Of SD's head widths, and what keys have in common costs nothing: without smoothing it would cost all."""
    for width in (40, 64, 80, 160):
        query, key, value = (tokens(1, 4, 300, width, seed=seed) for seed in range(3))
        plain = kernel(query, key, value, None, width**-0.5)
        expected = exact(query, key, value, None, width**-0.5)
        assert 1e-3 < ((plain - expected).norm() / expected.norm()) < 0.012
        biased = kernel(query, key + 100 * tokens(width, seed=3), value, None, width**-0.5)
        assert ((biased - expected).norm() / expected.norm()) < 0.012


@of_every_kernel
def test_nothing_but_a_head_of_one_picture_decides_about_it(kernel):
    """Pictures and heads of very different size together and alone; one query of many."""
    sizes = torch.tensor([[1e-3, 1.0], [50.0, 3.0], [1.0, 1e4]])[..., None, None]
    query, key, value = (sizes * tokens(3, 2, 60, 40, seed=seed) for seed in range(3))
    together = kernel(query, key, value, None, 0.1)
    for picture in range(3):
        for head in range(2):
            part = (slice(picture, picture + 1), slice(head, head + 1))
            alone = kernel(query[part], key[part], value[part], None, 0.1)
            torch.testing.assert_close(together[part], alone, rtol=1e-5, atol=1e-6 * value[part].abs().max().item())
    one = kernel(query[:, :, 7:8], key, value, None, 0.1)
    torch.testing.assert_close(together[:, :, 7:8], one, rtol=1e-5, atol=1e-2)


@of_every_kernel
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_what_is_broken_stays_broken(kernel, broken):
    """A query breaks its own row, a key breaks its head."""
    query, key, value = (tokens(1, 2, 60, 16, seed=seed) for seed in range(3))
    query[0, 0, 13, 5] = broken
    is_nan = kernel(query, key, value, None, 0.3).isnan()
    assert is_nan[0, 0, 13].all()
    assert is_nan.sum() == 16
    query, key[0, 1, 59, 15] = tokens(1, 2, 60, 16, seed=0), broken
    is_nan = kernel(query, key, value, None, 0.3).isnan()
    assert is_nan[0, 1].all()
    assert not is_nan[0, 0].any()


@of_every_kernel
def test_tokens_without_any_size(kernel):
    """All keys alike: the mean of the values. Zeros, and numbers next to zero, divide nothing by zero."""
    value = tokens(1, 1, 9, 8, seed=0)
    one = tokens(1, 1, 1, 8, seed=1)
    for key in (torch.zeros(1, 1, 9, 8), torch.full((1, 1, 9, 8), 1e-38), one.expand(1, 1, 9, 8)):
        for query in (torch.zeros(1, 1, 3, 8), torch.full((1, 1, 3, 8), 1e-38), tokens(1, 1, 3, 8, seed=2)):
            out = kernel(query, key, value, None, 1.0)
            torch.testing.assert_close(out, value.mean(-2, keepdim=True).expand(1, 1, 3, 8))


@needs_native
def test_what_does_not_fit_is_refused():
    query, key = torch.ones(1, 2, 4, 8), torch.ones(1, 2, 5, 8)
    attend = torch.ops.optsd.sage_attention
    for wrong in (
        (query, key, key[:, :, :4], None, 1.0),
        (query, key.bfloat16(), key, None, 1.0),
        (query.half(), key.half(), key.half(), None, 1.0),
        (query, key, key, None, 0.0),
    ):
        with pytest.raises(ValueError, match="sage_attention does not fit these: torch.float"):
            attend(*wrong)
    with pytest.raises(RuntimeError, match="expand"):
        attend(query, key, key, torch.zeros(1, 2, 4, 4), 1.0)
    assert attend(query[:, :, :0], key, key, None, 1.0).shape == (1, 2, 0, 8)
    query.requires_grad_()
    with pytest.raises(Unsupported, match="no backward pass; train with sdpa"):
        attend(query, query, query, None, 1.0).sum().backward()


def test_autocast_does_not_round_the_references_sums():
    query, key, value = (tokens(1, 1, 30, 64, seed=seed) for seed in range(3))
    expected = Reference()(query, key, value, None, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Reference()(query, key, value, None, 0.1), expected)


def test_wide_heads_are_summed_exactly():
    """And rounded once, where a sum is more than float32 holds; in another order or as pairs it would be another."""
    rows = torch.randint(-127, 128, (20, 5000), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    rows[:, ::2] = 127
    sums = (rows.long() @ rows.long().t()).float()
    assert sums.max() > 2**25
    assert torch.equal(sage.multiply(rows, rows), sums)


def test_the_proof_counts_calls_by_kernel(small_unet, bare):
    """Also where the CPU's own kernel has no such type: float16 goes to the reference, and the proof says why."""
    unet = small_unet()
    patch = Sage().apply(bare(unet))
    seen = kernels_seen(unet, partial(unet, **example_inputs(unet, 2, (8, 8))))
    calls = len(patch.touched)
    native_here = not native.refusal()
    assert seen == {"optsd::sage_attention" if native_here else "aten::softmax": calls}
    assert patch.proof["kernel"] == next(iter(seen))
    assert patch.proof["kernel_calls"] == calls
    kernel = FirstOf(sage.SAGE_KERNELS)
    for dtype in (torch.float32, torch.float16, torch.float16):
        query = tokens(1, 1, 5, 8, seed=0, dtype=dtype)
        kernel(query, query, query, None, 0.3)
    if native_here:
        assert kernel.proof()["calls_by_kernel"] == {"optsd::sage_attention": 1, "aten::softmax": 2}
        assert kernel.proof()["passed_over"] == {"CPU sage": "it computes in float32 or bfloat16, not in float16"}


class Causal:
    """Somebody's processor that asks torch for what no kernel here serves."""

    def __call__(self, attn, hidden_states, *others, **more):
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def test_what_it_cannot_take_is_left_and_said(small_unet, bare):
    unet = small_unet()
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    layer.set_processor(Causal())
    hidden = torch.randn(1, 9, layer.to_q.in_features)
    expected = layer(hidden)
    patch = Sage().apply(bare(unet))
    assert torch.equal(layer(hidden), expected)
    assert patch.proof["left_to"] == {"Causal": 1}
    assert patch.proof["kernel_calls"] == 0


def test_a_layer_with_a_mask_is_served(small_unet):
    """As PixArt-Σ has them: the text's padding is no key."""
    layer = Attention(64, cross_attention_dim=6, heads=2, dim_head=32)
    hidden, text = torch.randn(2, 9, 64), torch.randn(2, 5, 6)
    mask = torch.zeros(2, 1, 5)
    mask[..., 2:] = -10000.0
    expected, whole = layer(hidden, text, mask), layer(hidden, text)
    first = FirstOf(sage.SAGE_KERNELS, remedy=REMEDY)
    interpose(layer, Attend(KernelProcessor(first), first))
    error = (layer(hidden, text, mask) - expected).norm() / expected.norm()
    assert 0 < error < 0.01
    assert (whole - expected).norm() / expected.norm() > 0.05, "the mask means nothing"
    assert first.proof()["kernel_calls"] == 1


def test_a_gpu_is_told_what_to_choose(monkeypatch, small_unet, bare):
    place = torch.device("cuda", 0)
    assert all("not on cuda" in kernel.refusal(place, torch.float16, 40, False) for kernel in sage.SAGE_KERNELS)
    for kernel in (CpuSage, Reference):
        monkeypatch.setattr(kernel, "refusal", lambda *_, **__: "it is out of order")
    with pytest.raises(Unsupported, match="sage cannot serve unet.down.*: it is out of order.*; choose flash"):
        Sage().check(bare(small_unet()))
    with pytest.raises(Unsupported, match="no attention kernel can run: .*; choose flash"):
        FirstOf(sage.SAGE_KERNELS, remedy=REMEDY)(*[torch.ones(1, 1, 2, 2)] * 3, None, 1.0)


def test_it_is_approximate_and_says_so():
    assert not parse("sage").exact
    with pytest.raises(Unsupported, match="flash and sage cannot be combined: both decide the attention"):
        parse("sage+flash")

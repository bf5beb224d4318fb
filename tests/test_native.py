import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from optsd import native
from optsd.errors import BadInput, Unsupported
from optsd.quantization import schemes

needs_kernels = pytest.mark.skipif(bool(native.refusal()), reason=f"{native.refusal()}")
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)
types = st.sampled_from(native.TYPES)
# of attention, against its largest value: in bfloat16 weights and result are rounded, by 2^-9 of themselves each
MOST_ERROR = {torch.bfloat16: 2**-8, torch.float32: 1e-5}


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """The kernels as on the first use on a machine; what was loaded before comes back afterwards."""
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path))
    native.refusal.cache_clear()
    native._library.cache_clear()
    yield tmp_path / "native"
    native.refusal.cache_clear()
    native._library.cache_clear()


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(query, key, value, scale):
    """In float64."""
    scores = query.double() @ key.double().transpose(-1, -2) * scale
    return scores.softmax(-1) @ value.double()


@needs_kernels
@few
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 130),
    st.sampled_from([1, 2, 15, 16, 77, 511, 512, 513, 1100]),
    st.sampled_from([1, 2, 7, 16, 40, 63, 64, 80, 160]),
    st.floats(0.01, 2),
    types,
    seeds,
)
def test_flash_attention_is_attention(batch, heads, queries, keys, width, scale, dtype, seed):
    query = numbers(batch, queries, heads, width, seed=seed).to(dtype).transpose(1, 2)
    key = numbers(batch, heads, keys, width, seed=seed + 1).to(dtype)
    value = numbers(batch, heads, keys, 2 * width, seed=seed + 2).to(dtype)[..., width:]
    out = torch.ops.optsd.flash_attention(query, key, value, scale)
    assert (out.dtype, out.shape) == (dtype, query.shape)
    error = (out - attention(query, key, value, scale)).abs().max()
    assert error <= MOST_ERROR[dtype] * value.abs().max()


@needs_kernels
def test_threads_change_no_bit(threads):
    query, key, value = (numbers(1, 2, 300, 24, seed=seed).bfloat16() for seed in range(3))
    alone = torch.cat([torch.ops.optsd.flash_attention(query[:, :, i : i + 1], key, value, 0.2) for i in range(300)], 2)
    assert torch.equal(torch.ops.optsd.flash_attention(query, key, value, 0.2), alone)


@needs_kernels
@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_scores_of_every_size(size, dtype):
    """Large ones leave one key its whole weight, and nothing overflows."""
    query, key, value = (numbers(1, 1, 700, 32, seed=seed).to(dtype) for seed in range(3))
    out = torch.ops.optsd.flash_attention(query * size, key * size, value, 1.0)
    expected = attention(query * size, key * size, value, 1.0)
    # scores of 1e6 are off by their own rounding in float32, and their exponentials by as much
    assert (out - expected).abs().max() <= max(MOST_ERROR[dtype], 1e-7 * size**2) * value.abs().max()


@needs_kernels
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_query_breaks_its_own_row_only(broken):
    query, key, value = (numbers(1, 1, 60, 16, seed=seed).bfloat16() for seed in range(3))
    query[0, 0, 13, 5] = broken
    is_nan = torch.ops.optsd.flash_attention(query, key, value, 0.3).isnan()
    assert is_nan[0, 0, 13].all()
    assert is_nan.sum() == 16


@needs_kernels
def test_a_broken_key_breaks_everything():
    query, key, value = (numbers(1, 1, 60, 16, seed=seed).bfloat16() for seed in range(3))
    key[0, 0, 59, 15] = torch.nan
    assert torch.ops.optsd.flash_attention(query, key, value, 0.3).isnan().all()


@needs_kernels
def test_what_does_not_fit_is_refused():
    query = torch.ones(1, 2, 4, 8)
    key = torch.ones(1, 2, 5, 8)
    attend = torch.ops.optsd.flash_attention
    for wrong in (
        (query, key, key[:, :, :4], 1.0),
        (query, key[:, :1], key[:, :1], 1.0),
        (query, key[..., :7], key[..., :7], 1.0),
        (query, key.bfloat16(), key, 1.0),
        (query.half(), key.half(), key.half(), 1.0),
        (query, key, key, -1.0),
    ):
        with pytest.raises(ValueError, match="flash_attention does not fit these: torch.float"):
            attend(*wrong)
    assert attend(query[:, :, :0], key, key, 1.0).shape == (1, 2, 0, 8)
    picture, ones = torch.ones(1, 6, 2, 2).bfloat16(), torch.ones(6).bfloat16()
    for x, groups, weight in ((picture.float(), 2, ones), (picture, 4, ones), (picture, 2, ones[:5])):
        with pytest.raises(ValueError, match="group_norm does not fit these: torch"):
            torch.ops.optsd.group_norm(x, groups, weight, ones, 1e-5, True)
    for wrong in (torch.ones(2, 3).bfloat16(), torch.ones(2, 4)):
        with pytest.raises(ValueError, match="geglu wants bfloat16 and an even last dimension"):
            torch.ops.optsd.geglu(wrong)


@needs_kernels
def test_there_is_no_backward_pass_and_it_is_said():
    query = torch.ones(1, 1, 3, 4, requires_grad=True)
    out = torch.ops.optsd.flash_attention(query, query, query, 1.0)
    with pytest.raises(Unsupported, match="no backward pass; train with sdpa"):
        out.sum().backward()


@needs_kernels
@few
@given(
    st.sampled_from([(1,), (15,), (16, 3), (1003,), (2, 5, 7, 3), (3, 9001), (40_001,)]),
    st.booleans(),
    types,
    st.booleans(),
    st.sampled_from([1e-20, 1.0, 1e20]),
    seeds,
)
def test_the_integers_are_those_of_torch(shape, by_row, dtype, signed, magnitude, seed):
    """With a share for each row, for each picture, or one in all."""
    dimensions = len(shape) - 1 if by_row else min(1, len(shape) - 1)
    x = numbers(*shape, seed=seed)
    x = (x * magnitude * numbers(*shape[:dimensions], *[1] * (len(shape) - dimensions), seed=seed + 1)).to(dtype)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    mine = schemes.quantize_activation(x, dimensions, signed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "serves", lambda x: False)
        theirs = schemes.quantize_activation(x, dimensions, signed)
    assert torch.equal(mine.values, theirs.values)
    assert torch.equal(mine.scale, theirs.scale)
    assert torch.equal(mine.zero_point, theirs.zero_point)
    assert mine.values.stride() == x.stride()


@needs_kernels
def test_the_range_over_several_threads(threads):
    for shares, count in ((1, 1), (1, 16_383), (1, 16_384), (2, 16_461), (3, 8000), (100, 201)):
        x = numbers(shares, count, seed=count)
        _, scale, zero_point = native.quantize(x, shares, signed=False)
        low, high = x.amin(1).clamp(max=0).double(), x.amax(1).clamp(min=0).double()
        assert torch.equal(scale, ((high - low) / 254).float())
        assert torch.equal(zero_point, torch.ceil(-low / ((high - low) / 254)).int())
        x[-1, -1] = torch.nan
        with pytest.raises(BadInput, match="activations reach nan … nan before"):
            native.quantize(x, shares, signed=False)


def integer_layer(inputs: int, outputs: int, bits: int, group_size: int, seed: int) -> tuple[tuple, torch.Tensor]:
    """Weights, multipliers and scales as `quantized_layer` takes them, and the integers that they stand for."""
    matrix = numbers(outputs, inputs, seed=seed)
    scale, bias = torch.full((outputs,), 0.5), torch.arange(float(outputs))
    if bits == 8:
        integers = schemes.quantize_int8(matrix).values
        weights, multipliers = native.pack(integers), None
        assert torch.equal(native.unpack(weights, outputs, inputs), integers)
    else:
        quantized = schemes.quantize_int4(matrix, group_size)
        integers = quantized.unpack()[:inputs].t()
        weights, multipliers = quantized.packed, quantized.multipliers
    return (weights, multipliers, scale, integers.sum(1, dtype=torch.int32), bias), integers


def of_each(shares: int, zero_point: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales, powers of two so that products are exact, and zero points, the first one as given; each its own."""
    place = torch.arange(shares)
    return 2.0 ** (place % 3 - 3), ((zero_point + 37 * place) % 256).int()


@needs_kernels
@few
@given(
    st.sampled_from([1, 2, 5, 6, 7, 100, 383, 384, 385, 900]),
    st.sampled_from([4, 8, 36, 320, 2044, 2048, 2052, 5000]),
    st.sampled_from([1, 15, 16, 17, 63, 64, 65, 200]),
    st.sampled_from([(8, 0), (4, 2), (4, 6), (4, 32), (4, 100)]),
    st.integers(0, 255),
    seeds,
)
def test_linear_layers_of_every_size(rows, inputs, outputs, bits_and_group, zero_point, seed):
    """As many rows, inputs and outputs as fit one tile, block or panel; one more, and one less."""
    parts, integers = integer_layer(inputs, outputs, *bits_and_group, seed)
    x = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    scale, zeros = of_each(rows, zero_point)
    out = torch.ops.optsd.quantized_layer(x, *parts, (), scale, zeros)
    exact = (x.double() - zeros[:, None]) @ integers.double().t()
    assert torch.equal(out, (exact * scale[:, None] * 0.5 + torch.arange(outputs)).float())


@needs_kernels
@few
@given(
    st.sampled_from([4, 320, 1028, 2060]),
    st.sampled_from([7, 65]),
    st.sampled_from([(8, 0), (4, 2), (4, 32)]),
    *[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 3,
    st.tuples(*[st.integers(0, 2)] * 4),
    st.integers(0, 255),
    seeds,
)
def test_convolutions_of_every_window(
    channels, outputs, bits_and_group, kernel_size, stride, dilation, margins, zero, seed
):
    parts, integers = integer_layer(channels * kernel_size[0] * kernel_size[1], outputs, *bits_and_group, seed)
    x = torch.randint(0, 256, (3, 7, 6, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    scale, zeros = of_each(3, zero)
    filters = integers.double().unflatten(1, (*kernel_size, -1)).permute(0, 3, 1, 2)
    padded = torch.nn.functional.pad(x.permute(0, 3, 1, 2).double() - zeros[:, None, None, None], margins)
    extents = [step * (extent - 1) + 1 for step, extent in zip(dilation, kernel_size, strict=True)]
    assume(padded.shape[2] >= extents[0] and padded.shape[3] >= extents[1])
    exact = torch.nn.functional.conv2d(padded, filters, stride=stride, dilation=dilation)
    window = (*kernel_size, *stride, *dilation, *margins, *exact.shape[2:])
    out = torch.ops.optsd.quantized_layer(x.permute(0, 3, 1, 2), *parts, window, scale, zeros)
    exact = exact * scale[:, None, None, None] * 0.5
    assert torch.equal(out, (exact + torch.arange(outputs)[:, None, None]).float())


@needs_kernels
@few
@given(st.sampled_from([1, 5, 6, 390]), st.sampled_from([8, 2052]), st.sampled_from([(8, 0), (4, 4)]), types, seeds)
def test_a_layer_may_end_in_geglu(rows, inputs, bits_and_group, dtype, seed):
    """As the layer and what follows it, in exact numbers, would be; rounded once."""
    (*parts, _, sums, _), integers = integer_layer(inputs, 256, *bits_and_group, seed)
    scale, bias = torch.full((256,), 2.0**-14), numbers(256, seed=seed + 1)
    x = numbers(rows, inputs, seed=seed + 2).to(dtype)
    out = torch.ops.optsd.quantized_layer(x, *parts, scale, sums, bias, (), None, None, gated=True)
    activation = schemes.quantize_activation(x, 1, signed=False)
    exact = (activation.values.double() - activation.zero_point[:, None]) @ integers.double().t()
    values, gate = (exact * activation.scale[:, None].double() * scale + bias).chunk(2, -1)
    expected = values * torch.nn.functional.gelu(gate)
    assert (out.dtype, out.shape) == (dtype, (rows, 128))
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    assert ((out - expected).abs() <= rounding * expected.abs() + 1e-6 * (1 + values.abs())).all()


@needs_kernels
@few
@given(st.sampled_from([7, 65]), st.sampled_from([(8, 0), (4, 4)]), st.booleans(), types, seeds)
def test_what_is_added_to_a_layer(outputs, bits_and_group, of_pixels, dtype, seed):
    """To each pixel its own, or to all of a picture the same; and to rows. The sum is rounded once."""

    def added(x, parts, window, plus):
        plus = plus.to(dtype)
        out = torch.ops.optsd.quantized_layer(x, *parts, window, None, None, plus=plus)
        wanted = torch.ops.optsd.quantized_layer(x.float(), *parts, window, None, None).double() + plus
        rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
        return ((out - wanted).abs() <= rounding * wanted.abs() + 1e-5).all()

    x = numbers(3, 4, 5, 6, seed=seed).to(dtype).contiguous(memory_format=torch.channels_last)
    plus = numbers(3, outputs, *((5, 6) if of_pixels else (1, 1)), seed=seed + 1)
    plus = plus.contiguous(memory_format=torch.channels_last) if of_pixels else plus
    parts, _ = integer_layer(4 * 9, outputs, *bits_and_group, seed)
    assert added(x, parts, (3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 5, 6), plus)
    parts, _ = integer_layer(4, outputs, *bits_and_group, seed)
    assert added(x.flatten().view(-1, 4), parts, (), numbers(90, outputs, seed=seed))


@needs_kernels
def test_what_is_added_must_fit():
    (*parts,), _ = integer_layer(8, 20, 8, 0, seed=0)
    x, plus = torch.ones(3, 8), torch.ones(3, 20)
    for wrong in (plus[:2], plus[:, :19], plus.bfloat16(), plus.t().contiguous().t(), torch.ones(1, 20)):
        with pytest.raises(ValueError, match="quantized_layer does not fit these: torch"):
            torch.ops.optsd.quantized_layer(x, *parts, (), None, None, plus=wrong)
    with pytest.raises(ValueError, match="quantized_layer does not fit these: torch"):
        torch.ops.optsd.quantized_layer(x, *parts, (), None, None, gated=True)
    picture = torch.ones(1, 8, 2, 2).contiguous(memory_format=torch.channels_last)
    window = (1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2)
    for shape in ((1, 20, 1, 2), (1, 19, 1, 1), (2, 20, 1, 1), (1, 20, 2, 2)):  # the last one's channels come first
        with pytest.raises(ValueError, match="quantized_layer does not fit these: torch"):
            torch.ops.optsd.quantized_layer(picture, *parts, window, None, None, plus=torch.ones(shape))


@needs_kernels
def test_threads_change_no_integer(threads):
    parts, integers = integer_layer(640, 130, 4, 32, seed=0)
    x = torch.randint(0, 256, (500, 640), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    scale, zeros = of_each(500, 9)
    exact = (x.double() - zeros[:, None]) @ integers.double().t() * scale[:, None] * 0.5 + torch.arange(130)
    assert torch.equal(torch.ops.optsd.quantized_layer(x, *parts, (), scale, zeros), exact.float())


@needs_kernels
@few
@given(st.integers(1, 30), st.sampled_from([4, 100]), st.sampled_from([1e-20, 1.0, 1e20]), types, seeds)
def test_a_layer_quantizes_as_the_scheme_does(rows, inputs, magnitude, dtype, seed):
    parts, _ = integer_layer(inputs, 20, 8, 0, seed)
    x = (numbers(rows, inputs, seed=seed) * magnitude).to(dtype)
    activation = schemes.quantize_activation(x, 1, signed=False)
    of_rows = (activation.scale, activation.zero_point)
    wanted = torch.ops.optsd.quantized_layer(activation.values, *parts, (), *of_rows)
    assert torch.equal(torch.ops.optsd.quantized_layer(x, *parts, (), None, None), wanted.to(dtype))


@needs_kernels
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_layer_refuses_what_is_broken(broken):
    parts, _ = integer_layer(8, 20, 8, 0, seed=0)
    x = torch.ones(3, 8)
    x[1, 2] = broken
    with pytest.raises(BadInput, match="activations reach .* before a quantized layer; leave that layer"):
        torch.ops.optsd.quantized_layer(x, *parts, (), None, None)


@needs_kernels
@pytest.mark.parametrize("bits", [8, 4])
def test_layers_that_do_not_fit_are_refused(bits):
    """Each would read or write beyond a tensor."""
    parts, _ = integer_layer(8, 20, bits, 2, seed=0)
    x = torch.zeros(3, 8, dtype=torch.uint8)
    weights, multipliers, scale, sums, bias = parts
    for rows, others in (
        (x[:, :7], parts),
        (x.t(), parts),
        (x[:, :0], parts),
        (x.to(torch.int8), parts),
        (x.half(), parts),
        (torch.zeros(3, 12, dtype=torch.uint8), parts),
        (x, (weights[:-1], multipliers, scale, sums, bias)),
        (x, (weights, None if bits == 4 else scale[None], scale, sums, bias)),
        (x, (weights, multipliers, scale[:-5], sums[:-5], bias[:-5])),
        (x, (weights, multipliers, scale, sums[:-1], bias)),
        (x, (weights, multipliers, scale, sums.float(), bias)),
        (x, (weights, multipliers, scale, sums, bias[:-1])),
    ):
        with pytest.raises(ValueError, match="quantized_layer does not fit these: torch"):
            torch.ops.optsd.quantized_layer(rows, *others, (), *of_each(3, 0))
    for scale_and_zero in (of_each(2, 0), of_each(3, 0)[::-1], [each.long() for each in of_each(3, 0)]):
        with pytest.raises(ValueError, match="quantized_layer does not fit these: torch"):
            torch.ops.optsd.quantized_layer(x, *parts, (), *scale_and_zero)
    for rows, scale_and_zero in ((x, (None, None)), (x, (of_each(3, 0)[0], None)), (x.float(), of_each(3, 0))):
        with pytest.raises(ValueError, match="quantized_layer does not fit these: torch"):
            torch.ops.optsd.quantized_layer(rows, *parts, (), *scale_and_zero)
    picture = torch.zeros(1, 8, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="quantized_layer does not fit these: torch"):  # channels do not come last
        torch.ops.optsd.quantized_layer(picture, *parts, (1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2), *of_each(1, 0))
    for rows in (0, 3):
        assert torch.ops.optsd.quantized_layer(x[:rows], *parts, (), *of_each(rows, 0)).shape == (rows, 20)


@needs_kernels
@few
@given(st.integers(1, 5), st.sampled_from([1, 15, 16, 100]), st.floats(0.01, 30), seeds)
def test_geglu(rows, width, magnitude, seed):
    """Off by the rounding to bfloat16, and by 1e-6 where GELU is nearly zero."""
    x = (numbers(rows, 2 * width, seed=seed) * magnitude).bfloat16()
    values, gate = x.double().chunk(2, -1)
    expected = values * torch.nn.functional.gelu(gate)
    assert ((torch.ops.optsd.geglu(x) - expected).abs() <= 2**-8 * expected.abs() + 1e-6 * values.abs()).all()


@needs_kernels
def test_geglu_passes_on_what_is_broken():
    x = torch.tensor([[1.0, 1.0, torch.nan, torch.nan, torch.inf, 1.0]]).bfloat16()
    assert torch.ops.optsd.geglu(x).isfinite().tolist() == [[False, False, False]]


@needs_kernels
@few
@given(
    st.integers(1, 3),
    st.sampled_from([(4, 4), (10, 1), (20, 2), (320, 32), (33, 3)]),
    st.tuples(st.integers(2, 20), st.integers(1, 9)),
    st.sampled_from([0.0, 100.0]),
    st.booleans(),
    seeds,
)
def test_group_norm_silu(batch, channels_and_groups, size, mean, channels_last, seed):
    """Off by the rounding to bfloat16, of the numbers and of what SiLU makes of a small error before it."""
    channels, groups = channels_and_groups
    x = (numbers(batch, channels, *size, seed=seed) + mean).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weight, bias = (numbers(channels, seed=seed + i).bfloat16() for i in (1, 2))
    normal = torch.nn.functional.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
    expected = torch.nn.functional.silu(normal)
    out = torch.ops.optsd.group_norm(x, groups, weight, bias, 1e-5, True)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert ((out - expected).abs() <= 2**-8 * expected.abs() + 1e-4 * (1 + normal.abs())).all()


@needs_kernels
def test_group_norm_over_several_threads(threads):
    x = numbers(1, 40, 30, 30, seed=0).bfloat16().contiguous(memory_format=torch.channels_last)
    ones = torch.ones(40).bfloat16()
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 4, ones.double()))
    out = torch.ops.optsd.group_norm(x, 4, ones, ones * 0, 1e-5, True)
    assert (out - expected).abs().max() <= 2**-8 * expected.abs().max()
    x[0, 0, 0, 0] = torch.nan
    is_nan = torch.ops.optsd.group_norm(x, 4, ones, ones, 1e-5, True).isnan()
    assert is_nan[0, :10].all()
    assert not is_nan[0, 10:].any()


@needs_kernels
@few
@given(st.sampled_from([1, 7, 60]), st.sampled_from([1, 15, 16, 17, 320]), st.sampled_from([0, 1, 1000]), seeds)
def test_add_layer_norm(rows, width, mean, seed):
    """The sum is rounded, and what is normalized is what it is rounded to."""
    x, plus = (numbers(rows, width, seed=seed + i).bfloat16() for i in (0, 1))
    x = x + mean
    weight, bias = (numbers(width, seed=seed + i).bfloat16() for i in (2, 3))
    sums, out = torch.ops.optsd.add_layer_norm(x, plus, weight, bias, 1e-5)
    assert torch.equal(sums, x + plus)
    expected = torch.nn.functional.layer_norm(sums.double(), (width,), weight.double(), bias.double(), 1e-5)
    assert ((out - expected).abs() <= 2**-8 * expected.abs() + 1e-4 * (1 + (expected - bias).abs())).all()


@needs_kernels
def test_add_layer_norm_passes_on_what_is_broken_and_refuses_what_does_not_fit(threads):
    x, ones = torch.zeros(3, 20).bfloat16(), torch.ones(20).bfloat16()
    x[1, 3] = torch.nan
    sums, out = torch.ops.optsd.add_layer_norm(x, torch.ones_like(x), ones, ones, 1e-5)
    assert sums.isnan().sum() == 1
    assert out.isnan().all(1).tolist() == [False, True, False]
    for wrong in ((x[:2], ones, ones), (x.float(), ones, ones), (x, ones[:19], ones), (x, ones, ones.float())):
        with pytest.raises(ValueError, match="add_layer_norm does not fit these: torch"):
            torch.ops.optsd.add_layer_norm(x, *wrong, 1e-5)


def test_what_they_do_not_serve():
    assert not native.serves(torch.ones(4, dtype=torch.float16))
    assert not native.serves(torch.ones(4, 6)[:, ::2])
    assert not native.serves(torch.ones(4, device="meta"))


@needs_kernels
def test_they_are_compiled_once(anew):
    assert native.refusal() == ""
    (file,) = anew.iterdir()
    assert file.name.startswith(f"{native.instruction_set().name.lower()}-")
    native.refusal.cache_clear()
    native._library.cache_clear()
    before = file.stat()
    assert native.refusal() == ""
    assert list(anew.iterdir()) == [file]
    assert file.stat().st_mtime_ns == before.st_mtime_ns


@needs_kernels
def test_two_at_once_leave_one_whole_file(anew):
    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(lambda _: native._library.__wrapped__(), range(2)))
    assert all(library.optsd_layer for library in libraries)
    assert len(list(anew.iterdir())) == 1


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", r"there is no C\+\+ compiler no-such-compiler \(install g\+\+, or set CXX\)"),
        ("false", r"the C\+\+ compiler failed"),
    ],
)
def test_without_a_compiler_they_say_why(anew, monkeypatch, compiler, reason):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(AssertionError, match=reason):
        assert not native.refusal()
    assert not native.serves(torch.ones(3))


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ("ccache g++", ["ccache", "g++"]),
        ("g++ -B '/a b'", ["g++", "-B", "/a b"]),
        ("", ["g++"]),
        (" ", ["g++"]),
        ("g++ '", ["g++ '"]),
    ],
)
def test_the_compiler_may_have_a_launcher_and_flags(monkeypatch, given, command):
    monkeypatch.setenv("CXX", given)
    assert native.compiler() == command


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_kernels_are_compiled_by_a_launcher_and_without_a_folder_to_keep_them(anew, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path / "file" / "home"))  # nothing can be written there
    monkeypatch.setenv("CXX", f"{shutil.which('env')} g++ -O0")
    assert native._library.__wrapped__().optsd_layer


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("avx2 vnni bf16", native.AVX512),
        ("avx2 vnni", "the CPU has AVX512-VNNI without -BF16"),  # which oneDNN uses
        ("avx2 bf16", native.AVX2),
        ("avx2 avx_vnni", native.AVX_VNNI),
        ("avx2", native.AVX2),
        ("", "the CPU has no AVX2"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_each_processor_gets_the_best_that_it_has_or_hears_why(anew, monkeypatch, flags, found):
    for flag, name in (("avx2", "_is_avx2"), ("vnni", "_is_vnni"), ("bf16", "_is_avx512_bf16")):
        monkeypatch.setattr(torch.cpu, f"{name}_supported", lambda flag=flag: flag in flags.split())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx_vnni": "avx_vnni" in flags.split()}, raising=False)
    if isinstance(found, str):
        assert native.refusal() == found
        with pytest.raises(Unsupported, match=f"{found}; use another kernel"):
            native.pack(torch.zeros(1, 1, dtype=torch.int8))
    else:
        assert native.instruction_set() == found


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("instructions", [native.AVX512, native.AVX_VNNI, native.AVX2], ids=lambda each: each.name)
def test_they_compile_for_every_processor(instructions, tmp_path):
    flags = [*native.FLAGS, "-O0", "-Werror", *instructions.flags]
    command = ["g++", *flags, str(native.SOURCE), "-o", str(tmp_path / "x")]
    assert subprocess.run(command, capture_output=True, encoding="utf-8").stderr == ""

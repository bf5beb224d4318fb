"""Rounding, scales, groups and packing: bounds that hold for every shape, and inverses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.quantization import schemes

shapes = st.tuples(st.integers(1, 12), st.integers(1, 70))
magnitudes = st.sampled_from([1e-30, 1e-6, 1.0, 6e4, 1e30])
seeds = st.integers(0, 1000)
few = settings(max_examples=30, deadline=None)


def weights(shape: tuple[int, int], seed: int, magnitude: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * magnitude


@few
@given(shapes, seeds, magnitudes)
def test_int8_is_off_by_half_a_step_at_most(shape, seed, magnitude) -> None:
    weight = weights(shape, seed, magnitude)
    quantized = schemes.quantize_int8(weight)
    error = (quantized.dequantize() - weight).abs()
    assert (error <= 0.5001 * quantized.scale[:, None]).all()
    assert torch.equal(quantized.values.abs().amax(1), torch.full((shape[0],), 127))


@few
@given(shapes, seeds, magnitudes, st.sampled_from([2, 6, 32, 64, 128]))
def test_int4_is_off_by_what_its_group_allows(shape, seed, magnitude, group_size) -> None:
    """Plain rounding is off by half a multiplier and half a step of the rounded multiplier; the best is no worse."""
    weight = weights(shape, seed, magnitude)
    quantized = schemes.quantize_int4(weight, group_size)
    padded = torch.nn.functional.pad(weight, (0, -shape[1] % group_size)) / quantized.scale[:, None]
    groups = padded.view(shape[0], -1, group_size)
    largest = groups.abs().amax(-1)
    plain = torch.round(largest / 7).clamp(1, 16)[..., None]
    bound = (torch.round(groups / plain).clamp(-8, 7) * plain - groups).square().sum(-1)
    found = (quantized.unpack().t().float().view_as(groups) - groups).square().sum(-1)
    assert (found <= bound * 1.001 + 1e-6).all()
    assert ((quantized.dequantize() - weight).abs().amax(1) <= 40 * quantized.scale).all()


@few
@given(shapes, seeds, st.sampled_from([2, 32, 64]))
def test_int4_integers_fit_and_padding_is_zero(shape, seed, group_size) -> None:
    quantized = schemes.quantize_int4(weights(shape, seed), group_size)
    assert quantized.multipliers.min() >= 1
    assert quantized.multipliers.max() <= 16
    assert quantized.packed.shape == (-(-shape[1] // group_size) * group_size // 2, shape[0])
    assert not quantized.unpack()[shape[1] :].any()


@few
@given(st.integers(1, 40), st.integers(1, 9), seeds)
def test_packing_and_unpacking_are_inverse(half, outputs, seed) -> None:
    values = torch.randint(-8, 8, (2 * half, outputs), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    packed = schemes.pack_int4(values)
    assert packed.numel() * 2 == values.numel()
    assert torch.equal(schemes.unpack_int4(packed), values)


def test_every_byte_unpacks_to_two_halves() -> None:
    packed = torch.arange(-128, 128, dtype=torch.int8)[None]
    low, high = schemes.unpack_int4(packed)
    assert torch.equal(high.int() * 16 + (low.int() & 15), packed[0].int())


@few
@given(shapes, seeds, magnitudes, st.sampled_from([torch.float32, torch.bfloat16]), st.floats(-3, 3))
def test_activations_are_off_by_half_a_step_at_most(shape, seed, magnitude, dtype, shift) -> None:
    x = ((weights(shape, seed) + shift) * magnitude).to(dtype)
    quantized = schemes.quantize_activation(x, 1)
    unsigned = schemes.quantize_activation(x, 1, signed=False)
    assert (quantized.values.dtype, unsigned.values.dtype) == (torch.int8, torch.uint8)
    assert torch.equal(quantized.values.int() + 128, unsigned.values.int())
    assert torch.equal(quantized.zero_point + 128, unsigned.zero_point)
    assert ((quantized.dequantize() - x.float()).abs() <= 0.51 * quantized.scale[:, None]).all()


@pytest.mark.parametrize("signed", [True, False])
def test_no_value_wraps_around(signed) -> None:
    """Ranges whose ends fall between two integers: the largest must not become the smallest."""
    for low in torch.linspace(0, 2, 2001).tolist():
        x = torch.tensor([-low, 0.0, 255 - low])
        quantized = schemes.quantize_activation(x, signed)
        assert ((quantized.dequantize() - x).abs() <= 0.51 * quantized.scale).all(), low


@few
@given(shapes, seeds)
def test_zero_stays_zero(shape, seed) -> None:
    """Padding and SiLU's zeros must not shift: the zero point is an exact picture of 0."""
    x = weights(shape, seed).relu()
    quantized = schemes.quantize_activation(x, 1)
    assert not quantized.dequantize()[x == 0].any()


def test_constant_activations() -> None:
    for value in (0.0, 3.0, -3.0):
        x = torch.full((4, 4), value)
        assert torch.allclose(schemes.quantize_activation(x, 1).dequantize(), x, rtol=1e-5)


@pytest.mark.parametrize("quantize", [schemes.quantize_int8, lambda weight: schemes.quantize_int4(weight, 32)])
def test_an_output_of_zeros_stays_zero(quantize) -> None:
    weight = weights((3, 40), 0)
    weight[1] = 0
    weight[2] = 1e-42  # divides to infinity where it is not caught
    dequantized = quantize(weight).dequantize()
    assert torch.isfinite(dequantized).all()
    assert not dequantized[1].any()
    assert dequantized[2].abs().max() <= 1e-37


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("quantize", [schemes.quantize_int8, lambda weight: schemes.quantize_int4(weight, 32)])
def test_broken_weights_are_refused(quantize, broken) -> None:
    weight = weights((3, 40), 0)
    weight[2, 7] = broken
    with pytest.raises(BadInput, match="a weight is NaN or infinite; repair the checkpoint"):
        quantize(weight)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_activations_that_overflowed_are_refused(broken, dtype) -> None:
    x = weights((3, 40), 0).to(dtype)
    x[1, 1] = broken
    with pytest.raises(BadInput, match="before a quantized layer; leave that layer in high precision"):
        schemes.quantize_activation(x, 1)


@pytest.mark.parametrize("group_size", [0, 1, 33, -32])
def test_impossible_groups_are_refused(group_size) -> None:
    with pytest.raises(BadInput, match=f"groups of {group_size}; choose an even group size"):
        schemes.quantize_int4(torch.ones(2, 64), group_size)

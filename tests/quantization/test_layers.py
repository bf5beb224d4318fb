"""QLinear and QConv2d against torch's own layers with the dequantized weights: quantization loss is not in question."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from optsd.errors import BadInput, Unsupported
from optsd.quantization import kernels
from optsd.quantization.layers import QConv2d, QLinear, quantize_layer
from optsd.quantization.schemes import Activation, quantize_activation

few = settings(max_examples=25, deadline=None)
both = pytest.mark.parametrize("bits", [8, 4])


def expected(layer: nn.Module, quantized: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the layer gives with the weights and activations that the integers stand for, in float64."""
    exact = copy.deepcopy(layer).double()
    exact.weight.data = quantized.weight.double()
    mode = getattr(layer, "padding_mode", "zeros")
    if mode != "zeros":
        x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        exact.padding, exact.padding_mode = 0, "zeros"
    if getattr(quantized, "is_pointwise", False):  # each pixel has a range of its own, as each token has
        seen = quantize_activation(x.movedim(1, -1), x.ndim - 1).dequantize().movedim(-1, 1)
    else:
        seen = quantize_activation(x, 1 if isinstance(layer, nn.Conv2d) else x.ndim - 1).dequantize()
    return exact(seen.double()).float()


def agree(layer: nn.Module, bits: int, x: torch.Tensor, kernel: str = "auto", group_size: int = 32) -> None:
    with torch.no_grad():
        quantized = quantize_layer(layer, bits, group_size, kernel)
        given_back, wanted = quantized(x), expected(layer, quantized, x)
    assert given_back.shape == wanted.shape
    assert given_back.dtype == x.dtype
    tolerance = 1e-4 if x.dtype == torch.float32 else 0.02
    assert (given_back.float() - wanted).abs().max() <= tolerance * (1 + wanted.abs().max())


@few
@given(
    bits=st.sampled_from([8, 4]),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    groups=st.sampled_from([1, 2, 3]),
    kernel_size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.one_of(st.just("valid"), st.tuples(st.integers(0, 3), st.integers(0, 3))),
    padding_mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_conv2d_carries_every_field(
    bits, channels, groups, kernel_size, stride, dilation, padding, padding_mode, bias, channels_last
) -> None:
    inputs, outputs = channels[0] * groups, channels[1] * groups
    layer = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
    x = torch.randn(2, inputs, 9, 8)
    agree(layer, bits, x.contiguous(memory_format=torch.channels_last) if channels_last else x)


@both
@pytest.mark.parametrize("kernel_size", [1, 2, 3, (2, 5)])
def test_conv2d_same_padding(bits, kernel_size) -> None:
    agree(nn.Conv2d(5, 7, kernel_size, padding="same", dilation=2), bits, torch.randn(1, 5, 11, 10))


@few
@given(
    st.sampled_from([(8, 0), (4, 2), (4, 6), (4, 32)]),
    st.integers(1, 70),
    st.integers(1, 20),
    st.lists(st.integers(1, 4), max_size=3),
)
def test_linear_serves_every_shape(bits_and_group, inputs, outputs, before) -> None:
    bits, group_size = bits_and_group
    agree(nn.Linear(inputs, outputs), bits, torch.randn(*before, inputs), group_size=group_size)


@both
@pytest.mark.parametrize("kernel", list(kernels.KERNELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_kernel_and_type(bits, kernel, dtype) -> None:
    if reason := kernels.KERNELS[kernel].refusal(torch.device("cpu"), bits, groups=1):
        pytest.skip(reason)
    agree(nn.Linear(64, 48), bits, torch.randn(3, 5, 64).to(dtype), kernel)
    agree(nn.Conv2d(32, 24, 3, padding=1, stride=2), bits, torch.randn(2, 32, 8, 8).to(dtype), kernel)


@both
@pytest.mark.parametrize("layer", [nn.Linear(64, 32), nn.Conv2d(8, 32, 3)])
def test_memory_shrinks_to_the_integers(bits, layer) -> None:
    quantized = quantize_layer(layer, bits, 32)
    buffers = {name: tensor.numel() * tensor.itemsize for name, tensor in quantized.named_buffers()}
    stored = buffers["values" if bits == 8 else "packed"]
    assert stored <= layer.weight.numel() * bits / 8 * (1 if bits == 8 else 96 / 72)  # INT4 pads 72 inputs to 96
    assert not list(quantized.parameters())


@both
def test_it_stands_in_for_the_layer_it_replaces(bits) -> None:
    layer = quantize_layer(nn.Linear(40, 24).to(torch.bfloat16), bits, 32)
    assert isinstance(layer, QLinear)
    assert (layer.in_features, layer.out_features, layer.weight.shape) == (40, 24, (24, 40))
    assert layer.weight.dtype == torch.bfloat16
    conv = quantize_layer(nn.Conv2d(4, 6, 3), bits, 32)
    assert isinstance(conv, QConv2d)
    assert (conv.in_channels, conv.out_channels, conv.weight.shape) == (4, 6, (6, 4, 3, 3))


@both
def test_moving_to_another_type_keeps_the_scales(bits) -> None:
    layer = quantize_layer(nn.Conv2d(4, 6, 3), bits, 32)
    before = layer.scale.clone()
    layer.to(torch.float16)
    assert torch.equal(layer.scale, before)
    assert layer.scale.dtype == layer.bias.dtype == torch.float32
    assert layer.weight.dtype == torch.float16


@both
def test_a_deep_copy_is_independent(bits) -> None:
    layer = quantize_layer(nn.Linear(40, 24), bits, 32)
    x = torch.randn(2, 40)
    clone = copy.deepcopy(layer)
    wanted = layer(x)
    layer.scale.zero_()
    assert torch.equal(clone(x), wanted)


def test_calls_are_counted() -> None:
    layer = quantize_layer(nn.Linear(4, 4), 8, 32)
    layer(torch.randn(2, 4))
    layer(torch.randn(2, 4))
    assert layer.kernel_calls == 2


CPU = torch.device("cpu")
KERNELS_HERE = [kernel for kernel in kernels.KERNELS.values() if not kernel.refusal(CPU, 8, 1)]


def int8_weights(kernel: kernels.Kernel, integers: torch.Tensor) -> kernels.Weights:
    """Scale 1 and no bias, so that what comes out is the integer sum itself."""
    sums = integers.sum(1, dtype=torch.int32)
    return kernels.Weights(kernel.pack(integers), torch.ones(len(integers)), sums, None)


def activation(kernel: kernels.Kernel, values: torch.Tensor, zero_point: torch.Tensor) -> Activation:
    """A share for each of the first dimension, of scales that are powers of two; integers as the kernel takes them."""
    scale = powers_of_two(len(values))
    if kernel.signed:
        return Activation(values, scale, zero_point)
    return Activation((values.int() + 128).to(torch.uint8), scale, zero_point + 128)


def powers_of_two(shares: int) -> torch.Tensor:
    """One scale in four, one in two and one whole, in turn: what is multiplied by them stays exact."""
    return 2.0 ** (torch.arange(shares) % 3 - 2)


def zero_points(shares: int, first: int) -> torch.Tensor:
    return ((torch.arange(shares) * 37 + first + 128) % 256 - 128).int()


def random_int8(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@few
@given(
    st.integers(1, 40),
    st.integers(1, 80),
    st.integers(1, 40),
    st.sampled_from([-128, -3, 0, 127]) | st.integers(-128, 127),
    st.integers(0, 99),
)
def test_kernels_give_the_reference_integers_in_linear(rows, inputs, outputs, zero_point, seed) -> None:
    x, integers = random_int8(rows, inputs, seed=seed), random_int8(outputs, inputs, seed=seed + 1)
    zeros = zero_points(rows, zero_point)
    wanted = ((x.long() - zeros[:, None]) @ integers.long().t()).float() * powers_of_two(rows)[:, None]
    for kernel in KERNELS_HERE:
        weights = int8_weights(kernel, integers)
        given_back = kernel.linear(activation(kernel, x, zeros), weights, torch.float32)
        assert torch.equal(given_back, wanted), kernel.name
        assert torch.equal(kernel.unpack(weights.integers, *integers.shape), integers), kernel.name


@few
@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    margins=st.tuples(*[st.integers(0, 2)] * 4),
    zero_point=st.sampled_from([-128, -3, 0, 127]) | st.integers(-128, 127),
    seed=st.integers(0, 99),
)
def test_kernels_give_the_reference_integers_in_conv2d(
    channels, kernel_size, stride, dilation, margins, zero_point, seed
) -> None:
    window = kernels.Window(kernel_size, stride, dilation, margins, 1)
    x, zeros = random_int8(2, channels[0], 7, 6, seed=seed), zero_points(2, zero_point)
    integers = random_int8(channels[1], kernel_size[0] * kernel_size[1] * channels[0], seed=seed + 1)
    padded = nn.functional.pad(x.double() - zeros[:, None, None, None], margins)
    filters = integers.double().unflatten(1, (*kernel_size, -1)).permute(0, 3, 1, 2)
    wanted = nn.functional.conv2d(padded, filters, stride=stride, dilation=dilation).float()
    wanted *= powers_of_two(2)[:, None, None, None]
    for kernel in KERNELS_HERE:
        weights = int8_weights(kernel, integers)
        given_back = kernel.conv2d(activation(kernel, x, zeros), weights, window, torch.float32)
        assert torch.equal(given_back, wanted), kernel.name
        assert torch.equal(kernel.unpack(weights.integers, *integers.shape), integers), kernel.name


def test_the_largest_sums_do_not_overflow() -> None:
    integers = torch.full((17, 23040), -128, dtype=torch.int8)  # SD's widest window: 2,560 channels of 3 × 3
    for kernel in KERNELS_HERE:
        for zero in (0, 127):
            x = activation(kernel, integers, torch.full((17,), zero, dtype=torch.int32))
            sums = kernel.linear(x, int8_weights(kernel, integers), torch.float32)
            assert (sums == ((128 + zero) * 128 * 23040 * powers_of_two(17))[:, None]).all(), kernel.name


def test_a_window_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(BadInput, match="a picture of 2×5, padding included, is smaller than .*; use a larger one"):
        quantize_layer(nn.Conv2d(3, 3, 3), 8, 32)(torch.randn(1, 3, 2, 5))


def test_unknown_kernel() -> None:
    with pytest.raises(BadInput, match="unknown kernel 'fast'; choose from auto, "):
        kernels.choose(torch.device("cpu"), "fast")


def test_a_kernel_that_cannot_run_there() -> None:
    with pytest.raises(Unsupported, match="kernel int_mm cannot run INT8 on meta: torch._int_mm does not run on meta"):
        kernels.choose(torch.device("meta"), "int_mm")
    with pytest.raises(Unsupported, match="kernel triton cannot run INT4 on cpu: .*; use auto"):
        kernels.choose(CPU, "triton", bits=4)


def test_layers_can_be_sent_to_another_process() -> None:
    layer = quantize_layer(nn.Linear(8, 8), 4, 4)
    x = torch.randn(1, 8)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("weights", ["inputs together", "outputs together"])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 8, 8), (16, 320, 64), (17, 77, 13), (100, 64, 3), (5, 9, 8)]
)
def test_cublas_gets_the_shapes_and_the_order_that_it_takes(rows, inputs, outputs, weights) -> None:
    left = torch.randint(-128, 128, (rows, inputs), dtype=torch.int8)
    right = torch.randint(-128, 128, (inputs, outputs), dtype=torch.int8)
    if weights == "inputs together":
        right = right.t().contiguous().t()
    first, second = kernels.for_cublas(left, right)
    assert len(first) > 17 or rows == len(first) == 17
    assert not first.shape[1] % 8
    assert not second.shape[1] % 8
    assert first.is_contiguous()
    assert second.t().is_contiguous()
    product = kernels.Reference().matmul(first, second)[:rows, :outputs]
    assert torch.equal(product, kernels.Reference().matmul(left, right))
    if weights == "inputs together" and not inputs % 8 and not outputs % 8:
        assert second.data_ptr() == right.data_ptr()  # no copy of the weights in every call


@pytest.mark.parametrize(("capability", "chosen"), [((7, 0), "reference"), ((7, 5), "int_mm"), ((8, 0), "triton")])
def test_the_kernel_that_a_gpu_gets(monkeypatch, capability, chosen) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.version.hip", None)
    gpu = torch.device("cuda")
    assert kernels.choose(gpu).name == chosen
    if capability < (8, 0):
        with pytest.raises(Unsupported, match="kernel triton cannot run INT8 on cuda: Triton multiplies integers from"):
            kernels.choose(gpu, "triton")


@both
def test_a_pointwise_convolution_is_a_linear_layer_of_pixels(bits) -> None:
    """One pixel of a thousand times the others' size costs these nothing."""
    layer = nn.Conv2d(32, 16, 1)
    x = torch.randn(1, 32, 4, 4)
    x[..., 0, 0] *= 1000
    quantized = quantize_layer(layer, bits, 32)
    twin = nn.Linear(32, 16)
    twin.load_state_dict({"weight": layer.weight.data.flatten(1), "bias": layer.bias.data})
    linear = quantize_layer(twin, bits, 32)
    with torch.no_grad():
        found = quantized(x)
        assert torch.equal(found, linear(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2))
        apart = (found - layer(x))[..., 1:, :].norm() / layer(x)[..., 1:, :].norm()
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert apart < (0.02 if bits == 8 else 0.2)

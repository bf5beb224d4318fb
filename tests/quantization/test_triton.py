"""The GPU's kernel in Triton's interpreter, on the CPU, against exact integers; on a GPU where there is one."""

from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

from optsd.quantization import blocks, kernels, quantizing, schemes
from optsd.quantization.schemes import Activation

triton = pytest.importorskip("triton")
if (
    not torch.cuda.is_available()
    and Version(version("triton")) < Version("3.7")
    and Version(version("numpy")) >= Version("2.4")
):
    pytest.skip("the interpreter of Triton before 3.7 does not run with NumPy 2.4", allow_module_level=True)


WINDOWS = {
    "3x3": kernels.Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
    "uneven": kernels.Window((2, 3), (2, 1), (1, 2), (0, 2, 1, 0), 1),
    "1x1": kernels.Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1),
}


def random_int8(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=list(WINDOWS))
@pytest.mark.parametrize(("inputs", "outputs"), [(70, 66), (5, 3)])
@pytest.mark.parametrize("zero_point", [-128, 5])
def test_conv2d_equals_the_reference(window, inputs, outputs, zero_point, device) -> None:
    integers = random_int8(outputs, window.kernel_size[0] * window.kernel_size[1] * inputs).to(device)
    image = Activation(
        random_int8(2, inputs, 6, 5).to(device),
        torch.tensor([1.0, 0.5], device=device),
        torch.tensor([zero_point, zero_point + 9], dtype=torch.int32, device=device),
    )
    sums = integers.sum(1, dtype=torch.int32)
    weights = kernels.Weights(integers, torch.ones(outputs, device=device), sums, None)
    wanted = kernels.Reference().conv2d(image, weights, window, torch.float32)
    given_back = kernels.Triton().conv2d(image, weights, window, torch.float32)
    assert torch.equal(given_back, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_linear_scales_and_adds_the_bias(dtype, device) -> None:
    rows = Activation(
        random_int8(70, 40).to(device),
        torch.rand(70, device=device) / 50,
        torch.randint(-128, 128, (70,), dtype=torch.int32, device=device),
    )
    integers, scale = random_int8(24, 40).to(device), torch.rand(24, device=device) / 100
    weights = kernels.Weights(integers, scale, integers.sum(1, dtype=torch.int32), torch.randn(24, device=device))
    wanted = kernels.Reference().linear(rows, weights, torch.float32)
    given_back = kernels.Triton().linear(rows, weights, dtype)
    assert given_back.shape == wanted.shape
    assert given_back.dtype == dtype
    assert torch.allclose(given_back.float(), wanted, atol=1e-5 if dtype == torch.float32 else 0.01)


def test_it_is_refused_on_the_cpu() -> None:
    assert kernels.Triton().refusal(torch.device("cpu"), 8, 1) == "Triton does not run on cpu"


def reference(x: torch.Tensor, dimensions: int) -> Activation:
    """What `schemes.quantize_activation` computes on a GPU."""
    within = tuple(range(dimensions, x.ndim))
    lowest, highest = x.amin(within, keepdim=True).clamp(max=0), x.amax(within, keepdim=True).clamp(min=0)
    scale = ((highest.float() - lowest.float()) * (1 / schemes.STEPS)).clamp(min=schemes.SMALLEST_SCALE)
    zero_point = torch.ceil(-lowest.float() / scale) - 128
    values = torch.round(x.float() / scale + zero_point).clamp_(-128, 127).to(torch.int8)
    return Activation(values, scale.flatten(), zero_point.flatten().to(torch.int32))


def quantized(x: torch.Tensor, dimensions: int) -> Activation:
    return quantizing.pictures(x) if (x.ndim, dimensions) == (4, 1) else quantizing.rows(x, dimensions)


LAID = {
    "as it is": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "holes": lambda x: torch.stack([x, x], -1)[..., 0],
    "turned": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "dimensions", "laid"),
    [
        *(((3, 11, 77), 2, laid) for laid in ("as it is", "holes", "turned")),
        *(((3, 5, 7, 9), 1, laid) for laid in LAID),
        ((2, 16, 40, 40), 1, "channels last"),  # in parts
        pytest.param((2, 16, 40, 40), 1, "as it is", marks=pytest.mark.whole),
        ((3, 5, 7, 9), 3, "channels last"),
        ((2, 1), 1, "as it is"),
        ((0, 8), 1, "as it is"),
    ],
)
def test_quantizing_gives_the_integers_of_the_reference(shape, dimensions, laid, dtype, device) -> None:
    x = LAID[laid](torch.randn(shape).to(device, dtype) * 3 + 0.5)
    found, wanted = quantized(x, dimensions), reference(x, dimensions)
    for ours, theirs in (
        (found.values, wanted.values),
        (found.scale, wanted.scale),
        (found.zero_point, wanted.zero_point),
    ):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    if (x.ndim, dimensions) == (4, 1):
        assert found.values.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("length", [64, 20_000])
@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_what_is_no_number_spoils_its_own_share_alone(length, strange, device) -> None:
    x = torch.randn(3, length, device=device)
    x[1, 5] = strange
    x[2] = 0
    found = quantized(x, 1)
    assert found.scale.isfinite().tolist() == [True, False, True]
    assert torch.equal(found.values[0], reference(x[:1], 1).values[0])
    assert found.scale[2] == schemes.SMALLEST_SCALE
    assert (found.values[2] == found.zero_point[2]).all()


def test_a_range_that_one_part_alone_holds_is_that_of_the_whole(device) -> None:
    for place in (0, blocks.NUMBERS - 1, blocks.NUMBERS, 3 * blocks.NUMBERS - 1):
        x = torch.zeros(1, 3 * blocks.NUMBERS, device=device)
        x[0, place] = -7.0
        x = x.view(1, 12, 32, 32)
        assert torch.equal(quantized(x, 1).scale, reference(x, 1).scale), place


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["linear", *WINDOWS])
def test_a_whole_layer_on_the_kernels(name, bits, device) -> None:
    """Rows and pictures by their own ranges, with their border, through all kernels, against exact integers."""
    window, channels, outputs = WINDOWS.get(name), 9, 70
    inputs = channels * (window.kernel_size[0] * window.kernel_size[1] if window else 1)
    x = torch.randn((2, channels, 6, 5) if window else (2, 3, channels), device=device)
    matrix, bias = torch.randn(outputs, inputs, device=device), torch.randn(outputs, device=device)
    if bits == 8:
        whole = schemes.quantize_int8(matrix)
        integers, packed, multipliers = whole.values, whole.values, None
    else:
        whole = schemes.quantize_int4(matrix, 4)  # the last group is filled up
        integers, packed, multipliers = whole.unpack()[:inputs].t(), whole.packed, whole.multipliers
    sums = integers.sum(1, dtype=torch.int32)
    found = kernels.Triton().layer(x, kernels.Weights(packed, whole.scale, sums, bias, multipliers), window)
    activation, plain = reference(x, 1 if window else 2), kernels.Weights(integers, whole.scale, sums, bias)
    exact = kernels.Reference()
    wanted = (
        exact.conv2d(activation, plain, window, x.dtype)
        if window
        else exact.linear(activation.as_rows(), plain, x.dtype).view(2, 3, -1)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("linear", (2, 3, 70)),
        ("3x3", (2, 70, 6, 5)),
        ("3x3", (2, 70, 1, 1)),
        ("3x3", (1, 70, 1, 1)),
        ("uneven", (2, 70, 1, 1)),
    ],
)
def test_a_sum_in_the_product_is_one_after_it(name, shape, dtype, device) -> None:
    """To the bit: the product is rounded first. What is added may be a number a picture and output."""
    window, channels = WINDOWS.get(name), 9
    inputs = channels * (window.kernel_size[0] * window.kernel_size[1] if window else 1)
    x = torch.randn((2, channels, 6, 5) if window else (2, 3, channels)).to(device, dtype)
    whole = schemes.quantize_int8(torch.randn(70, inputs, device=device))
    sums = whole.values.sum(1, dtype=torch.int32)
    weights = kernels.Weights(whole.values, whole.scale, sums, torch.randn(70, device=device))
    plus = torch.randn(shape).to(device, dtype)
    found = kernels.Triton().layer(x, weights, window, plus=plus)
    assert torch.equal(found, kernels.Triton().layer(x, weights, window) + plus)

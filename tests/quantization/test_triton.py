"""The GPU's kernel in Triton's interpreter, on the CPU, against exact integers; on a GPU where there is one."""

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

from optsd import quantization
from optsd.quantization import kernels
from optsd.quantization.schemes import Activation

triton = pytest.importorskip("triton")
if (
    not torch.cuda.is_available()
    and Version(version("triton")) < Version("3.7")
    and Version(version("numpy")) >= Version("2.4")
):
    pytest.skip("the interpreter of Triton before 3.7 does not run with NumPy 2.4", allow_module_level=True)
MODULE = "optsd.quantization.triton_kernels"


@pytest.fixture
def device(monkeypatch) -> Iterator[str]:
    """Where the kernel runs: interpreted, unless there is a GPU."""
    if torch.cuda.is_available():
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(
        sys.modules["optsd.quantization"], "triton_kernels", importlib.import_module(MODULE), raising=False
    )
    yield "cpu"
    del sys.modules[MODULE], quantization.triton_kernels


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

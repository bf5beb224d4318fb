"""Launching again what was compiled, with a stand-in for Triton's kernel and for the GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optsd.quantization.launches import Launch


class Kernel:
    """Notes how it is launched."""

    def __init__(self) -> None:
        self.compiled: list[Any] = []
        self.again: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*given: Any, **options: int) -> Any:
            self.compiled.append((grid, given, options))
            return SimpleNamespace(
                run=lambda *given: self.again.append(given), function="function", packed_metadata="packed"
            )

        return launch


@pytest.fixture
def gpu(monkeypatch) -> Any:
    """The current one's number, which a test may change."""
    triton = pytest.importorskip("triton")
    current = SimpleNamespace(number=-1)  # what a tensor on the CPU says that it is on
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current.number, raising=False)
    driver = SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda device: f"stream of {device}"))
    monkeypatch.setattr(triton.runtime, "driver", driver)
    return current


def test_from_the_second_time_on_what_was_compiled_is_launched_at_the_tensors_addresses(gpu) -> None:
    kernel, x, y = Kernel(), torch.zeros(64), torch.zeros(64)
    launch = Launch(kernel, (3, 2), 7, True, num_warps=4)
    launch(x, y)
    assert kernel.compiled == [((3, 2), (x, y, 7, True), {"num_warps": 4})]
    launch(y, x)
    (called,) = kernel.again
    assert called[:3] == (3, 2, 1)
    assert called[3:9] == ("stream of -1", "function", "packed", None, None, None)
    assert called[9:] == (y.data_ptr(), x.data_ptr(), 7, True)
    assert len(kernel.compiled) == 1


def test_another_alignment_or_another_gpu_is_left_to_triton(gpu) -> None:
    """It compiles another kernel for addresses between sixteens, and a kernel is loaded on one GPU."""
    kernel, x = Kernel(), torch.zeros(64)
    launch = Launch(kernel, (1,))
    launch(x[1:])
    launch(x[1:])
    assert (len(kernel.compiled), kernel.again) == (2, [])
    launch(x)
    launch(x[4:])
    assert (len(kernel.compiled), len(kernel.again)) == (3, 1)
    launch(x[1:])
    gpu.number = 1
    launch(x)
    assert (len(kernel.compiled), len(kernel.again)) == (5, 1)


def test_an_interpreter_compiles_nothing(gpu) -> None:
    class Interpreted(Kernel):
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *given: self.compiled.append(given)

    kernel, x = Interpreted(), torch.zeros(64)
    launch = Launch(kernel, (1,))
    launch(x)
    launch(x)
    assert len(kernel.compiled) == 2

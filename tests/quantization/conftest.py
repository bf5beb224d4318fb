"""Where the GPU's kernels run in the tests."""

import importlib
import sys
from collections.abc import Iterator

import pytest
import torch

from optsd import quantization
from optsd.quantization import operators

MODULES = ("triton_kernels", "triton_quantize", "triton_between")


@pytest.fixture
def device(monkeypatch) -> Iterator[str]:
    """A GPU where there is one; else the CPU, with kernels that Triton interprets."""
    if torch.cuda.is_available():
        yield "cuda"
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    _forget()
    for name in MODULES:
        importlib.import_module(f"optsd.quantization.{name}")
    yield "cpu"
    _forget()


def _forget() -> None:
    """Whoever imports a kernel next gets it as the environment then says: compiled, or interpreted."""
    operators.compiled.cache_clear()
    for name in MODULES:
        sys.modules.pop(f"optsd.quantization.{name}", None)
        vars(quantization).pop(name, None)

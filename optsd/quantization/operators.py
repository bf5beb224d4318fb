"""How the GPU's kernels become operators of torch: an estimate, a compiler and a profile know them by name and shape.

An operator is one kernel, so that counting operators counts launches. Where nobody follows, the kernel is called
directly: torch's dispatcher takes as long as a small layer.
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from optsd.errors import Unsupported

_LIBRARY = torch.library.Library("optsd", "FRAGMENT")


def operator(schema: str, empty: Callable[..., Any] | None) -> Callable[[Callable], Callable]:
    """Make the function, whose first argument is a tensor on a GPU, an operator; what is returned calls it.

    `empty` gives the shapes of its results; None of one that the CPU's kernels have defined.
    """
    name = schema.partition("(")[0]

    def register(function: Callable) -> Callable:
        if empty is not None:
            _LIBRARY.define(schema)
            torch.library.register_fake(f"optsd::{name}", empty, lib=_LIBRARY)
            torch.library.register_autograd(f"optsd::{name}", _no_backward, lib=_LIBRARY)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd" if empty else "CUDA")
        through = getattr(torch.ops.optsd, name)

        def call(x: Tensor, *others: Any) -> Any:
            return (through if is_followed(x, *others) else function)(x, *others)

        return call

    return register


@functools.cache
def compiled(name: str) -> ModuleType:
    """A module of Triton's kernels, which not every machine has. To say `import` in every call takes a microsecond."""
    return importlib.import_module(f"optsd.quantization.{name}")


def _no_backward(*_: Any) -> None:
    # torch would go on without a gradient, and warn.
    raise Unsupported("the GPU's own kernels have no backward pass", "train without quantization")


def is_followed(x: Tensor, *others: Any) -> bool:
    """Whether somebody looks at which operators run: a trace, a compiler, a profile, automatic differentiation."""
    return (
        type(x) is not Tensor
        or (torch.is_grad_enabled() and any(getattr(each, "requires_grad", False) for each in (x, *others)))
        or torch.compiler.is_compiling()
        or torch.autograd._profiler_enabled()
        or torch._C._len_torch_dispatch_stack() > 0
    )

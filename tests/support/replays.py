"""A recorder of steps that needs no GPU: what torch's operators did is kept, and done again to the same memory."""

import dataclasses
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optsd.optimizations.compile import Compile
from optsd.optimizations.graph import Graph

EXECUTED = ("compile", "graph")
"""Techniques that read a network before they run it."""


def executed_here(step: Any) -> Any:
    """The technique as it can be on any machine, within seconds."""
    if isinstance(step, Compile):
        return dataclasses.replace(step, backend="eager")
    return dataclasses.replace(step, recorder=Replays) if isinstance(step, Graph) else step


class Replays:
    """As CUDA's graphs: no Python runs again, memory is read and written where it lay, no number may be looked at."""

    def record(self, run: Any, device: torch.device) -> tuple[Any, Any]:
        with _Noted() as noted:
            result = run()
        return noted.replay, result


class _Noted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator is torch.ops.aten._local_scalar_dense.default:  # of `.item()` and `if tensor:`
            raise RuntimeError("operation not permitted when stream is capturing")
        result = operator(*args, **(kwargs or {}))
        read = {_memory(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        self.done.append((operator, args, kwargs or {}, [each if _memory(each) not in read else None for each in made]))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for operator, args, kwargs, places in self.done:
            again = [each for each in tree_leaves(operator(*args, **kwargs)) if isinstance(each, torch.Tensor)]
            for place, value in zip(places, again, strict=True):
                if place is not None:  # a view shows what its base holds, and what is written in place is there
                    place.copy_(value)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata

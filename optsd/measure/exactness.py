"""Is what calls itself exact as near to the truth as what it replaces? The truth is the same network in float64.

A fixed tolerance is too wide for one network and too narrow for another. So a technique's error is told as a ratio to
the plain network's own, both against float64 on the same inputs (after SGLang-Diffusion's rule); and
whether it errs to one side, and whether a number that is none goes where it goes without the technique.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from optsd import anatomy
from optsd.errors import OptsdError

MOST = 1.5
"""How many times the plain network's error one that is exact may have."""


@dataclass(frozen=True)
class Exactness:
    """Of one call of the denoiser. `plain`, `ours`: ‖output − float64's‖ ÷ ‖float64's‖."""

    plain: float
    ours: float
    bias: float  # |mean of our errors| ÷ their root mean square: 0 where they cancel, 1 where all are to one side
    nan_alike: bool  # whether a NaN in one picture's latents leaves the same numbers finite, or is refused

    @property
    def ratio(self) -> float:
        if self.plain:
            return self.ours / self.plain
        return 1.0 if self.ours == 0 else float("inf")

    @property
    def holds(self) -> bool:
        return self.ratio <= MOST and self.nan_alike


def exactness(plain: Any, ours: Any, run_plain: Callable[[], object]) -> Exactness:
    """Compare two pipelines' denoisers on the inputs of the first call that `run_plain` makes. Both have one model."""
    with _first_call(anatomy.denoiser(plain)) as call:
        run_plain()
    args, kwargs = call
    in_doubles = copy.deepcopy(anatomy.denoiser(plain)).double()
    truth = _output(in_doubles, *_pytree.tree_map(_doubled, (args, kwargs)))
    del in_doubles
    networks = [anatomy.denoiser(pipe) for pipe in (plain, ours)]
    errors = [_output(network, args, kwargs).double() - truth for network in networks]
    spoiled = _pytree.tree_map(_spoiler(), (args, kwargs))
    try:
        finite = [_output(network, *spoiled).isfinite() for network in networks]
    except OptsdError:  # it refuses what is no number, which is never silent
        finite = []
    size, root = float(truth.norm()), float(errors[1].square().mean().sqrt())
    return Exactness(
        plain=float(errors[0].norm()) / size,
        ours=float(errors[1].norm()) / size,
        bias=abs(float(errors[1].mean())) / root if root else 0.0,
        nan_alike=not finite or torch.equal(*finite),
    )


@contextmanager
def _first_call(network: nn.Module) -> Iterator[list[Any]]:
    """The arguments of the first call meanwhile, by position and by name."""
    found: list[Any] = []

    def hear(_: nn.Module, args: Any, kwargs: Any) -> None:
        if not found:
            found.extend(_pytree.tree_map(_copied, (args, kwargs)))

    handle = network.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def _output(network: nn.Module, args: Any, kwargs: Any) -> Tensor:
    return network(*_pytree.tree_map(_copied, args), **_pytree.tree_map(_copied, kwargs))[0]


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _spoiler() -> Callable[[Any], Any]:
    """Puts a NaN into the first tensor of numbers that it meets, the latents: into the last picture."""
    done = False

    def spoil(value: Any) -> Any:
        nonlocal done
        if done or not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 3:
            return value
        done = True
        value = value.clone()
        value[-1].view(-1)[0] = float("nan")
        return value

    return spoil

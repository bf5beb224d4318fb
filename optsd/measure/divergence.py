"""Where two pipelines that should draw the same picture first part by more than rounding: network, step, layer.

What rounding does is measured, not assumed: the first pipeline runs a second time with every layer's output changed at
random by half a unit in its last place (Parker, "Monte Carlo Arithmetic", 1997). Where the other pipeline is `FACTOR`
times as far away as that run, at the same place of the same step, it computes something else.

Two passes, so that the activations of one call are held and not those of the whole run: one looks at what each
network gives in each call, the next into the first call that parts.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optsd import anatomy

FACTOR = 10.0
"""Two orders of summing differ by a few times what one rounding does; a mistake by orders of magnitude."""

Call = tuple[str, int]  # a network's name, and which of its calls: of the denoiser, the step
Key = tuple[str, int, str, int]  # network, call, module, occurrence in that call
Run = Callable[[], object]


@dataclass(frozen=True)
class Point:
    """What one module gave in one call of its network."""

    network: str  # "text_encoder", "unet", "vae"
    call: int  # from 1; of the denoiser it is the step
    module: str  # inside the network; "" for the network itself
    error: float  # of B: ‖b − a‖ ÷ ‖a‖
    rounding: float  # the same of A, rounded otherwise

    @property
    def parts(self) -> bool:
        """Whether it is more than rounding. NaN on one side alone is."""
        return not self.error <= FACTOR * self.rounding

    @property
    def place(self) -> str:
        return f"{self.network}.{self.module}" if self.module else self.network


@dataclass(frozen=True)
class Divergence:
    """`course`: what each network gave in each call, in order. `first`: the layer, block or network that parts."""

    course: tuple[Point, ...]
    first: Point | None


def diverge(a: Any, b: Any, run_a: Run, run_b: Run) -> Divergence:
    """Compare pipelines A and B, of the same architecture, that `run_a` and `run_b` let draw the same picture."""
    course = _compare(a, b, run_a, run_b, lambda network, call, module: module in _TOPS)
    parting = next((point for point in course if point.parts), None)
    if parting is None:
        return Divergence(course, None)
    inside = _compare(
        a, b, run_a, run_b, lambda network, call, module: (network, call) == (parting.network, parting.call)
    )
    return Divergence(course, next((point for point in inside if point.parts), parting))


_TOPS = ("", "decoder", "encoder")
"""A network itself; of a VAE, whose `decode` is no call of the whole, its half."""


def _compare(a: Any, b: Any, run_a: Run, run_b: Run, wanted: Callable[[str, int, str], bool]) -> tuple[Point, ...]:
    kept: dict[Key, Tensor] = {}
    errors: list[dict[Key, float]] = []

    def keep(key: Key, value: Tensor) -> None:
        kept[key] = value.detach().to("cpu", copy=True)

    def measure(key: Key, value: Tensor) -> None:
        if key in kept and kept[key].shape == value.shape:
            errors[-1][key] = _error(kept[key], value)

    with _listening(a, wanted, keep):
        run_a()
    for pipe, run, jittered in ((a, run_a, True), (b, run_b, False)):
        errors.append({})
        with _jittered(pipe) if jittered else _as_it_is(), _listening(pipe, wanted, measure):
            run()
    rounding, other = errors
    return tuple(
        Point(*key[:3], other[key], max(rounding[key], torch.finfo(kept[key].dtype).eps))
        for key in kept
        if key in other and key in rounding
    )


def _error(reference: Tensor, value: Tensor) -> float:
    """‖value − reference‖ ÷ ‖reference‖; 0 where both are the same, NaN included; infinite where one alone is NaN."""
    one, other = reference.double(), value.detach().cpu().double()
    if torch.equal(one.isfinite(), other.isfinite()):
        one, other = one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0)
        distance, size = float((other - one).norm()), float(one.norm())
        return distance / size if size else (0.0 if distance == 0 else float("inf"))
    return float("inf")


@contextmanager
def _listening(
    pipe: Any, wanted: Callable[[str, int, str], bool], hear: Callable[[Key, Tensor], None]
) -> Iterator[None]:
    """Hear what every wanted module gives, when it gives it: a layer before the block that it is in."""
    calls: Counter[str] = Counter()
    seen: Counter[tuple[str, int, str]] = Counter()
    handles = []

    def begins(network: str) -> Callable[..., None]:
        return lambda *_: calls.update([network])

    def gives(network: str, module: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            place = network, max(calls[network], 1), module
            value = _tensor(output)
            if value is not None and wanted(*place):
                hear((*place, seen[place]), value)
                seen[place] += 1

        return hook

    try:
        for network, root in anatomy.networks(pipe).items():
            handles.append(root.register_forward_pre_hook(begins(network)))
            for name, module in root.named_modules():
                handles.append(module.register_forward_hook(gives(network, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _jittered(pipe: Any) -> Iterator[None]:
    """Every layer's output off by up to half a unit in the last place, at random and the same each time."""
    generator = torch.Generator().manual_seed(0)

    def jitter(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        noise = torch.rand(output.shape, generator=generator, dtype=torch.float32).to(output.device) - 0.5
        return (output.float() * (1 + torch.finfo(output.dtype).eps * noise)).to(output.dtype)

    leaves = [part for root in anatomy.networks(pipe).values() for part in root.modules() if not [*part.children()]]
    handles = [leaf.register_forward_hook(jitter) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def _tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor of what a module gives."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, tuple | list) else ()
    return next((found for part in parts if (found := _tensor(part)) is not None), None)

"""Mixed precision for the search: what each kind of layer costs, and the few mixtures that this makes worth a try.

Not all mixtures are tried: each kind of layer is quantized alone and the denoiser's output compared with what it was,
on the inputs of a few steps. Squared errors are taken to add up, so those of every mixture follow, and from them which
mixture is the cheapest that loses no more than a given one. What is proposed is searched as any other candidate is.
Imports no torch until something is measured.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from optsd.errors import OptsdError, Unsupported
from optsd.quantization.rules import BITS, Rule, spelled, usual
from optsd.records import Workload
from optsd.tune.journal import Journal

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 3
"""Of one picture, on whose inputs errors are measured."""
SHARE = 0.1
"""Of the time of a search that this may take."""
FEWER = 0.5
"""A mixture for speed is to lose at most so much of the squared error of int8: less would be int8 itself."""


@dataclass(frozen=True)
class Kind:
    """The layers of the denoiser that a pattern matches, and what comes of quantizing them alone.

    `errors`, by precision: ‖output − what it was‖ ÷ ‖what it was‖.
    """

    pattern: str
    layers: int
    weights: int
    multiplications: int  # of the steps that were looked at
    errors: dict[str, float]


@dataclass(frozen=True)
class Mixture:
    """`error`: what its kinds' errors make it expect. `why`: what it is the cheapest of."""

    name: str
    error: float
    why: str


@dataclass(frozen=True)
class Proposed:
    """`why_none`: why nothing was measured."""

    kinds: tuple[Kind, ...] = ()
    mixtures: tuple[Mixture, ...] = ()
    why_none: str = ""


def proposed(
    pipe: Any, workload: Workload, prompts: list[str], goal: str, budget_s: float, journal: Journal
) -> Proposed:
    """What is proposed for this pipeline, which is afterwards as it was. Of a search that goes on: from its journal."""
    try:
        rows = journal.reading(
            ["kinds of layers"], lambda: [asdict(kind) for kind in measured(pipe, workload, prompts, budget_s)]
        )
    except (OptsdError, RuntimeError) as error:  # too long, unsupported, out of memory: the search goes on without
        said = error.problem if isinstance(error, OptsdError) else f"{type(error).__name__}: {error}"
        return Proposed(why_none=said.split("\n")[0][:200])
    kinds = tuple(Kind(**row) for row in rows)
    float_bits = 32 if workload.dtype == "float32" else 16
    return Proposed(kinds, tuple(mixtures(kinds, goal, float_bits)))


def mixtures(kinds: Sequence[Kind], goal: str, float_bits: int) -> list[Mixture]:
    """The mixtures worth a try. `float_bits`: of a weight that is not quantized.

    For speed: int8 but for the layers that lose most, as int4 multiplies no faster. For memory: int4 where that loses
    least, int8 or float elsewhere.
    """
    if len(kinds) < 2:
        return []
    whole = {name: math.sqrt(sum(kind.errors[name] ** 2 for kind in kinds)) for name in BITS}
    if goal == "speed":
        limit = math.sqrt(FEWER) * whole["int8"]
        wanted = [(limit, f"the fewest multiplications in float that lose {limit:.2g} at most")]
        costs = [{"float": kind.multiplications, "int8": 0} for kind in kinds]
    else:
        half = math.sqrt(whole["int8"] * whole["int4"])
        wanted = [
            (whole["int8"], f"the smallest that loses no more than int8, {whole['int8']:.2g}"),
            (half, f"the smallest that loses {half:.2g} at most, half-way from int8 to int4"),
        ]
        widths = {"float": float_bits, **BITS}
        costs = [{name: bits * kind.weights for name, bits in widths.items()} for kind in kinds]
    choices = [*costs[0]]
    # All mixtures, one a column: there are 3 to the power of some ten at most.
    taken = np.indices((len(choices),) * len(kinds)).reshape(len(kinds), -1)
    row = np.arange(len(kinds))[:, None]
    squares = np.array([[kind.errors.get(name, 0.0) ** 2 for name in choices] for kind in kinds])[row, taken].sum(0)
    cost = np.array([[each[name] for name in choices] for each in costs])[row, taken].sum(0)
    found: dict[str, Mixture] = {}
    for limit, why in wanted:
        fits = np.flatnonzero(squares <= limit**2 * (1 + 1e-9))
        best = fits[np.lexsort((squares[fits], cost[fits]))[0]]  # all in float fits whatever the limit
        name = _name(kinds, [choices[one] for one in taken[:, best]])
        if ":" in name:
            found.setdefault(name, Mixture(name, math.sqrt(squares[best]), why))
    return [*found.values()]


def _name(kinds: Sequence[Kind], precisions: list[str]) -> str:
    """The shortest: with rules for the kinds that have another precision than most. Empty: nothing is quantized."""

    def having(precision: str) -> tuple[int, int]:
        found = [kind.weights for kind, given in zip(kinds, precisions, strict=True) if given == precision]
        return len(found), sum(found)

    base = max(BITS, key=having)
    given = zip([kind.pattern for kind in kinds], precisions, strict=True)
    others = [Rule(pattern, precision) for pattern, precision in given if precision != usual(pattern, base)]
    return spelled(base, sorted(others)) if base in precisions else ""


def measured(pipe: Any, workload: Workload, prompts: list[str], budget_s: float) -> list[Kind]:
    """What each kind of layer costs in this pipeline, which is afterwards as it was.

    Raises Unsupported where that would take longer than the budget, and as the quantized layers do.
    """
    from optsd import anatomy
    from optsd.quantization.convert import KEPT, convertible

    denoiser = anatomy.denoiser(pipe)
    layers, _ = convertible(denoiser, KEPT)
    by_kind = _by_kind(list(layers))
    began = time.monotonic()

    def check(more_s: float = 0.0) -> None:
        if time.monotonic() - began + more_s > budget_s:
            raise Unsupported(
                f"measuring what each kind of layer costs takes more than {budget_s:.3g} s", "give it more time"
            )

    calls, multiplications = _recorded(pipe, denoiser, layers, workload, prompts, check)
    before = time.monotonic()
    _error(denoiser, calls)
    once_s, left = time.monotonic() - before, len(by_kind) * len(BITS)
    found = []
    for pattern, names in by_kind.items():
        errors = {}
        for precision, bits in BITS.items():
            check(left * once_s)
            with quantized(denoiser, {name: layers[name] for name in names}, bits):
                errors[precision] = _error(denoiser, calls)
            left -= 1
        weights = sum(layers[name].weight.numel() for name in names)
        found.append(Kind(pattern, len(names), weights, sum(multiplications[name] for name in names), errors))
    return found


@contextmanager
def quantized(module: Any, layers: dict[str, Any], bits: int) -> Iterator[None]:
    """Quantized layers in place of some of a module's own, which come back afterwards."""
    from optsd.quantization.layers import quantize_layer

    def put(new: dict[Any, Any]) -> None:
        for parent in list(module.modules()):
            for attribute, child in list(parent._modules.items()):
                if child in new:
                    parent._modules[attribute] = new[child]

    made = {layer: quantize_layer(layer, bits, 32) for layer in layers.values()}
    put(made)
    try:
        yield
    finally:
        put({new: old for old, new in made.items()})


def _by_kind(layers: list[str]) -> dict[str, list[str]]:
    """Layers by the first pattern of `anatomy.KINDS` that matches them; a pattern that matches none is left out."""
    from optsd import anatomy

    found: dict[str, list[str]] = {pattern: [] for pattern in anatomy.KINDS.values()}
    for layer in layers:
        if pattern := next((pattern for pattern in found if fnmatchcase(layer, pattern)), None):
            found[pattern].append(layer)
    return {pattern: names for pattern, names in found.items() if names}


def _recorded(
    pipe: Any,
    denoiser: Any,
    layers: dict[str, Any],
    workload: Workload,
    prompts: list[str],
    check: Callable[[], None],
) -> tuple[list[tuple[Any, Any, "Tensor"]], dict[str, int]]:
    """The denoiser's calls in a few steps of one picture, with their outputs, and how often each layer multiplies."""
    from optsd.measure.run import run_batch

    calls: list[tuple[Any, Any, Tensor]] = []
    counted = dict.fromkeys(layers, 0)

    def called(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((args, kwargs, output[0]))
        check()

    def count(name: str) -> Any:
        def computed(layer: Any, args: Any, output: Any) -> None:
            counted[name] += output.numel() * layer.weight[0].numel()

        return computed

    hooks = [layer.register_forward_hook(count(name)) for name, layer in layers.items()]
    hooks.append(denoiser.register_forward_hook(called, with_kwargs=True))
    try:
        run_batch(pipe, replace(workload, steps=STEPS, batch_size=1), prompts[:1], output_type="latent")
    finally:
        for hook in hooks:
            hook.remove()
    return calls, counted


def _error(denoiser: Any, calls: list[tuple[Any, Any, "Tensor"]]) -> float:
    import torch

    wrong = whole = 0.0
    with torch.no_grad():
        for args, kwargs, output in calls:
            now = denoiser(*args, **kwargs)[0]
            wrong += (now.double() - output.double()).square().sum().item()
            whole += output.double().square().sum().item()
    if not 0 < whole < math.inf or not wrong < math.inf:
        raise Unsupported("the denoiser's output is zero or not finite: no error can be told", "mend the model")
    return math.sqrt(wrong / whole)

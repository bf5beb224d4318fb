"""The ledger of a traced variant: what it computes, moves and holds, by module and operator."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from optsd.ledger import BETWEEN, WEIGHT, Entry, Ledger, What

if TYPE_CHECKING:
    from optsd.estimate import Estimate
    from optsd.estimate.trace import Allocation


def of_estimate(estimate: "Estimate") -> Ledger:
    """The ledger of a traced variant, all steps of its workload counted."""
    runs: Counter[tuple[str, str, str]] = Counter()
    flops: Counter[tuple[str, str, str]] = Counter()
    sizes: Counter[tuple[str, str, str]] = Counter()
    for one in estimate.operations:
        key, times = (one.module or BETWEEN, one.name, one.precision), estimate.times(one)
        runs[key] += times
        flops[key] += times * round(one.flops)
        sizes[key] += times * one.moved_bytes
    peak = estimate.peak
    entries = [
        *(Entry("runs", *key, number, flops[key], sizes[key]) for key, number in runs.items()),
        *(Entry("weights", name, WEIGHT, "", 1, 0, size) for name, size in estimate.weight_bytes.items() if size),
        *(Entry("peak", name, WEIGHT, "", 1, 0, size) for name, size in peak.weights.items() if size),
        *_held("peak", peak.activations),
        *_held("kept", estimate.kept),
    ]
    return Ledger(tuple(sorted(entries)))


def _held(what: What, allocations: "Iterable[Allocation]") -> list[Entry]:
    numbers: Counter[tuple[str, str, str]] = Counter()
    sizes: Counter[tuple[str, str, str]] = Counter()
    for one in allocations:
        key = (one.module or BETWEEN, one.operation, one.dtype)
        numbers[key] += 1
        sizes[key] += one.size
    return [Entry(what, *key, number, 0, sizes[key]) for key, number in numbers.items()]

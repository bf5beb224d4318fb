"""The least time that traced operations can take: each at the device's peak arithmetic or memory rate, the slower one.

Williams, Waterman & Patterson, "Roofline", 2009. Each operation is a kernel of its own, as eager PyTorch runs it, that
reads its inputs from memory and writes its outputs there. A compiler that fuses operations moves less; `arithmetic`
is what remains for every implementation that multiplies the same numbers.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optsd.errors import Unsupported
from optsd.estimate.devices import Device

if TYPE_CHECKING:
    from optsd.estimate import Estimate
    from optsd.estimate.operations import Operation


@dataclass(frozen=True)
class Share:
    """Part of a call's time at the roofline, by kind of operation. Seconds, operations and bytes of the whole call."""

    kind: str
    seconds: float
    memory_bound_seconds: float  # of operations that the memory holds up
    flops: float
    moved_bytes: float


def operation_seconds(operation: "Operation", device: Device) -> float:
    """max(operations ÷ arithmetic rate, bytes ÷ memory rate)."""
    return max(_arithmetic_seconds(operation, device), _memory_seconds(operation, device))


def seconds(estimate: "Estimate") -> float:
    """One call of the pipeline, at the roofline."""
    return sum(stage_seconds(estimate).values())


def stage_seconds(estimate: "Estimate") -> dict[str, float]:
    """The same by stage; the denoiser's are those of all its steps."""
    totals: defaultdict[str, float] = defaultdict(float)
    for operation in estimate.operations:
        totals[operation.stage] += estimate.times(operation) * operation_seconds(operation, estimate.device)
    return dict(totals)


def arithmetic_seconds(estimate: "Estimate") -> float:
    """The multiplications of one call alone, as if memory were free: the floor for every implementation."""
    return sum(
        estimate.times(operation) * _arithmetic_seconds(operation, estimate.device) for operation in estimate.operations
    )


def shares(estimate: "Estimate", stage: str = "") -> list[Share]:
    """Time by kind of operation, longest first, in one stage or in all."""
    kinds: dict[str, list[float]] = {}
    for operation in estimate.operations:
        if stage and operation.stage != stage:
            continue
        times, device = estimate.times(operation), estimate.device
        taken = times * operation_seconds(operation, device)
        in_memory = _memory_seconds(operation, device) >= _arithmetic_seconds(operation, device)
        sums = kinds.setdefault(operation.kind, [0.0, 0.0, 0.0, 0.0])
        for place, value in enumerate(
            (taken, taken * in_memory, times * operation.flops, times * operation.moved_bytes)
        ):
            sums[place] += value
    return sorted((Share(kind, *sums) for kind, sums in kinds.items()), key=lambda share: -share.seconds)


def of_roofline(latency_s: float, estimate: "Estimate") -> float:
    """A measured time, in seconds an image, as a share of the roofline: 1 is as fast as the operations can be."""
    return seconds(estimate) / estimate.workload.batch_size / latency_s


def flops_utilization(latency_s: float, estimate: "Estimate") -> float:
    """MFU: the multiplications of a measured run as a share of what the device can do in its time."""
    return arithmetic_seconds(estimate) / estimate.workload.batch_size / latency_s


def _arithmetic_seconds(operation: "Operation", device: Device) -> float:
    return operation.flops / device.rate(operation.precision) if operation.flops else 0.0


def _memory_seconds(operation: "Operation", device: Device) -> float:
    if device.bytes_s is None:
        raise Unsupported(f"{device.title} has no data sheet, so times cannot be estimated", "choose a GPU by name")
    return operation.moved_bytes / device.bytes_s

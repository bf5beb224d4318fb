"""What a claim could be at best: memory and speed from the architecture and the device's data sheet.

    from optsd.estimate import estimate
    estimate("sd15", "int8+flash", workload, "a100").peak_bytes

No weights and no GPU are needed: the pipeline runs under torch's fake tensors, which have shapes and no numbers.

devices.py        what each device can do at best, with the source
architectures.py  pipelines without weights
operations.py     what one operation computes and moves
trace.py          live memory and operations of a run, over fake or real tensors
repeated.py       blocks that are alike are traced once
counted.py        both as a ledger, to be compared line by line
run.py            the run under fake tensors
roofline.py       the least time that the operations can take on a device
bounds.py         the most that a technique can give, and claims beyond it
claims.py         docs/claims.md
profiles.py       what one run computes, small enough to keep
published.py      published claims beside their bounds; survey.py and field_page.py: docs/field.md
command.py        `optsd estimate`

Importing this package imports no torch; `estimate` does.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optsd.errors import BadInput, Unsupported
from optsd.estimate.devices import Device, find
from optsd.metrics import metric
from optsd.records import Measurement, Workload

if TYPE_CHECKING:
    from optsd.estimate.operations import Operation
    from optsd.estimate.trace import Allocation, Peak

__all__ = ["Estimate", "estimate", "measurements"]


@dataclass(frozen=True)
class Estimate:
    """What a variant allocates, computes and moves in one call of the pipeline: one batch of pictures."""

    model: str
    variant: str
    workload: Workload
    device: Device
    denoiser: str  # the component that runs once a step: "unet" or "transformer"
    calls: int  # of the denoiser: with some schedulers one more than steps
    parameters: dict[str, int]  # by component
    weight_bytes: dict[str, int]  # by component
    peaks: "dict[str, Peak]"  # by stage: a component's name, or "pipeline" between components
    operations: "tuple[Operation, ...]"  # of the traced steps; `times` says how often each runs
    step_counts: dict[int, int]  # traced step -> how many of the workload's steps are like it
    touched: tuple[str, ...]
    proof: dict[str, Any] = field(default_factory=dict)
    kept: "tuple[Allocation, ...]" = ()  # what is live when the call has ended, without the weights

    @property
    def peak(self) -> "Peak":
        """The most that is live at one time, in the whole call. Its `cause` names the allocation."""
        return max(self.peaks.values(), key=lambda peak: peak.total)

    @property
    def peak_bytes(self) -> int:
        return self.peak.total

    def peak_alone(self, component: str) -> int:
        """Bytes at the component's peak without the other components' weights: it alone on the device."""
        peak = self.peaks[component]
        return peak.total - sum(size for name, size in peak.weights.items() if name != component)

    def times(self, operation: "Operation") -> int:
        """How often the whole workload runs an operation of the trace."""
        last = max(self.step_counts)
        in_loop = operation.stage == self.denoiser or (operation.stage == "pipeline" and 0 < operation.step < last)
        return self.step_counts[operation.step] if in_loop else 1


def estimate(model: str, variant: str, workload: Workload, device: str = "") -> Estimate:
    """Trace a variant of a model on a device of `optsd.estimate.devices` (default: A100), in seconds.

    `model`: a name of `optsd.estimate.architectures`, a diffusers folder or a hub id; of files, configurations only.
    Raises BadInput or NotFound for an unknown model or device, Unsupported where something cannot be estimated.
    """
    target = find(device)
    if target.has_data_sheet:
        target.rate(workload.dtype)  # refuses a type that the device lacks before anything is built
    if workload.steps < 1 or workload.batch_size < 1:
        raise BadInput("a workload without steps or pictures has no estimate", "give at least 1 of both")
    from optsd.quiet import import_diffusers

    import_diffusers()
    from optsd.estimate.run import trace_fake
    from optsd.variants import parse

    # Steps are alike but for the first, which fills caches, and those of a technique that skips work every so often.
    period = max(getattr(step, "every", 1) for step in parse(variant).steps)
    traced = trace_fake(model, variant, workload, target, min(workload.steps, 1 + period))
    calls = traced.calls
    counts = Counter(step if step <= 1 + period else 2 + (step - 2) % period for step in range(1, calls + 1))
    return Estimate(
        model,
        variant,
        workload,
        target,
        traced.denoiser,
        calls,
        traced.parameters,
        traced.weight_bytes,
        traced.tracer.peaks,
        tuple(traced.tracer.operations),
        {step: counts[step] for step in range(1, traced.tracer.step + 1)},
        traced.touched,
        traced.proof,
        traced.kept,
    )


def measurements(
    estimate: Estimate, baseline: Estimate | None = None, fused: Estimate | None = None
) -> list[Measurement]:
    """The figures of an estimate under the names of measured ones; each says in its note what it is.

    With `baseline`, `memory_reduction` too. With that and `fused`, the estimate of `sdpa`: `latency_s` and `speedup` at
    best, which is what bounds.py says, and `speedup_unfused` for kernels as they are today.
    """
    from optsd.estimate import bounds, roofline
    from optsd.estimate.counted import of_estimate

    def row(name: str, value: float | None, note: str) -> Measurement:
        return Measurement(estimate.variant, name, metric(name).unit, value, note=note)

    peak, counted = estimate.peak, of_estimate(estimate).figures()
    where = f"estimate: live tensors, at most in {peak.cause.module or 'the pipeline'} ({peak.cause.operation})"
    rows = [
        row("peak_memory_bytes", peak.total, where),
        row("weight_bytes", sum(estimate.weight_bytes.values()), "estimate"),
        *(
            row(name, number, "counted in the trace, in one batch")
            for name, number in counted.items()
            if name not in ("peak_memory_bytes", "weight_bytes")
        ),
    ]
    if baseline is not None:
        rows.append(row("memory_reduction", 1 - peak.total / baseline.peak_bytes, "estimate: of live tensors"))
    if not estimate.device.has_data_sheet:
        return [*rows, row("latency_s", None, f"{estimate.device.title}: {estimate.device.source}")]
    at_least = f"estimate: each operation a kernel of its own at the rates of {estimate.device.title}"
    stages, batch = roofline.stage_seconds(estimate), estimate.workload.batch_size
    latency = sum(stages.values()) / batch
    rows += [
        row("latency_unfused_s", latency, at_least),
        row("unet_step_s", stages[estimate.denoiser] / estimate.calls, at_least),
        row("text_encoder_s", sum(stages[name] for name in stages if name.startswith("text_encoder")), at_least),
        row("vae_decode_s", stages.get("vae", 0.0), at_least),
    ]
    if baseline is None or fused is None:
        return rows
    at_best = "estimate, at best: what it changes, done perfectly"
    ratio = today = roofline.seconds(baseline) / roofline.seconds(estimate)
    rows.append(row("speedup_unfused", today, at_least))
    with suppress(Unsupported):  # no bound is known: its own operations are the best that can be said
        ratio = bounds.speed(bounds.techniques_of(estimate.variant), baseline, fused).at_roofline
    if today > ratio:  # today's kernels may do more than the technique must, such as a sum in the same pass
        ratio, at_best = today, "estimate, at best: what today's kernels do, which is more than the technique changes"
    best = roofline.seconds(baseline) / ratio / batch
    return [
        *rows,
        row("speedup", ratio, at_best),
        row("latency_s", best, at_best),
        row("throughput_images_s", 1 / best, at_best),
    ]

"""What the bounds alone can say of the candidates, on a device that need not be there. Nothing is measured."""

from dataclasses import replace
from functools import cache
from itertools import combinations

from optsd.errors import BadInput, OptsdError
from optsd.estimate import Estimate, architectures, devices, estimate, measurements
from optsd.records import Workload
from optsd.report.tables import aligned, figure
from optsd.tune import candidates
from optsd.tune.request import Request
from optsd.tune.search import COMBINATIONS, Candidate
from optsd.variants import canonical
from optsd.workloads import dtype_name

NOTHING = "Nothing was measured: these are bounds, and of quality they say nothing."


def outlook(request: Request, name: str) -> str:
    """A table of what each candidate could be at best, the most promising first, and which cannot be.

    Raises BadInput and NotFound for a model or a device that is unknown.
    """
    device = devices.find(name)
    source = architectures.check(request.model)
    preset = request.preset
    width, height = request.size or preset.size or source.size
    dtype = dtype_name(request.dtype)
    if dtype == "auto":
        dtype = "float16" if device.kind == "cuda" else "float32"
    work = Workload(
        source.name,
        device.kind,
        dtype,
        request.steps or preset.steps,
        preset.guidance if request.guidance is None else request.guidance,
        height,
        width,
        request.batch_size or preset.batch_size,
        request.seed,
    )

    @cache
    def trace(name: str) -> Estimate:
        request.say(f"{name}: tracing")
        variant, steps = candidates.split(name)
        return estimate(source.location, variant, replace(work, steps=steps or work.steps), device.name)

    baseline = trace("baseline")
    fused = trace("sdpa") if device.has_data_sheet else None
    names = tuple(dict.fromkeys(map(canonical, request.variants)))
    limit = request.memory or device.memory_bytes
    bounded = candidates.bounded(trace, limit, device.has_data_sheet)
    offered = candidates.candidates(names, request.allow, work.steps, lambda variant: _refusal(trace, variant))
    join = candidates.joiner(lambda variant: _refusal(trace, variant))
    alone = [one for one in offered if not one.why_not and not bounded(one.name)]
    rows = {one.name: _row(one, trace, baseline, fused, bounded) for one in offered}
    best = sorted(alone, key=lambda one: rows[one.name][0], reverse=True)
    joined = [made for parts in combinations(best, 2) if (made := join(tuple(one.name for one in parts)))]
    for one in joined[:COMBINATIONS]:
        rows.setdefault(one.name, _row(one, trace, baseline, fused, bounded))
    ranked = sorted(rows.values(), key=lambda row: row[0], reverse=True)
    table = aligned([("variant", "at best", "peak", "saved", ""), *(row[1] for row in ranked)])
    about = f"{work.model} on {device.title}, {dtype}, {width}×{height}, batch {work.batch_size}, {work.steps} steps"
    return f"{NOTHING}\n{about}\n\n{table}\n\n{NOTHING}"


def _refusal(trace, variant: str) -> str:
    try:
        trace(variant)
    except BadInput:
        raise
    except OptsdError as error:
        return error.problem
    return ""


def _row(one: Candidate, trace, baseline: Estimate, fused: Estimate | None, bounded) -> tuple[float, tuple[str, ...]]:
    """Where it is ranked, and what is shown."""
    if one.why_not:
        return -1.0, (one.name, "-", "-", "-", one.why_not)
    found = {row.metric: row.value for row in measurements(trace(one.name), baseline, fused)}
    best = found.get("speedup") or 0.0
    cells = [
        figure(value, unit) if (value := found.get(name)) is not None else "-"
        for name, unit in (("speedup", "×"), ("peak_memory_bytes", "B"), ("memory_reduction", "fraction"))
    ]
    why = bounded(one.name)
    return (-0.5 if why else best), (one.name, *cells, why)

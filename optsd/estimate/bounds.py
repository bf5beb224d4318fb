"""The most that a technique can give, whoever implements it, and the claims that go beyond.

Both bounds start from two traces of the unchanged model, with eager and with fused attention, and let the technique
do its part perfectly:

memory   quantized weights have exactly their bits, in every component, and nothing is kept beside them; activations
         stay what they are; fused attention has no score matrix, and pictures are decoded one by one.
speed    Amdahl's law over the roofline. What the technique changes runs at the data sheet's rate for its new type
         afterwards; before, at no less than `SLOWEST` of its roofline. Everything else runs at its roofline in both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from optsd.errors import BadInput, Unsupported
from optsd.estimate import roofline
from optsd.estimate.devices import Device, said
from optsd.judge.expectations import Claim, Claims
from optsd.judge.verdicts import PASSING
from optsd.metrics import metric
from optsd.quantization import rules
from optsd.records import Measurement, Results, Verdict
from optsd.variants import canonical

if TYPE_CHECKING:
    from optsd.estimate import Estimate
    from optsd.estimate.operations import Operation

SLOWEST = 0.2
"""The smallest share of its roofline at which a baseline's operations are taken to run: the slowest published run that
is known (docs/claims.md) reaches 22 %, all its operations together."""

FUSED = ("sdpa", "flash", "flash-enhanced")
KNOWN = ("baseline", "eager", *FUSED, *rules.BITS, "kvcache")
_WIDTHS = {"float32": 32, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True)
class Speed:
    """`most`: the bound. `at_roofline`: what comes out where everything runs at the data sheet's rates."""

    most: float
    at_roofline: float
    arithmetic: str


@dataclass(frozen=True)
class Bound:
    """A claim beside what is possible. `status`: `possible`, `unattainable`, or `not bounded` with the reason."""

    claim: Claim
    status: str
    limit: float | None
    arithmetic: str


def weight_share(eager: "Estimate", scope: str) -> int:
    """Bytes of weights in `linear` or `convolution` layers of the denoiser, in all of it (`denoiser`) or `all`."""
    if scope == "all":
        return sum(eager.weight_bytes.values())
    if scope == "denoiser":
        return eager.weight_bytes[eager.denoiser]
    return sum(
        operation.weight_bytes
        for operation in eager.operations
        if operation.stage == eager.denoiser and operation.step == 1 and operation.kind == scope
    )


def memory_after(trace: "Estimate", bits: int, scope: str = "all", sliced: bool = False) -> int:
    """Peak bytes where the weights of `scope` have so many bits. `sliced`: pictures are decoded one by one."""
    saved = weight_share(trace, scope) * (1 - bits / _WIDTHS[trace.workload.dtype])
    totals = []
    for stage, peak in trace.peaks.items():
        weights = sum(peak.weights.values())
        activations: float = peak.total - weights
        if stage == "vae" and sliced:
            activations /= trace.workload.batch_size
        totals.append(weights - saved + activations)
    return round(max(totals))


def memory(techniques: tuple[str, ...], eager: "Estimate", fused: "Estimate") -> tuple[float, str]:
    """The largest share of the eager baseline's peak that can be saved, and the arithmetic in one line."""
    bits = _fewest_bits(techniques)
    is_fused = any(name in FUSED for name in techniques)
    trace = fused if is_fused else eager
    after = memory_after(trace, bits or _WIDTHS[eager.workload.dtype], sliced=is_fused)
    parts = {name: size / 2**30 for name, size in eager.peak.by_kind().items()}
    says = (
        f"baseline {eager.peak_bytes / 2**30:.2f} GiB = weights {parts['weights']:.2f} + scores {parts['scores']:.2f} "
        f"+ other activations {parts['activations']:.2f}; at best {after / 2**30:.2f} GiB"
    )
    return 1 - after / eager.peak_bytes, says


def speed(techniques: tuple[str, ...], eager: "Estimate", fused: "Estimate") -> Speed:
    """The largest speedup over the eager baseline. Raises Unsupported for a technique without a bound."""
    after = fused if any(name in FUSED for name in techniques) else eager
    touched = _touched(techniques, eager)
    total = roofline.seconds(eager)
    changed = sum(
        eager.times(operation) * roofline.operation_seconds(operation, eager.device)
        for operation in eager.operations
        if touched(operation)
    )
    rest = total - changed
    best = max(rest, sum(_improved(techniques, operation, after) for operation in after.operations))
    most = (rest + changed / SLOWEST) / best
    says = (
        f"at the roofline of {eager.device.title}: untouched {rest:.3g} s, touched {changed:.3g} s, afterwards "
        f"{best - rest:.3g} s: {total / best:.2f}×; at most ({rest:.3g} + {changed:.3g} ÷ {SLOWEST}) ÷ {best:.3g}"
    )
    return Speed(most, total / best, says)


def bounds(claims: Claims, eager: "Estimate", fused: "Estimate") -> tuple[Bound, ...]:
    """A bound for each claim on speed or memory. `eager` and `fused` are estimates of `baseline` and `sdpa`.

    Raises BadInput unless both are of the claims' own workload.
    """
    for name, expected in claims.workload.items():
        for trace in (eager, fused):
            if getattr(trace.workload, name) != expected:
                raise BadInput(
                    f"the claims are about {name} {expected}, the estimate is of {getattr(trace.workload, name)}",
                    "estimate the claims' workload",
                )
    judged = ("speedup", "memory_reduction", "latency_s", "peak_memory_bytes")
    return tuple(_bound(claim, eager, fused) for claim in claims.claims if claim.metric in judged)


def compare(claims: Claims, results: Results, device: Device, trace: "Callable[[str], Estimate]") -> Results:
    """The results with what is possible at best beside them. `trace` estimates a variant of their workload.

    On the claims' own workload `bounds` holds a row for each claim, and what is beyond its bound becomes
    `unattainable`, unless it was measured to hold. Each time that a GPU needed is shown as a share of its roofline and
    as MFU (Chowdhery et al., "PaLM", 2022).
    """
    workload = replace(results.workload, device=device.kind)
    if workload == results.workload and device.has_data_sheet:
        results = replace(results, measurements=results.measurements + tuple(_shares(results, trace)))
    if claims.machine and said(claims.machine)[0] != device.name:
        return results  # the claims are of another GPU
    models = claims.models["performance"]
    known = {**asdict(workload), "model": not models or workload.model in models}
    if any(known[name] != expected for name, expected in {**claims.workload, "model": True}.items()):
        return results
    try:
        found = bounds(claims, trace("baseline"), trace("sdpa"))
    except Unsupported:
        return results
    chosen = [bound for bound in found if bound.claim.variant in {*results.variants, "baseline"}]
    rows = tuple(_row(bound, results) for bound in chosen)
    return replace(results, bounds=rows, verdicts=_with_unattainable(results.verdicts, chosen))


def _shares(results: Results, trace: "Callable[[str], Estimate]") -> Iterator[Measurement]:
    for variant in results.variants:
        latency = results.get(variant, "latency_s")
        if latency is None or latency.value is None:
            continue
        for name, share in (("roofline_share", roofline.of_roofline), ("mfu", roofline.flops_utilization)):
            try:
                value, note = share(latency.value, trace(variant)), ""
            except Unsupported as error:
                value, note = None, error.problem
            yield Measurement(variant, name, metric(name).unit, value, note=note)


def _with_unattainable(verdicts: tuple[Verdict, ...], found: Sequence[Bound]) -> tuple[Verdict, ...]:
    beyond = {(bound.claim.variant, bound.claim.source): bound for bound in found if bound.status == "unattainable"}

    def judged(verdict: Verdict) -> Verdict:
        bound = beyond.get((verdict.variant, verdict.source.partition(": ")[2]))
        if bound is None or bound.claim.metric != verdict.metric or verdict.status in PASSING:
            return verdict
        return replace(verdict, status="unattainable", note=f"at most {bound.limit:.3g}: {bound.arithmetic}")

    return tuple(map(judged, verdicts))


def _row(bound: Bound, results: Results) -> dict[str, Any]:
    claim = bound.claim
    measured = None if results.workload.is_estimate else results.get(claim.variant, claim.metric)
    return {
        "variant": claim.variant,
        "metric": claim.metric,
        "claimed": claim.low if claim.low is not None else claim.high,
        "bound": bound.limit,
        "measured": measured.value if measured else None,
        "status": bound.status,
        "arithmetic": bound.arithmetic,
        "source": claim.source,
    }


def techniques_of(variant: str) -> tuple[str, ...]:
    """`int8+flash` as its techniques. Raises Unsupported where one of them has no bound."""
    names = tuple(canonical(variant).split("+"))
    for name in names:
        if name not in KNOWN and (not rules.fewest_bits(name) or rules.read(name.partition(":")[2])[0]):
            raise Unsupported(f"{name} has no bound", f"ask for one of {', '.join(KNOWN)}")
    return names


def _fewest_bits(techniques: tuple[str, ...]) -> int:
    """That the weights of a layer may have; 0 where none is quantized. A mixture is bounded by the least of its own."""
    return min(filter(None, map(rules.fewest_bits, techniques)), default=0)


def _bound(claim: Claim, eager: "Estimate", fused: "Estimate") -> Bound:
    try:
        techniques = techniques_of(claim.variant)
        limit, says = _limit(claim, techniques, eager, fused)
    except Unsupported as error:
        return Bound(claim, "not bounded", None, error.problem)
    if claim.metric in ("speedup", "memory_reduction"):
        beyond = claim.low is not None and claim.low - claim.tolerance.around(claim.low) > limit
    else:
        beyond = claim.high is not None and claim.high + claim.tolerance.around(claim.high) < limit
    return Bound(claim, "unattainable" if beyond else "possible", limit, says)


def _limit(claim: Claim, techniques: tuple[str, ...], eager: "Estimate", fused: "Estimate") -> tuple[float, str]:
    if claim.metric == "memory_reduction":
        return memory(techniques, eager, fused)
    if claim.metric == "speedup":
        limit = speed(techniques, eager, fused)
        return limit.most, limit.arithmetic
    if claim.variant != "baseline":
        raise Unsupported(f"{claim.metric} is bounded for the baseline only", "claim a speedup or memory_reduction")
    if claim.metric == "latency_s":
        least = roofline.arithmetic_seconds(eager) / eager.workload.batch_size
        return least, f"the multiplications alone, at the peak rate of {eager.device.title}"
    alone = eager.peak_alone(eager.denoiser)
    return alone, f"live tensors of the {eager.denoiser} alone; with the other components {eager.peak_bytes}"


def _touched(techniques: tuple[str, ...], eager: "Estimate") -> Callable[["Operation"], bool]:
    """Which of the eager baseline's operations the techniques change."""
    layers = {each.module for each in eager.operations if each.kind == "attention" and each.stage == eager.denoiser}

    def is_touched(operation: "Operation") -> bool:
        if operation.stage != eager.denoiser:
            return False
        if _fewest_bits(techniques) and operation.kind in ("linear", "convolution"):
            return True
        if any(name in FUSED for name in techniques) and operation.module in layers:
            return operation.kind in ("attention", "other")
        return "kvcache" in techniques and _is_text_projection(operation) and operation.step > 1

    return is_touched


def _improved(techniques: tuple[str, ...], operation: "Operation", trace: "Estimate") -> float:
    """Seconds of an operation, all its runs together, after the techniques have done their best."""
    if operation.stage == trace.denoiser:
        if "kvcache" in techniques and _is_text_projection(operation) and operation.step > 1:
            return 0.0
        bits = _fewest_bits(techniques)
        if bits and operation.kind in ("linear", "convolution"):
            # A device without 4-bit arithmetic unpacks to 8 bits on its way to the matrix units.
            precision = "int4" if bits == 4 and "int4" in trace.device.operations_s else "int8"
            saved = operation.weight_bytes * (1 - bits / _WIDTHS[trace.workload.dtype])
            operation = replace(operation, precision=precision, moved_bytes=round(operation.moved_bytes - saved))
    return trace.times(operation) * roofline.operation_seconds(operation, trace.device)


def _is_text_projection(operation: "Operation") -> bool:
    return operation.module.endswith(("attn2.to_k", "attn2.to_v", "attn2.to_kv"))

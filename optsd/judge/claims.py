"""Does a claim hold? By the measured value and the claim's tolerance, on the claim's own workload only."""

import math
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from optsd.claims.names import same_machine
from optsd.judge.expectations import Claim, Claims
from optsd.judge.verdicts import flaw, gpu_warning, joined, why_absent
from optsd.metrics import metric
from optsd.records import Measurement, Results, Verdict


def judge_claims(claims: Claims, results: Results, variants: Collection[str] | None = None) -> tuple[Verdict, ...]:
    """A verdict for each claim about `variants` (default: about every one)."""
    chosen = [claim for claim in claims.claims if variants is None or claim.variant in variants]
    return tuple(judge_claim(claim, claims, results) for claim in chosen)


def judge_claim(claim: Claim, claims: Claims, results: Results) -> Verdict:
    """Is the figure reproduced on the claim's workload? Another workload is `not comparable`, whatever was measured."""
    found = results.get(claim.variant, claim.metric)
    measured = None if found is None or results.workload.is_estimate else found.value
    status, note = _claim_status(claim, claims, results, found)
    worse_end = claim.low if metric(claim.metric).better == "higher" else claim.high
    expected = worse_end if worse_end is not None else (claim.high if claim.low is None else claim.low)
    return Verdict(
        claim.variant,
        claim.metric,
        status,
        measured,
        expected,
        _expectation_text(claim),
        f"claims/{Path(claims.file).name}: {claim.source}",
        joined(note, gpu_warning(claim.metric, results)),
    )


def _claim_status(claim: Claim, claims: Claims, results: Results, found: Measurement | None) -> tuple[str, str]:
    if difference := _other_workload(claim, claims, results):
        return "not comparable", difference
    if found is None or found.value is None:
        return "not measured", found.note if found else why_absent(claim.variant, results)
    if problem := flaw(found):
        return "not measured", problem
    higher_is_better = metric(claim.metric).better == "higher"
    low = -math.inf if claim.low is None else claim.low - claim.tolerance.around(claim.low)
    high = math.inf if claim.high is None else claim.high + claim.tolerance.around(claim.high)
    note = ""
    for limit in (low, high):
        if found.low is not None and found.high is not None and found.low < limit < found.high:
            note = f"the interval {found.low:.4g} to {found.high:.4g} reaches across the limit {limit:.4g}"
    if low <= found.value <= high:
        return "reproduced", note
    return ("exceeded" if (found.value > high) == higher_is_better else "missed"), note


def _other_workload(claim: Claim, claims: Claims, results: Results) -> str:
    """How the run differs from what the claim is about; empty when it does not."""
    workload = asdict(results.workload)
    kind = metric(claim.metric).kind
    differences = [
        f"{name} {workload[name]} instead of {expected}"
        for name, expected in claims.workload.items()
        if workload[name] != expected
    ]
    if claims.models[kind] and results.workload.model not in claims.models[kind]:
        differences.insert(0, f"model {results.workload.model} instead of {claims.models[kind][0]}")
    if claims.machine and workload["device"] == claims.workload.get("device", ""):
        found = _machine(results)
        if not same_machine(claims.machine, found, workload["device"]):
            differences.append(f"{found or 'an unknown machine'} instead of {claims.machine}")
    if kind == "quality":
        own = [f"{name} {workload[name]}" for name in ("prompts", "reference") if workload[name]]
        differences += [f"{each} instead of the standard ones" for each in own]
    pictures = sum(row.get("variant") == claim.variant for row in results.images)
    if kind == "quality" and not differences and claims.images and pictures != claims.images:
        differences.append(f"{pictures} pictures instead of {claims.images}")
    return ", ".join(differences)


def _machine(results: Results) -> str:
    """The GPU, or the CPU, that the run was on."""
    gpus, cpu = results.machine.get("gpus") or [], results.machine.get("cpu") or {}
    if results.workload.device == "cuda":
        return str(gpus[0].get("name")) if gpus else ""
    return str(cpu.get("name") or "")


def _expectation_text(claim: Claim) -> str:
    if claim.low is not None and claim.high is not None and claim.low != claim.high:
        return f"{claim.low:g} to {claim.high:g}, {claim.tolerance}"
    if claim.high is None:
        return f"at least, {claim.tolerance}"
    return f"at most, {claim.tolerance}" if claim.low is None else str(claim.tolerance)

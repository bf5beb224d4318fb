"""Did this machine get slower? By the confidence interval of the change from a recorded figure to a measured one."""

import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optsd.errors import BadInput
from optsd.judge.expectations import Baselines, Row, Run, Tolerance, identity
from optsd.judge.statistics import FEWEST_ROUNDS, Interval, change_interval, difference_interval, rounds_needed
from optsd.judge.verdicts import TIMES, flaw, gpu_warning, joined, noise_of, why_absent
from optsd.ledger import FIGURES
from optsd.metrics import METRICS, metric
from optsd.records import Measurement, Results, Verdict, Workload

TIMED = frozenset(name for name, row in METRICS.items() if row.unit in TIMES)

RECORDED = (
    "speedup",
    "latency_s",
    "peak_memory_bytes",
    "weight_bytes",
    "disk_bytes",
    *(name for name, row in METRICS.items() if row.kind == "quality"),
)
"""Metrics that a machine's file holds: the others follow from these or describe a single stage."""


def recorded(workload: Workload) -> tuple[str, ...]:
    """The metrics that are recorded of a workload: of one that is only traced, the figures of its ledger."""
    return FIGURES if workload.is_estimate else RECORDED


def judge_regressions(
    baselines: Baselines | None, results: Results, variants: Collection[str] | None = None
) -> tuple[Verdict, ...]:
    """A verdict for every figure that the file has, or should have, about `variants` (default: all that are named)."""
    run = baselines.run(results.workload) if baselines else None
    expected = [(row.variant, row.metric) for row in run.rows] if run else []
    measured = [
        (found.variant, found.metric)
        for found in results.measurements
        if found.metric in recorded(results.workload) and found.value is not None and not is_noise_floor(found)
    ]
    names = dict.fromkeys(name for name in [*measured, *expected] if variants is None or name[0] in variants)
    where = Path(baselines.file).name if baselines else "no baseline file"  # no path of this machine in a report
    return tuple(_judge_row(variant, name, baselines, run, results, where) for variant, name in names)


def is_alarm(row: Verdict) -> bool:
    """Whether a time has become worse, which one session alone does not settle."""
    return row.status == "regressed" and row.metric in TIMED


def confirmed(rows: Sequence[Verdict], baselines: Baselines, second: Results) -> tuple[Verdict, ...]:
    """The verdicts of a first session, with its alarms as a second one leaves them.

    An alarm stands unless the second session clears it: finds the figure as good as it was, or cannot tell and
    estimates no more than the tolerance. Then it is `insufficient data`.
    """
    run = baselines.run(second.workload)
    return tuple(_confirmed(row, baselines, run, second) if is_alarm(row) else row for row in rows)


def _confirmed(row: Verdict, baselines: Baselines, run: Run | None, second: Results) -> Verdict:
    again = _judge_row(row.variant, row.metric, baselines, run, second, row.source)
    is_cleared = again.status in ("ok", "improved")
    if again.status == "insufficient data" and run:
        expected, found = run.row(row.variant, row.metric), second.get(row.variant, row.metric)
        if expected and found and found.samples:
            worse = worsening(expected, found, baselines.tolerance_of(expected))
            is_cleared = worse.value <= worse.limit
    said = f"{row.note}; a second session: {again.status}, {again.note}"
    if is_cleared:
        return replace(row, status="insufficient data", note=f"not confirmed: {said}")
    return replace(row, note=said)


def noise_floor(results: Results) -> float:
    """How far the whole interval of baseline ÷ baseline lies from 1: a bias of this run that noise does not explain.

    Noise itself is in every interval already, and would count twice. 0 when not measured.
    """
    found = results.get("baseline", "speedup")
    if found is None or found.value is None:
        return 0.0
    low, high = _bounds(found.value, found.low, found.high)
    return max(0.0, low - 1, 1 - high)


def pictures_of(found: Measurement, results: Results) -> int | None:
    """How many pictures a quality figure is of; None for other figures, and where the run does not say."""
    if metric(found.metric).kind != "quality":
        return None
    return sum(image.get("variant") == found.variant for image in results.images) or None


def kernels(results: Results) -> dict[str, str]:
    """The attention kernel that each variant ran with."""
    proofs = {technique.variant: technique.proof.get("kernel") for technique in results.techniques}
    return {variant: str(kernel) for variant, kernel in proofs.items() if kernel}


def _judge_row(
    variant: str, name: str, baselines: Baselines | None, run: Run | None, results: Results, where: str
) -> Verdict:
    row = run.row(variant, name) if run else None
    found = results.get(variant, name)
    tolerance = baselines.tolerance_of(row) if baselines and row else None
    if run is None or row is None or tolerance is None:
        status, note = "no baseline", _why_no_baseline(baselines, run, variant, name)
    else:
        status, note = _change_status(row, run, found, results, tolerance)
    return Verdict(
        variant,
        name,
        status,
        found.value if found else None,
        row.value if row else None,
        str(tolerance) if tolerance else "",
        f"{where}: {variant} {name}",
        joined(note, gpu_warning(name, results)),
    )


def _change_status(
    row: Row, run: Run, found: Measurement | None, results: Results, tolerance: Tolerance
) -> tuple[str, str]:
    if difference := _other_machine(row, run, results):
        return "not comparable", difference
    if found is None or found.value is None:
        return "not measured", found.note if found else why_absent(row.variant, results)
    if sum((other.variant, other.metric) == (row.variant, row.metric) for other in results.measurements) > 1:
        return "not measured", "this run has two figures of it, and does not say which one holds"
    pictures = pictures_of(found, results)
    if row.pictures and pictures and row.pictures != pictures:
        return "not comparable", f"{pictures} pictures instead of {row.pictures}"
    recorded = Measurement(row.variant, row.metric, "", row.value, row.low, row.high, row.samples)
    if problem := flaw(found) or flaw(recorded):
        return "not measured", problem
    if tolerance.absolute is None and row.value <= 0:
        return "not measured", f"nothing is a share of {row.value:g}: give the metric an absolute tolerance"
    if reason := _too_little(row, run, found, results):
        return "insufficient data", reason
    worse = worsening(row, found, tolerance, max(run.noise_floor, noise_floor(results)))
    shown = _counted_text(row.value, found.value) if results.workload.is_estimate else _change_text(worse)
    if worse.low > worse.limit:
        return "regressed", shown
    if worse.high < worse.gain_limit:
        return "improved", f"{shown}; tighten the baseline with --expected-update"
    # Quality, size and memory repeat with the seed: their interval is over prompts, which both runs share, and what is
    # as good as it was needs no more evidence.
    if worse.high <= worse.limit or (row.metric not in TIMED and worse.value <= (1 if worse.relative else 0)):
        return "ok", shown
    rounds = len(found.samples) if row.metric in TIMED else 0
    distance = abs(worse.value - worse.limit)
    half_width = worse.value - worse.low if worse.value > worse.limit else worse.high - worse.value
    needed = rounds_needed(rounds, half_width, distance) if rounds else None
    more = f"about {needed - rounds} more rounds would tell" if needed else "more rounds would not tell"
    return "insufficient data", f"{shown}: the interval reaches across the limit; {more}"


@dataclass(frozen=True)
class Worsening:
    """How much worse a figure is than the recorded one: a ratio above 1, or a difference above 0, is worse."""

    value: float
    low: float
    high: float
    limit: float  # above: regressed
    gain_limit: float  # below: improved
    relative: bool


def worsening(row: Row, found: Measurement, tolerance: Tolerance, floor: float = 0.0) -> Worsening:
    """The change from a recorded figure to a measured one, with its 95 % interval, widened by the noise floor."""
    relative = tolerance.absolute is None
    change = _change(row, found, relative)
    if metric(row.metric).better == "higher":
        flip = _inverse if relative else operator.neg
        change = Interval(flip(change.value), flip(change.high), flip(change.low))
    value, low, high = change
    if row.metric in TIMED:
        low, high = (low / (1 + floor), high * (1 + floor)) if relative else (low - floor, high + floor)
    if relative:
        limit = 1 + (tolerance.relative or 0.0)
        return Worsening(value, low, high, limit, 1 / limit, True)
    limit = tolerance.absolute or 0.0
    return Worsening(value, low, high, limit, -limit, False)


def _change(row: Row, found: Measurement, relative: bool) -> Interval:
    """Measured ÷ recorded, or measured − recorded."""
    if found.value is None:
        raise BadInput(f"{found.variant} {found.metric} has no value", "judge what was measured")
    if row.metric in TIMED:
        return (change_interval if relative else difference_interval)(row.samples, found.samples)
    before = (row.value, *_bounds(row.value, row.low, row.high))
    after = (found.value, *_bounds(found.value, found.low, found.high))
    if relative:
        # An interval that reaches zero bounds no ratio.
        high = after[2] / before[1] if before[1] > 0 else math.inf
        return Interval(max(after[0], 0) / before[0], max(after[1], 0) / before[2], max(high, 0))
    return Interval(after[0] - before[0], after[1] - before[2], after[2] - before[1])


def _inverse(ratio: float) -> float:
    return 1 / ratio if ratio else math.inf


def _bounds(value: float, low: float | None, high: float | None) -> tuple[float, float]:
    return (value if low is None else min(low, value)), (value if high is None else max(high, value))


def _too_little(row: Row, run: Run, found: Measurement, results: Results) -> str:
    """Why a timing cannot be judged at all; empty when it can."""
    if row.metric not in TIMED:
        return ""
    for count, which in ((len(found.samples), "this run"), (len(row.samples), "the baseline")):
        if count < FEWEST_ROUNDS:
            return f"{which} has {count} rounds, {FEWEST_ROUNDS - count} more are needed (--rounds {FEWEST_ROUNDS})"
    if metric(row.metric).unit != "×":  # a ratio met the same machine on both sides, seconds did not
        for load, which in ((results.machine.get("load") or {}, "this run"), (run.load, "the baseline's run")):
            if noise := noise_of(load, results.workload.device):
                return f"{noise} during {which}: seconds of two sessions say nothing then, the speedup does"
    return ""


def _other_machine(row: Row, run: Run, results: Results) -> str:
    now = identity(results.machine, results.workload.device)
    if now.get("threads") is None:  # the main process of `-n` workers has no torch, and times nothing
        now["threads"] = run.identity.get("threads")
    differences = [_difference(key, now.get(key), then) for key, then in run.identity.items() if now.get(key) != then]
    then, ran = run.kernels.get(row.variant), kernels(results).get(row.variant)
    if results.workload.is_estimate:  # another operator is what its figures are there to find
        return ", ".join(differences)
    if then != ran and ran is not None:
        differences.append(f"attention kernel {ran} instead of {then}")
    return ", ".join(differences)


def _difference(key: str, now: Any, then: Any) -> str:
    """`cores 2 instead of 4`; of two lists what is in one of them only: `avx_vnni is new`."""
    if not isinstance(now, list | tuple) or not isinstance(then, list | tuple):
        return f"{key} {now} instead of {then}"
    changed = [f"{each} is new" for each in now if each not in then]
    changed += [f"{each} is gone" for each in then if each not in now]
    return f"{key}: {', '.join(changed)}" if changed else f"{key} in another order"


def is_noise_floor(found: Measurement) -> bool:
    """Whether this is the baseline against itself."""
    return (found.variant, found.metric) == ("baseline", "speedup")


def _why_no_baseline(baselines: Baselines | None, run: Run | None, variant: str, name: str) -> str:
    remedy = "record it with --expected-update"
    if baselines is None:
        return f"this machine has no file; {remedy}"
    if run is None:
        return f"{baselines.file} has no run of this workload; {remedy}"
    return f"{baselines.file} has no row for {variant} {name}; {remedy}"


def _counted_text(before: float, after: float) -> str:
    if before == after:
        return f"{after:,.0f} as recorded"
    share = f" ({after / before - 1:+.2%})" if before else ""
    return f"{before:,.0f} → {after:,.0f}{share}"


def _change_text(worse: Worsening) -> str:
    """`1.4% better (3.1% better to 0.2% worse)`."""

    def said(amount: float) -> str:
        size = f"{abs(amount):.1%}" if worse.relative else f"{abs(amount):.3g}"
        return f"{size} {'worse' if amount > 0 else 'better'}" if amount else "the same"

    value, low, high = (end - 1 if worse.relative else end for end in (worse.value, worse.low, worse.high))
    return f"{said(value)} ({said(low)} to {said(high)})"

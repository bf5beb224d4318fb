"""What a reader asks first: which variant to use, what disturbed the run, and what it did not find out."""

from dataclasses import dataclass, replace
from typing import Any

from optsd.judge.kept import ERROR, QUESTION, fewest
from optsd.judge.statistics import FEWEST_ROUNDS
from optsd.judge.verdicts import joined, noise_of
from optsd.records import Measurement, Results, Verdict, is_finite
from optsd.report.tables import MAIN, all_variants, figure, index, interval, metric_of, not_there
from optsd.variants import BY_LAYER, is_ours

KEPT = 0.95
"""The guide allows 5 % of quality: a variant that keeps less of any judged quality metric is not recommended. Where
`--quality` asked for another share, that decides."""

JUDGED = ("fid", "is", "clip", "fid_shapes", "is_shapes", "clip_shapes", "objects_right")
"""The metrics whose retention decides. KID is near zero, where a ratio means nothing; LPIPS of the baseline is zero."""

_NAMED = 3
"""How many variants are named of a tie."""

ESTIMATED = "Estimates: nothing was run. Times and speedups are bounds, memory is that of live tensors."


@dataclass(frozen=True)
class Answer:
    """One of the headlines: `question`, the variant that answers it (or none), the figure, and what it rests on."""

    question: str
    variant: str
    figure: str
    reason: str


def answers(results: Results) -> list[Answer]:
    """The fastest, the smallest, and the fastest whose pictures stay as good. Of an estimate the smallest alone: the
    bounds of its times are no advice. What `--quality` found to have lost its quality is no answer to any of them."""
    rows, asked = index(results), _asked(results)
    lost = [variant for variant, verdict in asked.items() if verdict.status == "lost"]
    variants = tuple(variant for variant in all_variants(results) if variant not in lost)
    found = [] if results.workload.is_estimate else _fastest(results, rows, variants, asked)
    if small := _least_memory(rows, variants, asked):
        found.append(small)
    if found and lost:
        last = found[-1]
        found[-1] = replace(last, reason=f"{last.reason}; left out, as their quality was lost: {', '.join(lost)}")
    if slow := _launched(results, rows, variants):
        found.append(slow)
    return found


def _launched(results: Results, rows: dict[tuple[str, str], Measurement], variants: tuple[str, ...]) -> Answer | None:
    """Quantized variants that are slower than the baseline on a GPU, of which none was replayed as a graph.

    A quantized layer has three kernels where the baseline's has one. On an H200 launching them took Python 80 to 108 ms
    a step and running them 29.5, the baseline's step 53 to 55 (reports/nvidia-h200).
    """
    techniques = {name: {part.partition(":")[0] for part in name.split("+")} for name in variants if is_ours(name)}
    quantized = [name for name, parts in techniques.items() if parts & {*BY_LAYER} and "compile" not in parts]
    speedups = [row for name in quantized if (row := rows.get((name, "speedup"))) is not None and row.value]
    slow = [row for row in speedups if row.high is not None and row.high < 1]
    if results.workload.device != "cuda" or not slow or any("graph" in techniques[name] for name in quantized):
        return None
    last = min(slow, key=lambda row: row.value or 0.0)
    others = ", ".join(row.variant for row in slow if row is not last)
    reason = f"launching its kernels may take longer than running them: try {last.variant}+graph"
    reason = joined(reason, f"slower too: {others}" if others else "")
    return Answer("Slower than the baseline", last.variant, _amount(last), reason)


def _least_memory(
    rows: dict[tuple[str, str], Measurement], variants: tuple[str, ...], asked: dict[str, Verdict]
) -> Answer | None:
    question, small = "Least memory", _best(rows, variants, "peak_memory_bytes")
    if small is None or small.value is None:
        return None
    base = rows.get(("baseline", small.metric))
    passes = interval(base) if base is not None else ""
    if small.variant == "baseline":
        return Answer(question, small.variant, figure(small.value, "B"), "no variant's peak is lower")
    if base is not None and small.value >= _ends(base)[0] and passes:
        reason = f"no variant's peak lies below all passes of the baseline, {passes}"
        return Answer(question, "", "none for sure", reason)
    saved = rows.get((small.variant, "memory_reduction"))
    share = f"{figure(saved.value, 'fraction')} less than the baseline" if saved and saved.value else "peak memory"
    share += f", whose passes took {passes}" if passes and saved and saved.value else ""
    return Answer(question, small.variant, figure(small.value, "B"), _beside(share, asked, small))


def _asked(results: Results) -> dict[str, Verdict]:
    """What `--quality` found of each variant; empty where it was not asked."""
    return {row.variant: row for row in results.verdicts if row.source.startswith(QUESTION)}


def _beside(reason: str, asked: dict[str, Verdict], row: Measurement) -> str:
    """A reason that is not about quality, and what `--quality` could not say of that variant."""
    verdict = asked.get(row.variant)
    return joined(reason, f"quality: {verdict.status}" if verdict and verdict.status != "kept" else "")


def _fastest(
    results: Results, rows: dict[tuple[str, str], Measurement], variants: tuple[str, ...], asked: dict[str, Verdict]
) -> list[Answer]:
    fast, found = _best(rows, variants, "speedup"), []
    share = next((row.expected for row in asked.values() if row.expected), KEPT)
    keeping = {variant: kept for variant in variants if (kept := _retentions(rows, variant))}
    unknown = [variant for variant, verdict in asked.items() if verdict.status == "not measured"]
    good = tuple(
        variant for variant, kept in keeping.items() if variant not in unknown and min(map(_share, kept)) >= share
    )
    use = _best(rows, good, "speedup")
    if use:
        sure = _how_sure(results, use.variant, keeping[use.variant], share, asked)
        found.append(Answer("Fastest with the quality kept", use.variant, *_with_tie(rows, use, good, sure)))
    elif fast:
        reason = (
            "quality was not measured"
            if not keeping
            else f"no variant that is faster than the baseline keeps {_percent(share)} of every quality metric"
        )
        found.append(Answer("Fastest with the quality kept", "", "unknown" if not keeping else "none", reason))
    elif compared := [row for variant in variants if variant != "baseline" and (row := rows.get((variant, "speedup")))]:
        reason = "of no variant the whole 95\N{NO-BREAK SPACE}% interval of the speedup lies above 1"
        if all(row.low is None for row in compared):
            rounds = max(len(row.samples) for row in compared)
            reason = f"{rounds} rounds are too few for an interval: --rounds {FEWEST_ROUNDS} or more has one"
        found.append(Answer("Faster than the baseline", "", "none for sure", reason))
    if fast and (not use or fast.variant != use.variant):
        amount, why = _with_tie(rows, fast, variants, _quality_in_words(keeping, fast.variant))
        found.append(Answer("Fastest", fast.variant, amount, _beside(why, asked, fast)))
    return found


def _best(rows: dict[tuple[str, str], Measurement], variants: tuple[str, ...], name: str) -> Measurement | None:
    found = [row for variant in variants if (row := rows.get((variant, name))) is not None and row.value is not None]
    if name == "speedup":
        found = [row for row in found if row.variant != "baseline" and _surely_faster(row)]
    sign = 1 if metric_of(name).better == "higher" else -1
    return max(found, key=lambda row: sign * (row.value or 0.0), default=None)


def _surely_faster(row: Measurement) -> bool:
    """A speedup counts when its whole interval is above 1: a median of 1.08 that may as well be 0.95 is none, and what
    was timed in too few rounds has no interval.
    """
    return row.value is not None and row.value > 1 and row.low is not None and row.low > 1


def _ends(row: Measurement) -> tuple[float, float]:
    """The interval of a figure; where it has none, the figure itself."""
    value = row.value or 0.0
    return (value if row.low is None else row.low), (value if row.high is None else row.high)


def _with_tie(
    rows: dict[tuple[str, str], Measurement], winner: Measurement, variants: tuple[str, ...], reason: str
) -> tuple[str, str]:
    """The winner's figure, and the reason; both say which variants may be as fast: their interval and the winner's
    overlap. The fastest first.
    """
    low, high = _ends(winner)
    others = [row for variant in variants if (row := rows.get((variant, "speedup"))) is not None and row.value]
    near = [row for row in others if row.variant not in ("baseline", winner.variant)]
    near = [row for row in near if _ends(row)[1] >= low and _ends(row)[0] <= high]
    names = [row.variant for row in sorted(near, key=lambda row: -(row.value or 0.0))]
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    if not names:
        return _amount(winner), reason
    tied = f"tied with {len(names)} {'others' if len(names) > 1 else 'other'}"
    return f"{_amount(winner)}, {tied}", f"{reason}; as fast, by the intervals: {', '.join([*names[:_NAMED], *more])}"


def _retentions(rows: dict[tuple[str, str], Measurement], variant: str) -> list[Measurement]:
    """How much a variant keeps of each judged metric that was measured."""
    found = [rows.get((variant, f"{name}_retention")) for name in JUDGED]
    return [row for row in found if row is not None and row.value is not None]


def _share(row: Measurement) -> float:
    return row.value or 0.0


def _how_sure(results: Results, variant: str, kept: list[Measurement], share: float, asked: dict[str, Verdict]) -> str:
    """Whether more than the figures says that a variant keeps its quality: the verdict of `--quality`, its mathematics,
    or the intervals of enough pictures. Equal pictures have an interval of no width, however few they are."""
    all_of_it = f"at least {_percent(share)} of every judged quality metric"
    if verdict := asked.get(variant):
        told = f"--quality {share:g}: {verdict.status}, {verdict.note}"
        return (
            f"it keeps {all_of_it}; {told}"
            if verdict.status == "kept"
            else f"{all_of_it} is kept by its figures; {told}"
        )
    if any(technique.exact for technique in results.techniques if technique.variant == variant):
        return f"it keeps {all_of_it}, and is exact by its mathematics; least of {_kept_of(min(kept, key=_share))}"
    pictures, least = sum(row.get("variant") == variant for row in results.images), fewest(share, ERROR)
    weakest = min(kept, key=lambda row: _ends(row)[0])
    if _ends(weakest)[0] >= share and pictures >= least:
        return f"it keeps {all_of_it}, by the whole intervals; least of {_kept_of(weakest)}"
    told = f"{all_of_it} is kept by its figures; {pictures or 'the'} pictures do not show it"
    return f"{told}: {_kept_of(weakest)}" if _ends(weakest)[0] < share else f"{told}, which takes {least} or more"


def _percent(share: float) -> str:
    return f"{100 * share:g}\N{NO-BREAK SPACE}%"


def _kept_of(row: Measurement) -> str:
    return f"{_judged_label(row)}: {_amount(row)}"


def _judged_label(row: Measurement) -> str:
    return metric_of(row.metric.removesuffix("_retention")).label


def _amount(row: Measurement) -> str:
    """`1.16× (1.12× to 1.20×)`."""
    bounds = interval(row)
    return f"{figure(row.value or 0.0, metric_of(row.metric).unit)}{f' ({bounds})' if bounds else ''}"


def _quality_in_words(keeping: dict[str, list[Measurement]], variant: str) -> str:
    if variant not in keeping:
        return "quality was not measured"
    least = min(keeping[variant], key=_share)
    return f"keeps {_amount(least)} of {_judged_label(least)}, the quality metric that it hurts most"


BUSY, LATE = 0.1, 3.0
"""The share of the CPU that others may use before a run says so, and how many times its median a late round takes."""
SLOW_CLOCK = 0.75
"""Of a GPU's highest clock: nvbench throws a trial away below this share."""


def found_out(results: Results) -> str:
    """The word over a run's own figures: of an estimate nothing was measured."""
    return "estimated" if results.workload.is_estimate else "measured"


def said_first(results: Results) -> list[str]:
    """What stands above the figures."""
    return [ESTIMATED] if results.workload.is_estimate else disturbances(results)


def disturbances(results: Results) -> list[str]:
    """What a reader must know before the figures: that others were at work on the machine. Empty for a quiet run, and
    for one that measured nothing."""
    if results.workload.is_estimate:
        return []
    said = []
    load = results.machine.get("load")
    load = load if isinstance(load, dict) else {}
    share = load.get("others_cpu_share")
    if isinstance(share, float) and share > BUSY:
        said.append(f"Others used {share:.0%} of the CPU while this was measured.")
    if noise := noise_of(load, "cuda"):
        said.append(f"{noise[0].upper()}{noise[1:]} while this was measured.")
    said += _slow_clock(load.get("gpu_clock"))
    late = [
        (max(row.samples) / row.value, row.variant)
        for row in results.measurements
        if row.metric == "latency_s" and row.value and row.samples and max(row.samples) > LATE * row.value
    ]
    if late:
        times, variant = max(late)
        said.append(f"A round of {variant} took {times:.0f} times its median (variants with one: {len(late)}).")
    return said


def _slow_clock(clock: Any) -> list[str]:
    clock = clock if isinstance(clock, dict) else {}
    median, highest = clock.get("median_mhz"), clock.get("highest_mhz")
    if not is_finite(median) or not is_finite(highest) or median >= SLOW_CLOCK * highest:
        return []
    held = [f"{reason}: {share:.0%} of the time" for reason, share in (clock.get("held_by") or {}).items()]
    told = ", ".join(held) or "no reason given"
    return [f"The GPU's clock was {median} MHz in the median, {median / highest:.0%} of its highest ({told})."]


def failures(results: Results) -> list[str]:
    """What failed or was skipped, and why; variants that lack the same for the same reason are one line."""
    of_reason: dict[tuple[str, str], list[str]] = {}
    for row in results.failures:
        of_reason.setdefault((row.get("stage") or "", row.get("reason") or ""), []).append(row.get("variant") or "")
    variants = all_variants(results)
    return [
        f"{_name(list(dict.fromkeys(whose)), variants) if all(whose) else 'the run'}, "
        f"{stage or 'unknown stage'}: {reason}"
        for (stage, reason), whose in of_reason.items()
    ]


def missing(results: Results) -> list[str]:
    """What a reader should not look for here, and why: one sentence each. Empty for a run that has everything."""
    variants = all_variants(results)
    said = []
    if not results.complete:
        said.append("The run was cut off before its end: figures, verdicts or pictures may be missing.")
    said += [f"Failed or skipped: {each}" for each in failures(results)]
    by_reason: dict[str, dict[str, list[str]]] = {}
    for row in results.measurements:
        if row.value is None:
            by_reason.setdefault(row.note, {}).setdefault(row.metric, []).append(row.variant)
    for reason, names in by_reason.items():
        listed = ", ".join(metric_of(name).label for name in names)
        whose = list(dict.fromkeys(variant for found in names.values() for variant in found))
        said.append(f"{listed}: not measured for {_name(whose, variants)} ({reason})")
    said += _absent(results, variants)
    if not results.verdicts:
        said.append("No verdicts: nothing was compared with an expectation.")
    if not results.images:
        said.append("No pictures: none were recorded.")
    return said


def _absent(results: Results, variants: tuple[str, ...]) -> list[str]:
    """Metrics that have no row at all for some variants, and not even a reason."""
    rows = index(results)
    known = dict.fromkeys([*MAIN, *(row.metric for row in results.measurements)])
    by_variants: dict[tuple[str, ...], list[str]] = {}
    for name in known:
        without = tuple(variant for variant in variants if (variant, name) not in rows)
        # The baseline has no retention and no distance to itself.
        if without and without != ("baseline",):
            by_variants.setdefault(without, []).append(metric_of(name).label)
    return [
        f"{', '.join(labels)}: no figure for {_name(list(whose), variants)} ({not_there(results)})"
        for whose, labels in by_variants.items()
    ]


def _name(some: list[str], variants: tuple[str, ...]) -> str:
    if len(some) == len(variants) > 1:
        return f"all {len(some)} variants"
    if len(some) > 6:
        return f"{', '.join(some[:5])} and {len(some) - 5} more"
    return ", ".join(some)

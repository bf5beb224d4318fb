"""The judge: what was measured, against the guide's claims and against a machine's own recorded figures.

| question | statuses |
| --- | --- |
| does the guide's claim hold? | reproduced, exceeded, missed, unattainable, not measured, not comparable |
| is this build slower than another? | slower, faster, same, insufficient data (`sequential.py`) |
| does a variant keep its quality? | kept, lost, insufficient data, not measured (`kept.py`) |
| did this machine get slower? | ok, improved, regressed, insufficient data, no baseline, not measured, not comparable |

A claim is judged by the measured value and its tolerance. A regression needs the whole confidence interval of the
change beyond the tolerance; `ok` needs all of it within; what lies across the limit is `insufficient data`.
"""

from collections.abc import Iterable
from typing import Any

from optsd.metrics import METRICS, metric, zero_is_a_figure
from optsd.records import Measurement, Results, Verdict

FAILING = frozenset({"missed", "regressed", "unattainable", "slower", "lost"})
ABSENT = frozenset({"no baseline", "not measured"})
PASSING = frozenset({"reproduced", "exceeded", "ok", "improved", "faster", "same", "kept"})


TIMES = ("s", "×", "images/s")
"""Units of metrics whose `samples` are single readings of a clock, which differ from round to round."""

QUIET_CPU_SHARE = 0.10
"""Above this share of the CPU used by others, seconds of two sessions say more about the others than about the code."""


def failing(verdicts: Iterable[Verdict], gate: bool) -> list[Verdict]:
    """The verdicts that fail a run: `missed` and `regressed`, and for a gate what is absent as well."""
    statuses = FAILING | ABSENT if gate else FAILING
    return [verdict for verdict in verdicts if verdict.status in statuses]


def nothing_was_judged(verdicts: Iterable[Verdict]) -> bool:
    """Whether no row could be decided at all. A gate that judged nothing has not passed."""
    return not any(verdict.status in PASSING | FAILING for verdict in verdicts)


def is_of_build(row: Verdict) -> bool:
    """Whether it says how this build compares with another one (`--against`)."""
    return row.metric == "speedup_against"


def flaw(found: Measurement) -> str:
    """Why a figure is no measurement: a time, a size or a speed that is not above zero. Empty when there is none.

    Its readings are looked at where they are single ones, of a clock.
    """
    if found.value is None or found.metric not in METRICS or zero_is_a_figure(found.metric):
        return ""
    single = found.samples if METRICS[found.metric].unit in TIMES else ()
    numbers = {"": found.value} | {f"reading {place}: ": number for place, number in enumerate(single, 1)}
    return next((f"{which}{number:g} is no measurement" for which, number in numbers.items() if number <= 0), "")


def noise_of(load: dict[str, Any], device: str) -> str:
    """What other processes did to a timing, in words; empty when the machine was quiet."""
    if device == "cuda":
        count = load.get("others_on_gpu") or 0
        return f"{count} other processes used the GPU" if count else ""
    share = load.get("others_cpu_share") or 0.0
    return f"other processes used {share:.0%} of the CPU" if share > QUIET_CPU_SHARE else ""


def gpu_warning(name: str, results: Results) -> str:
    load = results.machine.get("load") or {}
    if metric(name).kind == "quality" or not load.get("others_on_gpu") or results.workload.device != "cuda":
        return ""
    return f"warning: {noise_of(load, 'cuda')} meanwhile"


def why_absent(variant: str, results: Results) -> str:
    return next(
        (failure.get("reason", "") for failure in results.failures if failure.get("variant") == variant),
        "no bench of this run measured it",
    )


def joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)

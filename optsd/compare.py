"""`optsd compare A.json B.json`: judges two finished runs by the rules of the gate. Imports no torch."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from optsd.errors import BadInput
from optsd.judge.benchmark_json import read_run
from optsd.judge.expectations import GUIDE_TOLERANCES, Tolerance
from optsd.judge.recording import as_baselines
from optsd.judge.regressions import judge_regressions
from optsd.judge.verdicts import FAILING, failing, nothing_was_judged
from optsd.metrics import METRICS
from optsd.records import READING, Verdict, dumps
from optsd.report.tables import aligned, figure, metric_of

EXAMPLES = """examples:
  optsd compare main.json branch.json           has the branch become slower, larger or worse?
  optsd compare --gate main.json branch.json    fail as well where one of them lacks a figure
  optsd compare --tolerance latency_s=20% --tolerance clip=0.01 a.json b.json
  optsd compare --json a.json b.json            the verdicts as JSON

A and B are results.json files of `pytest bench`, or files of `pytest --benchmark-json=FILE`.

exit status: 0 nothing regressed; 1 something did, or nothing could be decided, or (with --gate) a figure is
missing in one of the runs; 2 wrong usage, a file that is no run, or one with a figure that is none (the others are
judged all the same)."""


def main(arguments: list[str]) -> int:
    """Print a verdict for every figure; the exit status."""
    parser = argparse.ArgumentParser(
        prog="optsd compare",
        description="Judge run B against run A.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", metavar="A.json", type=Path)
    parser.add_argument("after", metavar="B.json", type=Path)
    parser.add_argument("--gate", action="store_true", help="a figure that one of the runs lacks fails too")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    parser.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="NAME=N",
        help="of a metric, or of all of performance or quality: 20%% (relative) or 0.02 (in its unit)",
    )
    chosen = parser.parse_args(arguments)
    tolerances = {**GUIDE_TOLERANCES, **dict(_parse_tolerance(text) for text in chosen.tolerance)}
    before, after = read_run(chosen.before), read_run(chosen.after)
    verdicts = judge_regressions(as_baselines(before, str(chosen.before), tolerances), after)
    unusable = [row for run in (before, after) for row in run.failures if row.get("stage") == READING]
    why = {(row.get("variant"), row.get("metric")): row["reason"] for row in unusable}
    verdicts = tuple(
        replace(row, status="not measured", note=why[row.variant, row.metric])
        if (row.variant, row.metric) in why
        else row
        for row in verdicts
    )
    failed = failing(verdicts, gate=chosen.gate)
    nothing = nothing_was_judged(verdicts)
    if chosen.json:
        print(dumps([asdict(verdict) for verdict in verdicts]), end="")
    else:
        print(_table(verdicts))
        print(_conclusion(verdicts, failed, nothing))
    for row in unusable:
        print(f"optsd: {row['reason']}", file=sys.stderr)
    if any(row.status in FAILING for row in failed):
        return 1
    return 2 if unusable else 1 if failed or nothing else 0


def _parse_tolerance(text: str) -> tuple[str, Tolerance]:
    name, equals, number = text.partition("=")
    try:
        value = float(number.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not equals or not 0 <= value < float("inf"):
        raise BadInput(f"--tolerance {text} is no tolerance", "write latency_s=20% or clip=0.01")
    if name not in (*METRICS, *GUIDE_TOLERANCES):
        raise BadInput(f"--tolerance {text}: unknown metric {name!r}", "name a metric, performance or quality")
    if not number.endswith("%"):
        return name, Tolerance(absolute=value)
    if value >= 100:
        raise BadInput(f"--tolerance {text} would let everything pass", "give less than 100%")
    return name, Tolerance(relative=value / 100)


def _table(verdicts: Sequence[Verdict]) -> str:
    """A row a figure, with its unit; those that are missing for one and the same reason share a line below."""
    heads = ("status", "variant", "metric", "A", "B", "tolerance", "note")
    absent: dict[tuple[str, str], list[Verdict]] = {}
    for row in verdicts:
        if row.expected is None or row.measured is None:
            absent.setdefault((row.status, row.note), []).append(row)
    alike = [found for found in absent.values() if len(found) > 1]
    shared = {id(row) for found in alike for row in found}
    alone = [row for row in verdicts if id(row) not in shared]
    rows = [(row.status, row.variant, row.metric, *_figures(row), row.tolerance, row.note) for row in alone]
    told = [
        f"{found[0].status}: {', '.join(dict.fromkeys(row.metric for row in found))} of "
        f"{', '.join(dict.fromkeys(row.variant for row in found))}: {found[0].note}"
        for found in alike
    ]
    return "\n".join([*([aligned([heads, *rows])] if rows else []), *told])


def _figures(row: Verdict) -> tuple[str, str]:
    """Of A and of B."""
    unit = metric_of(row.metric).unit
    before, after = ("-" if value is None else figure(value, unit) for value in (row.expected, row.measured))
    return before, after


def _conclusion(verdicts: Sequence[Verdict], failed: Sequence[Verdict], nothing: bool) -> str:
    if nothing and any(verdict.status == "insufficient data" for verdict in verdicts):
        return "nothing could be decided: there is too little data; the notes say how much more it takes"
    if nothing:
        return "nothing could be compared: the runs are of another workload or machine, or have no figure in common"
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.status] = counts.get(verdict.status, 0) + 1
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"{'failed' if failed else 'passed'}: {said}"

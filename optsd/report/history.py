"""`optsd history`: the course of every figure over the gate's sessions, and between which commits it changed."""

import argparse
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from optsd.errors import NotFound
from optsd.judge.history import Change, Course, courses, read
from optsd.metrics import metric
from optsd.report.tables import aligned, figure, metric_of
from optsd.report.text import describe

EXAMPLES = """examples:
  optsd history                                   every figure of every machine in expected/history
  optsd history --variant int8 --metric speedup
  optsd history --changes                         those alone whose level has changed
  optsd history --json expected/history/a.jsonl

Each `pytest bench --gate` adds its readings to expected/history/<machine>.jsonl; commit it. A level has changed where
three sessions or more on either side differ by more than chance (1 %) makes of as many: docs/judging.md.

exit status: 0, whatever has changed; 2 where there is no history, or a file is none."""

HISTORY = "expected/history"
_BARS = "▁▂▃▄▅▆▇█"
_LONGEST = 40


def main(arguments: list[str]) -> int:
    """Print the courses; the exit status."""
    parser = argparse.ArgumentParser(
        prog="optsd history",
        description="How each figure went from session to session.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", metavar="FILE", type=Path, nargs="*", help=f"default: {HISTORY}/*.jsonl")
    parser.add_argument("--variant", metavar="NAME[,NAME]", help="these alone")
    parser.add_argument("--metric", metavar="NAME[,NAME]", help="these alone")
    parser.add_argument("--changes", action="store_true", help="what has changed alone")
    parser.add_argument("--json", action="store_true", help="print the courses as JSON")
    chosen = parser.parse_args(arguments)
    files = chosen.files or sorted(Path(HISTORY).glob("*.jsonl"))
    if not files:
        remedy = "run gates, which write it: pytest bench --expected-update, then --gate"
        raise NotFound(f"there is no {HISTORY}/*.jsonl", remedy)
    said, rows = [], []
    for file in files:
        found = [course for course in courses(read(file)) if _is_asked(course, chosen)]
        rows += [_as_json(file, course) for course in found]
        said += list(_told(file, found))
    print(json.dumps(rows, indent=2) if chosen.json else "\n".join(said) if said else "nothing has changed")
    return 0


def _is_asked(course: Course, chosen: argparse.Namespace) -> bool:
    variants, metrics = (each and each.split(",") for each in (chosen.variant, chosen.metric))
    named = (not variants or course.variant in variants) and (not metrics or course.metric in metrics)
    return named and (not chosen.changes or bool(course.changes))


def _told(file: Path, found: Sequence[Course]) -> Iterator[str]:
    for workload in dict.fromkeys(course.workload for course in found):
        own = [course for course in found if course.workload == workload]
        sessions = {session.created for course in own for session in course.sessions}
        yield f"{file.stem}: {describe(workload)}"
        many = f"{len(sessions)} session{'s' * (len(sessions) != 1)}"
        yield f"{many} from {min(sessions)[:10]} to {max(sessions)[:10]}"
        yield aligned([_row(course) for course in own])
        for course in own:
            for change in course.changes:
                yield from _explained(course, change)
        yield ""


def _row(course: Course) -> list[str]:
    unit = metric_of(course.metric, metric(course.metric).unit).unit
    changes = course.changes
    levels = (
        [changes[0].before, *(change.after for change in changes)] if changes else [float(np.median(course.values))]
    )
    return [course.variant, course.metric, _bars(course.values), " → ".join(figure(level, unit) for level in levels)]


def _bars(values: Sequence[float]) -> str:
    """The last forty values, the lowest and the highest of them as the ends of the scale.

    >>> _bars([1, 2, 3, 3, 1])
    '▁▄██▁'
    """
    last = values[-_LONGEST:]
    low, high = min(last), max(last)
    if low == high:
        return _BARS[3] * len(last)
    return "".join(_BARS[int((len(_BARS) - 1) * (value - low) / (high - low))] for value in last)


def _explained(course: Course, change: Change) -> Iterator[str]:
    good, bad = change.good, change.bad
    kind = "worse" if course.is_worse(change) else "better"
    by = f"{abs(change.after / change.before - 1):.1%} " if change.before else ""
    between = _commits_between(good.commit, bad.commit)
    more = f"; {', '.join(change.versions)}" if change.versions else ""
    yield (
        f"{course.variant} {course.metric}: {by}{kind} from {bad.created[:10]} on, "
        f"between {good.place} and {bad.place}{between}{more}"
    )
    if course.is_worse(change) and course.metric in ("speedup", "latency_s") and between:
        yield f"  git bisect start {bad.commit[:9]} {good.commit[:9]}"
        yield f"  git bisect run pytest bench --against {good.commit[:9]} --variant {course.variant}"


def _commits_between(good: str, bad: str) -> str:
    """` (3 commits)`; empty where git does not know them, or they are the same."""
    if not good or not bad or good == bad or not (git := shutil.which("git")):
        return ""
    done = subprocess.run([git, "rev-list", "--count", f"{good}..{bad}", "--"], capture_output=True, text=True)
    count = done.stdout.strip()
    return f" ({count} commit{'s' * (count != '1')})" if done.returncode == 0 and count not in ("", "0") else ""


def _as_json(file: Path, course: Course) -> dict:
    changes = [
        {
            "at": change.at, "before": change.before, "after": change.after, "is_worse": course.is_worse(change),
            "good": change.good.commit, "bad": change.bad.commit, "versions": change.versions,
        }
        for change in course.changes
    ]  # fmt: skip
    created = [session.created for session in course.sessions]
    return {
        "machine": file.stem, "workload": asdict(course.workload), "variant": course.variant, "metric": course.metric,
        "sessions": created, "values": list(course.values), "changes": changes,
    }  # fmt: skip

"""The JSON that github-action-benchmark reads: https://github.com/benchmark-action/github-action-benchmark.

It knows one direction a file, so there are two: `customSmallerIsBetter` and `customBiggerIsBetter`.
"""

from pathlib import Path
from typing import Any

from optsd.files import write_atomically
from optsd.judge.regressions import RECORDED
from optsd.metrics import metric
from optsd.records import Results, dumps

FILES = {"lower": "benchmark-smaller-is-better.json", "higher": "benchmark-bigger-is-better.json"}


def rows(results: Results, better: str) -> list[dict[str, Any]]:
    """Time, memory, size and quality of every variant, for the metrics with that direction ("lower", "higher")."""
    about = f"{results.workload.model}, {results.workload.device}, {results.workload.dtype}"
    found = []
    for row in results.measurements:
        if row.metric not in RECORDED or row.value is None or metric(row.metric).better != better:
            continue
        entry = {"name": f"{row.variant} {row.metric}", "unit": row.unit or "1", "value": row.value, "extra": about}
        if row.low is not None and row.high is not None:
            entry["range"] = f"{row.low:.6g} to {row.high:.6g}"
        found.append(entry)
    return found


def write(results: Results, folder: Path) -> None:
    """Write both files beside results.json."""
    for better, name in FILES.items():
        write_atomically(folder / name, dumps(rows(results, better)))

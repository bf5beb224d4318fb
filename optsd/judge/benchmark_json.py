"""Reads a finished run for comparison: this project's results.json, or the JSON of pytest-benchmark."""

import json
from pathlib import Path
from typing import Any

from optsd.errors import BadInput
from optsd.judge.statistics import median_interval
from optsd.metrics import METRICS
from optsd.records import Measurement, Results, Workload

FOREIGN = Workload("pytest-benchmark", "cpu", "unknown", steps=0, guidance=0, height=0, width=0, batch_size=0, seed=0)
"""Stands in for the workload, which pytest-benchmark's JSON does not have: names of benchmarks must say it all."""


def read_run(file: Path) -> Results:
    """Raises BadInput, naming the file, for anything that is neither of the two."""
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text)
    except (OSError, ValueError):
        return Results.read(file)  # its errors say what is wrong
    if isinstance(data, dict) and "benchmarks" in data and "schema" not in data:
        return _from_pytest_benchmark(data, file)
    return Results.from_json(text, str(file))


def _from_pytest_benchmark(data: dict[str, Any], file: Path) -> Results:
    try:
        machine = data.get("machine_info") or {}
        cpu = machine.get("cpu") or {}
        return Results(
            machine={
                "cpu": {"name": cpu.get("brand_raw") or machine.get("processor"), "logical_cores": cpu.get("count")},
                "versions": {"python": machine.get("python_version")},
            },
            workload=FOREIGN,
            measurements=tuple(row for benchmark in data["benchmarks"] for row in _measurements(benchmark)),
            created=data.get("datetime", ""),
            complete=True,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(
            f"{file} has a benchmark that pytest-benchmark would not write ({error!r})",
            "give a file of `pytest --benchmark-json=FILE`",
        ) from error


def _measurements(benchmark: dict[str, Any]) -> list[Measurement]:
    """This project's records where the benchmark carries them under `extra_info`, else its seconds."""
    extra = benchmark.get("extra_info") or {}
    ours = [row for name, row in extra.items() if name in METRICS and isinstance(row, dict)]
    if ours:
        return [Measurement(**{**row, "samples": tuple(row.get("samples", ()))}) for row in ours]
    name, statistics = benchmark["fullname"], benchmark["stats"]
    readings = tuple(statistics.get("data") or ())
    if not readings:  # saved without its readings: a median, and no way to tell noise from change
        return [Measurement(name, "latency_s", "s", statistics["median"])]
    value, low, high = median_interval(readings)
    return [Measurement(name, "latency_s", "s", value, low, high, readings)]

"""Reads a finished run for comparison: this project's results.json, or the JSON of pytest-benchmark."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from optsd.errors import BadInput
from optsd.files import parse_json, read_text
from optsd.judge.statistics import median_interval
from optsd.judge.verdicts import flaw
from optsd.metrics import METRICS
from optsd.records import Measurement, Results, Workload, read_measurements, record, unusable

FOREIGN = Workload("pytest-benchmark", "cpu", "unknown", steps=0, guidance=0, height=0, width=0, batch_size=0, seed=0)
"""Stands in for the workload, which other suites' JSON does not have: names of benchmarks must say it all."""

OURS = "optsd"
"""The key under which `pytest bench` puts its machine and its workload into pytest-benchmark's JSON."""


def as_extra_info(measurements: list[Measurement]) -> dict[str, Any]:
    """The records as they stand in pytest-benchmark's JSON, under `extra_info`."""
    return {found.metric: asdict(found) for found in measurements}


def read_run(file: Path) -> Results:
    """A run for comparison. Raises BadInput, naming the file, for anything that is neither of the two.

    A figure that is none (zero seconds, NaN, text), or that is there twice, is left out: it stands among the
    `failures`, at the stage `READING`, with the file and the reading in its reason.
    """
    text = read_text(file, "give the path of a results.json, or of a file of `pytest --benchmark-json=FILE`")
    remedy = "give a results.json that a run of `pytest bench` has written"
    data = parse_json(text, str(file), remedy, constant=float)
    if isinstance(data, dict) and "benchmarks" in data and "schema" not in data:
        return _without_flaws(_from_pytest_benchmark(data, file), file)
    return _without_flaws(Results.from_json(text, str(file), keep_going=True), file)


def _without_flaws(run: Results, file: Path) -> Results:
    counts = Counter((found.variant, found.metric) for found in run.measurements)
    kept, failures = [], {}
    for found in run.measurements:
        name = found.variant, found.metric
        problem = "it is there twice" if counts[name] > 1 else flaw(found)
        if problem:
            row = {"variant": found.variant, "metric": found.metric}
            failures[name] = unusable(row, f"{file}: {found.variant} {found.metric}: {problem}")
        else:
            kept.append(found)
    return replace(run, measurements=tuple(kept), failures=(*run.failures, *failures.values()))


def _from_pytest_benchmark(data: dict[str, Any], file: Path) -> Results:
    found: list[Measurement] = []
    failures: list[dict[str, str]] = []
    try:
        machine = data.get("machine_info") or {}
        cpu = machine.get("cpu") or {}
        about = data.get(OURS) or {}
        for benchmark in data["benchmarks"]:
            ours = _records(benchmark)
            if ours and not about:
                raise BadInput(
                    f"{file} does not say what was run: it is of an OptSD that did not write it there yet",
                    "compare the results.json of the two runs",
                )
            if ours:
                more, lost = read_measurements(ours, str(file), keep_going=True)
            else:
                more, lost = _seconds(benchmark, file)
            found += more
            failures += lost
        return Results(
            machine=about["machine"]
            if about
            else {
                "cpu": {"name": cpu.get("brand_raw") or machine.get("processor"), "logical_cores": cpu.get("count")},
                "versions": {"python": machine.get("python_version")},
            },
            workload=record(Workload, about["workload"]) if about else FOREIGN,
            measurements=tuple(found),
            failures=tuple(failures),
            created=data.get("datetime", ""),
            complete=True,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(
            f"{file} has a benchmark that pytest-benchmark would not write ({error!r})",
            "give a file of `pytest --benchmark-json=FILE`",
        ) from error


def _records(benchmark: dict[str, Any]) -> list[dict[str, Any]]:
    """This project's records, which a benchmark of `pytest bench` carries under `extra_info`."""
    extra = benchmark.get("extra_info") or {}
    return [row for name, row in extra.items() if name in METRICS and isinstance(row, dict)]


def _seconds(benchmark: dict[str, Any], file: Path) -> tuple[tuple[Measurement, ...], list[dict[str, str]]]:
    """A benchmark of any other suite: the median of its readings, or the bare median where it was saved without."""
    name, statistics = benchmark["fullname"], benchmark["stats"]
    readings = statistics.get("data") or ()
    row = {"variant": name, "metric": "latency_s", "unit": "s", "value": statistics["median"], "samples": [*readings]}
    found, failures = read_measurements([row], str(file), keep_going=True)
    if not found or not readings:
        return found, failures
    value, low, high = median_interval(readings)
    return (replace(found[0], value=value, low=low, high=high),), failures

"""Makes a machine's file from a run, or from a run and the file that is there."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from optsd.errors import BadInput
from optsd.files import write_atomically
from optsd.judge.expectations import (
    EXACT,
    GUIDE_TOLERANCES,
    NEAR_ZERO,
    Baselines,
    Row,
    Run,
    Tolerance,
    identity,
    machine_name,
)
from optsd.judge.reading import parse_baselines, read_baselines
from optsd.judge.regressions import TIMED, is_noise_floor, kernels, noise_floor, pictures_of, recorded
from optsd.ledger import FIGURES
from optsd.metrics import zero_is_a_figure
from optsd.records import Measurement, Results, dumps


def baseline_file(folder: Path, results: Results) -> Path:
    """Where the figures of the machine that made these results belong."""
    return folder / f"{machine_name(results.machine, results.workload.device)}.json"


def as_run(results: Results, previous: Run | None = None) -> Run:
    """The figures of a run that are worth recording. Tolerances that a person gave to rows of `previous` are kept.

    Of a run that was only traced nothing is kept of the machine that traced it: another one would change the file.
    """
    traced = results.workload.is_estimate
    rows = tuple(
        _row(found, found.value, pictures_of(found, results), previous)
        for found in results.measurements
        if found.metric in recorded(results.workload) and found.value is not None and not is_noise_floor(found)
    )
    return Run(
        workload=results.workload,
        created=results.created,
        rounds=max((len(row.samples) for row in rows), default=0),
        identity=identity(results.machine, results.workload.device),
        versions={} if traced else dict(results.machine.get("versions") or {}),
        kernels={} if traced else kernels(results),
        noise_floor=noise_floor(results),
        load={} if traced else dict(results.machine.get("load") or {}),
        rows=rows,
    )


def as_baselines(results: Results, file: str, tolerance: Mapping[str, Tolerance] = GUIDE_TOLERANCES) -> Baselines:
    """A finished run, to be compared with as a machine's file is."""
    return Baselines(file, machine_name(results.machine, results.workload.device), dict(tolerance), (as_run(results),))


def update(file: Path, results: Results) -> Baselines:
    """Write what the run measured into the machine's file, which is made if need be.

    Variants that this run did not measure keep their rows, when these come from the same machine and versions.
    Raises BadInput for a run without a figure, for one with a figure that no gate could read again (a time of zero,
    a figure measured twice), and for a file that is there and wrong; nothing is written then.
    """
    now = read_baselines(file) if file.exists() else None
    previous = now.run(results.workload) if now else None
    run = as_run(results, previous)
    if not run.rows:
        raise BadInput("this run measured nothing that could be recorded", "run the benches: pytest bench")
    if previous and previous.identity == run.identity:
        measured = {row.variant for row in run.rows}
        kept = tuple(row for row in previous.rows if row.variant not in measured)
        known = {row.variant: previous.kernels[row.variant] for row in kept if row.variant in previous.kernels}
        run = replace(run, rows=run.rows + kept, kernels=known | run.kernels)
    others = tuple(other for other in now.runs if other.workload != run.workload) if now else ()
    name = machine_name(results.machine, results.workload.device)
    tolerance = now.tolerance if now else dict(EXACT if results.workload.is_estimate else GUIDE_TOLERANCES)
    written = Baselines(str(file), name, tolerance, (*others, run))
    _refuse_twice(run)
    try:
        text = dumps(written.to_json())
        checked = parse_baselines(file, text)
    except (BadInput, ValueError) as error:
        said, remedy = (error.problem, error.remedy) if isinstance(error, BadInput) else (str(error), "run it again")
        raise BadInput(f"this run cannot be recorded: {said}", remedy) from error
    write_atomically(file, text)
    return checked


def _refuse_twice(run: Run) -> None:
    counts = Counter((row.variant, row.metric) for row in run.rows)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise BadInput(
            f"this run cannot be recorded: it has {' '.join(twice)} twice, and does not say which figure holds",
            "let every bench run once, without reruns",
        )


def _row(found: Measurement, value: float, pictures: int | None, previous: Run | None) -> Row:
    before = previous.row(found.variant, found.metric) if previous else None
    tolerance = before.tolerance if before else None
    near_zero = found.metric in NEAR_ZERO or found.metric in FIGURES  # whose tolerances are absolute
    if value <= 0 and zero_is_a_figure(found.metric) and not near_zero and tolerance is None:
        tolerance = Tolerance(absolute=0.01)
    samples = found.samples if found.metric in TIMED else ()
    return Row(found.variant, found.metric, value, found.low, found.high, samples, tolerance, pictures)

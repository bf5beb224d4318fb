"""Whether several runs of the same measurement agree: in their figures, and in every pixel of their images."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from optsd.errors import BadInput
from optsd.judge.expectations import GUIDE_TOLERANCES, Tolerance, tolerance_for
from optsd.judge.regressions import RECORDED, is_noise_floor
from optsd.records import Results, Verdict


def judge_repeats(runs: Sequence[Results], folders: Sequence[Path]) -> tuple[Verdict, ...]:
    """`agrees` or `differs` for each figure, and for each variant's images; `folders` hold the runs' results.json.

    Figures may differ by their tolerance; images of the same variant, prompt and seed may not differ at all. What one
    run measured and another did not is `not measured`.
    """
    if len(runs) < 2:
        raise BadInput("one run repeats nothing", "give at least --repeat 2")
    names = dict.fromkeys(
        (found.variant, found.metric)
        for run in runs
        for found in run.measurements
        if found.metric in RECORDED and not is_noise_floor(found)
    )
    figures = [_figure(variant, name, runs) for variant, name in names]
    variants = dict.fromkeys(row["variant"] for run in runs for row in run.images)
    return (*figures, *(_images(variant, runs, folders) for variant in variants))


def _figure(variant: str, name: str, runs: Sequence[Results]) -> Verdict:
    found = [run.get(variant, name) for run in runs]
    values = [measurement.value for measurement in found if measurement and measurement.value is not None]
    tolerance = tolerance_for(name, GUIDE_TOLERANCES)
    if len(values) < len(runs):
        note = f"measured in {len(values)} of {len(runs)} runs"
        return _verdict(variant, name, "not measured", values, str(tolerance), runs, note)
    spread, allowed = max(values) - min(values), tolerance.around(min(values, key=abs))
    if tolerance.absolute is None and min(values) <= 0:
        spread, allowed = max(values) - min(values), Tolerance(absolute=0.01).around(0)
    status = "agrees" if spread <= allowed else "differs"
    return _verdict(variant, name, status, values, str(tolerance), runs, ", ".join(f"{value:.5g}" for value in values))


def _images(variant: str, runs: Sequence[Results], folders: Sequence[Path]) -> Verdict:
    pictures = [_digests(variant, run, folder) for run, folder in zip(runs, folders, strict=True)]
    same = set(pictures[0]).intersection(*pictures[1:])
    missing = len(set().union(*pictures)) - len(same)
    different = [key for key in same if len({run[key] for run in pictures}) > 1]
    note = f"{len(same) - len(different)} of {len(same)} pictures are identical in {len(runs)} runs"
    if missing:
        note += f", {missing} were not made in every run"
    status = "differs" if different else "not measured" if missing or not same else "agrees"
    return Verdict(variant, "images", status, None, None, "identical", f"{len(runs)} runs of --repeat", note)


def _digests(variant: str, run: Results, folder: Path) -> dict[tuple, str]:
    digests = {}
    for row in run.images:
        if row["variant"] != variant:
            continue
        file = (folder / row["file"]).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise BadInput(f"{folder}/results.json names an image outside its folder", "make the run again")
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise BadInput(f"cannot read the image {file} ({error.strerror})", "make the run again") from error
        digests[row.get("prompt"), row.get("seed"), row.get("index")] = digest
    return digests


def _verdict(
    variant: str, name: str, status: str, values: list[float], tolerance: str, runs: Sequence[Results], note: str
) -> Verdict:
    first, last = (values[0], values[-1]) if values else (None, None)
    return Verdict(variant, name, status, last, first, tolerance, f"{len(runs)} runs of --repeat", note)

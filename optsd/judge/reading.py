"""Reads the files of expectations.

A mistake in one is an error that names the file, the row and the remedy, never a row that quietly judges nothing.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from optsd.errors import BadInput
from optsd.files import parse_json, read_text, refuse_number
from optsd.judge.expectations import (
    SCHEMA,
    Baselines,
    Claim,
    Claims,
    Row,
    Run,
    Tolerance,
    tolerance_for,
)
from optsd.metrics import METRICS, metric, zero_is_a_figure
from optsd.records import Workload, is_finite, record
from optsd.variants import canonical

_PROMPTS = ("prompts", "reference")
"""Of a workload: what its pictures are of, and compared with; empty for the standard ones."""


def read_claims(file: Path) -> Claims:
    """The claims of a file that are about one workload, such as the guide's. Raises BadInput as `read_all_claims` does,
    and where the file has several workloads, or none that a run can be judged by.
    """
    groups = read_all_claims(file)
    if len(groups) != 1:
        raise BadInput(f"{file} has claims of {len(groups)} workloads", "use read_all_claims, or a file with one")
    return groups[0]


def read_all_claims(file: Path) -> tuple[Claims, ...]:
    """What a run can be judged by, workload by workload; files of schema 1 are read as well.

    Raises BadInput, naming file, row and remedy, for anything that is not as the schema says.
    """
    from optsd.claims import files  # `optsd compare` reads no claims, and starts sooner without
    from optsd.judge.published import DEFAULT_TOLERANCE, as_expectations

    data = files.load(file)
    if data.get("schema") == files.SCHEMA:
        published = files.from_data(data, file)
        _tolerances(file, published.tolerance or DEFAULT_TOLERANCE)
        return tuple(_claims(file, group) for group in as_expectations(published))
    _is_of_schema_1(file, data)
    _keys(file, "the file", data, "schema guide workload images models tolerance claims", optional="$schema")
    workload = data["workload"]
    known = {field.name for field in fields(Workload)} - {"model", "seed", *_PROMPTS}
    _keys(file, "workload", workload, known)
    _workload(file, "workload", {"model": "any", **workload})
    models = data["models"]
    _keys(file, "models", models, "performance quality")
    for kind, names in models.items():
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            _refuse(file, f"models {kind}", f"{names!r} is no list of models", "name at least one")
    if not isinstance(data["images"], int) or isinstance(data["images"], bool) or data["images"] < 1:
        _refuse(file, "images", f"{data['images']!r} is no number of pictures", "give a whole number above zero")
    return (_claims(file, data),)


def _claims(file: Path, data: Mapping[str, Any]) -> Claims:
    """Claims of one workload."""
    _keys(file, "models", data["models"], "performance quality")
    tolerances = _tolerances(file, data["tolerance"])
    claims = [_claim(file, where, row, tolerances) for where, row in _rows(file, "claims", data["claims"])]
    _refuse_duplicates(file, ((f"{claim.variant} {claim.metric}", claim.source) for claim in claims))
    return Claims(
        file=str(file),
        guide=str(data["guide"]),
        workload=data["workload"],
        images=data["images"],
        models={kind: tuple(names) for kind, names in data["models"].items()},
        claims=tuple(claims),
        machine=data.get("machine", ""),
        unstated=tuple(data.get("unstated", ())),
    )


def read_baselines(file: Path) -> Baselines:
    """A machine's recorded figures. Raises BadInput as `read_claims` does."""
    return parse_baselines(file, read_text(file, "give the path of an expectations file"))


def parse_baselines(file: Path, text: str) -> Baselines:
    """What `read_baselines` makes of a file with this text, which need not be there yet."""
    data = _parse(file, text)
    _keys(file, "the file", data, "schema machine tolerance runs", optional="$schema")
    if not isinstance(data["machine"], str) or not data["machine"]:
        _refuse(file, "machine", "it is no name of a machine", "record the file with --expected-update")
    tolerances = _tolerances(file, data["tolerance"])
    runs = [_run(file, where, run, tolerances) for where, run in _rows(file, "runs", data["runs"])]
    _refuse_duplicates(file, ((f"workload {json.dumps(asdict(run.workload))}", "runs") for run in runs))
    return Baselines(str(file), data["machine"], tolerances, tuple(runs))


def _claim(file: Path, where: str, row: dict[str, Any], tolerances: dict[str, Tolerance]) -> Claim:
    _keys(file, where, row, "variant metric source", optional="expected at_least at_most from to tolerance label")
    variant, name = _variant_and_metric(file, where, row)
    where = f"{where} ({variant} {name})"
    given = {key for key in ("expected", "at_least", "at_most", "from", "to") if key in row}
    if given not in ({"expected"}, {"at_least"}, {"at_most"}, {"from", "to"}):
        _refuse(file, where, "it says no single expectation", "give one of expected, at_least, at_most, or from and to")
    tolerance = _tolerance(file, where, row["tolerance"]) if "tolerance" in row else tolerance_for(name, tolerances)
    for key in given:
        _figure(file, where, key, row[key], name, tolerance)
    low = row.get("expected", row.get("at_least", row.get("from")))
    high = row.get("expected", row.get("at_most", row.get("to")))
    if low is not None and high is not None and low > high:
        _refuse(file, where, f"from {low:g} is above to {high:g}", "swap them")
    if not isinstance(row["source"], str) or not row["source"].strip():
        _refuse(file, where, "it has no source", "name the table or sentence of the guide")
    return Claim(variant, name, low, high, tolerance, row["source"], row.get("label", ""))


def _run(file: Path, where: str, run: dict[str, Any], tolerances: dict[str, Tolerance]) -> Run:
    _keys(file, where, run, "workload created rounds identity versions kernels noise_floor load rows", "others")
    required = {field.name for field in fields(Workload)} - {*_PROMPTS}  # files that were recorded before have none
    _keys(file, f"{where} workload", run["workload"], required, " ".join(_PROMPTS))
    others = run.get("others", [])
    if not isinstance(others, list) or not all(isinstance(name, str) for name in others):
        _refuse(file, f"{where} others", "it is no list of names", "record the file again with --expected-update")
    workload = _workload(file, f"{where} workload", run["workload"])
    for key, kind in (("created", str), ("rounds", int)):
        if not isinstance(run[key], kind):
            _refuse(file, f"{where} {key}", f"it is {run[key]!r}", "record the file again with --expected-update")
    for key in ("identity", "versions", "kernels", "load"):
        if not isinstance(run[key], dict):
            _refuse(file, f"{where} {key}", "it is no table", "record the file again with --expected-update")
    _number(file, where, "noise_floor", run["noise_floor"])
    rows = [_row(file, f"{where} {place}", row, tolerances, others) for place, row in _rows(file, "rows", run["rows"])]
    _refuse_duplicates(file, ((f"{row.variant} {row.metric}", f"{where} rows") for row in rows))
    known = {key: value for key, value in run.items() if key != "others"}
    return Run(**{**known, "workload": workload, "rows": tuple(rows)})


def _row(file: Path, where: str, row: dict[str, Any], tolerances: dict[str, Tolerance], others: Collection[str]) -> Row:
    _keys(file, where, row, "variant metric value", optional="low high samples tolerance pictures")
    variant, name = _variant_and_metric(file, where, row, others)
    where = f"{where} ({variant} {name})"
    tolerance = _tolerance(file, where, row["tolerance"]) if "tolerance" in row else None
    samples = row.get("samples", [])
    if not isinstance(samples, list):
        _refuse(file, where, "samples is no list", "record the file again with --expected-update")
    judged = tolerance or tolerance_for(name, tolerances)
    _figure(file, where, "value", row["value"], name, judged)
    for key in {"low", "high"} & set(row):  # of a figure above zero, the interval may reach it
        _number(file, where, key, row[key])
    for figure in samples:
        _figure(file, where, "samples", figure, name, judged)
    pictures = row.get("pictures")
    if pictures is not None and (type(pictures) is not int or pictures < 1):
        _refuse(file, where, f"pictures is {pictures!r}", "record the file again with --expected-update")
    return Row(variant, name, row["value"], row.get("low"), row.get("high"), tuple(samples), tolerance, pictures)


def _parse(file: Path, text: str) -> dict[str, Any]:
    data = parse_json(text, str(file), "restore it from version control", lambda name: refuse_number(file, name))
    return _is_of_schema_1(file, data)


def _is_of_schema_1(file: Path, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise BadInput(f"{file} is no expectations file of schema {SCHEMA}", f'begin it with {{"schema": {SCHEMA}}}')
    return data


def _rows(file: Path, name: str, rows: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    if not isinstance(rows, list):
        _refuse(file, name, "it is no list", "give a list of rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            _refuse(file, f"{name} row {number}", "it is no table", "give keys and values")
        yield f"{name} row {number}", row


def _keys(file: Path, where: str, row: Any, required: str | set[str], optional: str = "") -> None:
    needed = set(required.split()) if isinstance(required, str) else required
    if not isinstance(row, dict):
        _refuse(file, where, "it is no table", f"give the keys {', '.join(sorted(needed))}")
    known = needed | set(optional.split())
    if unknown := sorted(set(row) - known):
        _refuse(file, where, f"unknown key {unknown[0]!r}", f"use {', '.join(sorted(known))}")
    if missing := sorted(needed - set(row)):
        _refuse(file, where, f"{missing[0]!r} is missing", "add it")


def _variant_and_metric(file: Path, where: str, row: dict[str, Any], others: Collection[str] = ()) -> tuple[str, str]:
    """`others`: names that the file itself says to be of no technique that is known here."""
    try:
        variant = row["variant"] if row["variant"] in others else canonical(str(row["variant"]))
    except BadInput as error:
        _refuse(file, where, error.problem, error.remedy)
    if variant != row["variant"]:
        _refuse(file, where, f"{row['variant']!r} is another name of {variant}", f"write {variant}")
    try:
        metric(row["metric"])
    except (KeyError, AttributeError):
        _refuse(file, where, f"unknown metric {row['metric']!r}", "use a name of optsd/metrics.py")
    return variant, row["metric"]


def _workload(file: Path, where: str, data: dict[str, Any]) -> Workload:
    try:
        return record(Workload, data)
    except TypeError as error:
        _refuse(file, where, str(error), "write it as a results.json has it")


def _number(file: Path, where: str, key: str, value: Any) -> None:
    if not is_finite(value):
        _refuse(file, where, f"{key} {value!r:.60} is no number", "record a measured one, or remove the row")


def _figure(file: Path, where: str, key: str, value: Any, name: str, tolerance: Tolerance) -> None:
    _number(file, where, key, value)
    if value <= 0 and (not zero_is_a_figure(name) or tolerance.absolute is None):
        _refuse(
            file,
            where,
            f"{key} {value:g} is not above zero and would hide any regression",
            "record a measured one, or give the row an absolute tolerance"
            if zero_is_a_figure(name)
            else "record a measured one, or remove the row",
        )


def _tolerances(file: Path, data: Any) -> dict[str, Tolerance]:
    """By kind, both of which must be there, and by the name of a metric."""
    _keys(file, "tolerance", data, "performance quality", optional=" ".join(METRICS))
    return {name: _tolerance(file, f"tolerance {name}", data[name]) for name in data}


def _tolerance(file: Path, where: str, data: Any) -> Tolerance:
    if not isinstance(data, dict) or len(data) != 1 or not set(data) <= {"relative", "absolute"}:
        _refuse(file, where, "its tolerance is not one number", 'write {"relative": 0.1} or {"absolute": 0.02}')
    ((key, value),) = data.items()
    most = 1 if key == "relative" else math.inf  # 10 for 10 % would let everything pass
    if not is_finite(value) or not 0 <= value < most:
        _refuse(file, where, f"{key} tolerance {value!r} is out of range", "write 0.1 for ±10 %")
    return Tolerance(**data)


def _refuse_duplicates(file: Path, names: Iterable[tuple[str, str]]) -> None:
    seen: set[tuple[str, str]] = set()
    for name, where in names:
        if (name, where) in seen:
            _refuse(file, where, f"{name} is there twice", "remove one of the two rows")
        seen.add((name, where))


def _refuse(file: Path, where: str, problem: str, remedy: str) -> NoReturn:
    raise BadInput(f"{file}: {where}: {problem}", remedy)

"""Plain data that measuring, judging and reporting hand to each other, and its JSON. Imports no torch."""

import dataclasses
import json
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optsd.errors import BadInput
from optsd.files import parse_json, read_text

SCHEMA = 1
READING = "reading"
"""The stage of a failure that is about a file: a figure of it is no figure."""


@dataclass(frozen=True)
class Workload:
    """What was run. Two figures are comparable only when their workloads are equal."""

    model: str
    device: str  # "cpu" or "cuda", which one is the machine's business; "estimate:a100" where nothing was run
    dtype: str  # "float32", "float16", "bfloat16"
    steps: int
    guidance: float
    height: int  # pixels
    width: int
    batch_size: int
    seed: int = 42
    prompts: str = ""  # of the pictures: "" the model's standard ones, else a set's name, or the hash of a file's
    reference: str = ""  # "": what belongs to the prompts, else the hash of the pictures that are compared with

    @property
    def is_estimate(self) -> bool:
        return self.device.startswith("estimate")


@dataclass(frozen=True)
class Measurement:
    """One figure of one variant. `value` None means not measured, and `note` then says why; never 0 in its place.

    `low` and `high` bound a 95 % confidence interval; `samples` are the single readings, in order.
    """

    variant: str
    metric: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    samples: tuple[float, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for number in (self.value, self.low, self.high, *self.samples):
            if number is not None and not is_finite(number):
                raise BadInput(
                    f"{self.variant} {self.metric}: {number!r} is no measurement", "record None and say why in the note"
                )
        if self.value is None and not self.note:
            raise BadInput(f"{self.variant} {self.metric} has no value", "say in its note why it was not measured")


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one figure. `source` names the file and row of the expectation."""

    variant: str
    metric: str
    status: str
    measured: float | None
    expected: float | None
    tolerance: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Technique:
    """What one variant really changed, and the evidence that it was active while it was measured."""

    variant: str
    exact: bool | None  # None: of a subject that is none of ours, nobody here knows
    touched: tuple[str, ...]
    proof: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """Everything that one run found out: the contents of results.json."""

    machine: dict[str, Any]
    workload: Workload
    measurements: tuple[Measurement, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    techniques: tuple[Technique, ...] = ()
    images: tuple[dict[str, Any], ...] = ()  # {"variant", "prompt", "seed", "file"}, file relative to results.json
    failures: tuple[dict[str, str], ...] = ()  # {"variant", "stage", "reason"}
    bounds: tuple[dict[str, Any], ...] = ()  # claimed, possible at best, measured: rows of optsd.estimate.bounds
    command: str = ""
    created: str = ""  # ISO 8601, UTC
    complete: bool = False  # False until the run has ended by itself

    def get(self, variant: str, metric: str) -> Measurement | None:
        for measurement in self.measurements:
            if (measurement.variant, measurement.metric) == (variant, metric):
                return measurement
        return None

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants in the order in which they were measured."""
        return tuple(dict.fromkeys(measurement.variant for measurement in self.measurements))

    def to_json(self) -> str:
        return dumps({"schema": SCHEMA, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str, source: str = "results", keep_going: bool = False) -> "Results":
        """Raises BadInput, naming `source`, for anything that is not a results file of this schema.

        With `keep_going` a measurement that is none becomes one of the `failures`, at the stage `READING`, and the
        others are kept.
        """
        remedy = "give a results.json that a run of `pytest bench` has written"
        data = parse_json(text, source, remedy, constant=float if keep_going else None)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise BadInput(f"{source} is no results file of schema {SCHEMA}", remedy)
        measurements, failures = read_measurements(data.get("measurements"), source, keep_going)
        try:
            found = cls(
                machine=_machine(data["machine"]),
                workload=record(Workload, data["workload"]),
                measurements=measurements,
                verdicts=tuple(record(Verdict, row) for row in _rows(data, "verdicts")),
                techniques=tuple(record(Technique, row) for row in _rows(data, "techniques")),
                images=tuple(_strings(row, "variant", "file") for row in _rows(data, "images")),
                failures=(*(_strings(row, *row) for row in _rows(data, "failures")), *failures),
                bounds=tuple(_typed(row, dict) for row in _rows(data, "bounds")),
                command=_typed(data.get("command", ""), str),
                created=_typed(data.get("created", ""), str),
                complete=_typed(data.get("complete", False), bool),
            )
            found.to_json()  # NaN and 1e999 in what nobody looks at, until it is written
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{source} has a row that does not fit the schema ({error!r})", remedy) from error
        return found

    @classmethod
    def read(cls, file: Path) -> "Results":
        return cls.from_json(read_text(file, "give the path of a results.json"), str(file))


def read_measurements(
    rows: Any, source: str, keep_going: bool = False
) -> tuple[tuple[Measurement, ...], list[dict[str, str]]]:
    """Measurements from their JSON, and with `keep_going` a failure for each that is none, instead of BadInput."""
    found, failures = [], []
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        try:
            found.append(record(Measurement, row))
        except (KeyError, TypeError, ValueError) as error:
            name = f"measurement {number}"
            if isinstance(row, dict) and {"variant", "metric"} <= set(row):
                name += f" ({row['variant']} {row['metric']})"
            problem = f"{source} has a row that does not fit the schema ({name}: {error})"
        except BadInput as error:
            problem = f"{source}: {error.problem}"
        else:
            continue
        if not keep_going:
            raise BadInput(problem, "remove the row, or make the run again")
        failures.append(unusable(row if isinstance(row, dict) else {}, problem))
    return tuple(found), failures


def unusable(row: dict[str, Any], reason: str) -> dict[str, str]:
    """One of the `failures` of a run: a figure that its file has, and that is none."""
    about = {name: str(row.get(name) or "") for name in ("variant", "metric")}
    return {**about, "stage": READING, "reason": reason}


def is_finite(number: Any) -> bool:
    """Whether this is a number, and one that a float can hold."""
    try:
        return isinstance(number, numbers.Real) and not isinstance(number, bool) and math.isfinite(number)
    except OverflowError:
        return False


def record(kind: Callable[..., Any], row: Any) -> Any:
    """A dataclass of this module from its JSON. Raises TypeError, naming the field, for a value of another type."""
    values = dict(_typed(row, dict))
    for about in dataclasses.fields(kind):  # type: ignore[arg-type]
        if about.name in values:
            values[about.name] = _FROM_JSON[about.type](values[about.name], about.name)
    return kind(**values)


def _machine(data: Any) -> dict[str, Any]:
    """A machine's description, of which the judge looks into these parts."""
    for name in ("cpu", "versions", "threads", "load"):
        _typed(_typed(data, dict).get(name) or {}, dict)
    for gpu in _typed(data.get("gpus") or [], list):
        _typed(gpu, dict)
    return data


def _typed(value: Any, kind: Any, name: str = "it") -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r:.60}, not {kind.__name__}")
    return value


def _number(value: Any, name: str) -> float:
    if not is_finite(value):
        raise TypeError(f"{name} is {value!r:.60}, not a number")
    return value


_FROM_JSON: dict[Any, Callable[[Any, str], Any]] = {
    str: lambda value, name: _typed(value, str, name),
    bool: lambda value, name: _typed(value, bool, name),
    bool | None: lambda value, name: None if value is None else _typed(value, bool, name),
    int: lambda value, name: _typed(_number(value, name), int, name),
    float: _number,
    float | None: lambda value, name: None if value is None else _number(value, name),
    tuple[float, ...]: lambda value, name: tuple(
        _number(reading, f"reading {number}") for number, reading in enumerate(_typed(value, list, name), 1)
    ),
    tuple[str, ...]: lambda value, name: tuple(_typed(word, str, name) for word in _typed(value, list, name)),
    dict[str, Any]: lambda value, name: _typed(value, dict, name),
}


def _rows(data: dict[str, Any], name: str) -> list[Any]:
    return _typed(data.get(name, []), list, name)


def _strings(row: Any, *names: str) -> dict[str, Any]:
    """A table in which these are text."""
    for name in names:
        _typed(_typed(row, dict)[name], str, name)
    return row


def dumps(data: Any) -> str:
    """JSON as every file of this project has it: indented, keys as given, NaN refused, newline at the end.

    Half of a surrogate pair, as an argument that is not UTF-8 has it, is written as JSON's own escape.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

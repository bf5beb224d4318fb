"""Plain data that measuring, judging and reporting hand to each other, and its JSON. Imports no torch."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optsd.errors import BadInput

SCHEMA = 1


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
            if number is not None and not math.isfinite(number):
                raise BadInput(
                    f"{self.variant} {self.metric}: {number} is no measurement", "record None and say why in the note"
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
    exact: bool
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
    def from_json(cls, text: str, source: str = "results") -> "Results":
        """Raises BadInput, naming `source`, for anything that is not a results file of this schema."""
        remedy = "give a results.json that a run of `pytest bench` has written"
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            raise BadInput(f"{source} is no JSON ({error})", remedy) from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise BadInput(f"{source} is no results file of schema {SCHEMA}", remedy)
        try:
            return cls(
                machine=data["machine"],
                workload=Workload(**data["workload"]),
                measurements=tuple(
                    Measurement(**{**row, "samples": tuple(row.get("samples", ()))}) for row in data["measurements"]
                ),
                verdicts=tuple(Verdict(**row) for row in data.get("verdicts", ())),
                techniques=tuple(
                    Technique(**{**row, "touched": tuple(row["touched"])}) for row in data.get("techniques", ())
                ),
                images=tuple(data.get("images", ())),
                failures=tuple(data.get("failures", ())),
                bounds=tuple(data.get("bounds", ())),
                command=data.get("command", ""),
                created=data.get("created", ""),
                complete=data.get("complete", False),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{source} has a row that does not fit the schema ({error!r})", remedy) from error

    @classmethod
    def read(cls, file: Path) -> "Results":
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot read {file} ({error})", "give the path of a results.json") from error
        return cls.from_json(text, str(file))


def dumps(data: Any) -> str:
    """JSON as every file of this project has it: indented, keys as given, NaN refused, newline at the end."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")

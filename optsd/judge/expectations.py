"""What is expected: the guide's claims, and a machine's own recorded figures. Two questions, two kinds of files.

`optsd.judge.reading` reads them; `expected/schema/` describes them for editors.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optsd.metrics import metric
from optsd.records import Workload
from optsd.variants import is_ours

SCHEMA = 1


@dataclass(frozen=True)
class Tolerance:
    """How far a figure may be off: a share of the expected one, or so much in its own unit. Exactly one is given."""

    relative: float | None = None
    absolute: float | None = None

    def around(self, expected: float) -> float:
        """The tolerance in the unit of the figure."""
        return self.absolute if self.absolute is not None else abs(expected) * (self.relative or 0.0)

    def __str__(self) -> str:
        return f"±{self.absolute:g}" if self.absolute is not None else f"±{(self.relative or 0) * 100:g} %"


GUIDE_TOLERANCES = {"performance": Tolerance(relative=0.10), "quality": Tolerance(relative=0.05)}
"""±10 % and ±5 %, as the guide has them."""


EXACT = {"performance": Tolerance(absolute=0.0), "quality": Tolerance(absolute=0.0)}
"""Of what is counted, and not measured: nothing."""

NEAR_ZERO = {
    "kid": Tolerance(absolute=0.002),
    "kid_shapes": Tolerance(absolute=0.002),
    "lpips": Tolerance(absolute=0.01),
    "lpips_shapes": Tolerance(absolute=0.01),
    "ssim": Tolerance(absolute=0.01),
    "psnr_db": Tolerance(absolute=1.0),
}
"""Metrics that are compared with the baseline's own image, or are near zero: 5 % of next to nothing is nothing."""


def tolerance_for(name: str, tolerances: Mapping[str, Tolerance]) -> Tolerance:
    """A metric's tolerance: the one that is given for it by name, its default above, or the one of its kind."""
    return tolerances.get(name) or NEAR_ZERO.get(name) or tolerances[metric(name).kind]


@dataclass(frozen=True)
class Claim:
    """One figure of a source: `low` = `high` for "1.39×", both for "1.3 to 1.4", one of them for "at least 0.30"."""

    variant: str
    metric: str
    low: float | None
    high: float | None
    tolerance: Tolerance
    source: str
    label: str = ""  # "guide 5": the file and the number in it, where it is of schema 2


@dataclass(frozen=True)
class Claims:
    """A source's figures of one workload, and that workload."""

    file: str
    guide: str
    workload: dict[str, Any]  # the fields of Workload that must be equal; the model is `models`' business
    images: int | None  # None: unstated
    models: dict[str, tuple[str, ...]]  # by kind of metric: models on which such a figure means what it says; (): any
    claims: tuple[Claim, ...]
    machine: str = ""  # the GPU or CPU that they name; "": any
    unstated: tuple[str, ...] = ()  # what of the workload the source leaves open


@dataclass(frozen=True)
class Row:
    """One recorded figure of one variant. `samples` are its readings, where it was timed; `pictures`, of how many."""

    variant: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    samples: tuple[float, ...] = ()
    tolerance: Tolerance | None = None
    pictures: int | None = None  # None: none, or unknown


@dataclass(frozen=True)
class Run:
    """The figures of one workload, recorded in one run; `rows` are all of the same session."""

    workload: Workload
    created: str
    rounds: int
    identity: dict[str, Any]  # what must be equal for two speeds to be comparable
    versions: dict[str, str]  # for the reader: not all of them decide
    kernels: dict[str, str]  # variant -> the attention kernel that ran
    noise_floor: float  # of baseline ÷ baseline: how far the whole interval lies from 1
    load: dict[str, Any]  # what other processes used of the machine meanwhile
    rows: tuple[Row, ...]

    def row(self, variant: str, name: str) -> Row | None:
        return next((row for row in self.rows if (row.variant, row.metric) == (variant, name)), None)


@dataclass(frozen=True)
class Baselines:
    """One machine's file: a run for each workload that was recorded."""

    file: str
    machine: str
    tolerance: dict[str, Tolerance]  # by kind, "performance" and "quality", and by metric
    runs: tuple[Run, ...] = ()

    def run(self, workload: Workload) -> Run | None:
        return next((run for run in self.runs if run.workload == workload), None)

    def tolerance_of(self, row: Row) -> Tolerance:
        return row.tolerance or tolerance_for(row.metric, self.tolerance)

    def to_json(self) -> dict[str, Any]:
        """Sorted, and without what has its default, so that a change of the file shows what changed."""
        return {
            "$schema": "../schema/baselines.schema.json",
            "schema": SCHEMA,
            "machine": self.machine,
            "tolerance": {kind: _lean(asdict(self.tolerance[kind])) for kind in sorted(self.tolerance)},
            "runs": [
                asdict(run) | _others(run) | {"rows": [_row_json(row) for row in sorted(run.rows, key=_place)]}
                for run in sorted(self.runs, key=lambda run: json.dumps(asdict(run.workload), sort_keys=True))
            ],
        }


def machine_name(machine: Mapping[str, Any], device: str) -> str:
    """What a machine's file is called: by its GPU for runs on one, else by its CPU and the number of cores."""
    gpus = machine.get("gpus") or []
    if device.startswith("estimate"):
        name = device  # whatever machine traced it
    elif device == "cuda" and gpus:
        name = str(gpus[0].get("name"))
    else:
        cpu = machine.get("cpu") or {}
        name = f"{cpu.get('name') or 'unknown'}-{cpu.get('usable_cores') or cpu.get('logical_cores') or 0}-cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def identity(machine: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What must be equal for two figures to be comparable: the device, its driver, torch, and on a CPU the threads."""
    versions, cpu = machine.get("versions") or {}, machine.get("cpu") or {}
    same: dict[str, Any] = {"machine": machine_name(machine, device), "torch": versions.get("torch")}
    if device.startswith("estimate"):  # which operators run is decided by the libraries alone
        libraries = {name: versions.get(name) for name in ("torch", "diffusers", "transformers", "triton")}
        return same | {name: version and version.partition("+")[0] for name, version in libraries.items()}
    gpus = machine.get("gpus") or []
    if device == "cuda":
        return same | {"driver": gpus[0].get("driver") if gpus else None, "cuda": versions.get("cuda")}
    return same | {"flags": cpu.get("flags"), "threads": (machine.get("threads") or {}).get("torch")}


def _others(run: Run) -> dict[str, list[str]]:
    """The subjects and the techniques of other packages: who reads the file need not have them."""
    names = sorted({row.variant for row in run.rows if not is_ours(row.variant)})
    return {"others": names} if names else {}


def _place(row: Row) -> tuple[str, str]:
    return row.variant, row.metric


def _row_json(row: Row) -> dict[str, Any]:
    data = _lean(asdict(row))
    return data | ({"tolerance": _lean(data["tolerance"])} if row.tolerance else {})


def _lean(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None and value != ()}

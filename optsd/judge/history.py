"""What each gate has read, a line a session in `history/<machine>.jsonl`; and where a figure's level changed."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from optsd.errors import BadInput
from optsd.files import read_text, write_atomically
from optsd.judge.expectations import machine_name
from optsd.judge.regressions import is_noise_floor, recorded
from optsd.metrics import METRICS, metric
from optsd.records import Results, Verdict, Workload

FEWEST_AROUND = 3
"""Sessions on either side of a change: fewer say nothing of a level."""
LEVEL, PERMUTATIONS = 0.01, 999
_PARTS = {"created", "commit", "changed_files", "versions", "workload", "readings", "regressed"}


def append(folder: Path, results: Results, verdicts: Sequence[Verdict], git: Mapping[str, Any]) -> Path:
    """Add a session to its machine's file in `folder`, made if need be. Raises BadInput for a file that is none.

    `git`: the `commit` of the project whose gate it is, and how many `changed_files` differ from it.
    """
    file = folder / f"{machine_name(results.machine, results.workload.device)}.jsonl"
    before = [json.dumps(asdict(session)) for session in read(file)] if file.exists() else []
    write_atomically(file, "\n".join([*before, json.dumps(asdict(_session(results, verdicts, git)))]) + "\n")
    return file


@dataclass(frozen=True)
class Session:
    """One run of a gate: `readings` are value, low and high by `variant metric`; `regressed` names the alarms."""

    created: str
    commit: str
    changed_files: int
    versions: dict[str, str]
    workload: dict[str, Any]
    readings: dict[str, tuple[float, float | None, float | None]]
    regressed: tuple[str, ...]

    @property
    def place(self) -> str:
        """Of the code that was measured: a commit, with a + where files differed from it."""
        return (self.commit[:9] or "?") + "+" * bool(self.changed_files)


def _session(results: Results, verdicts: Sequence[Verdict], git: Mapping[str, Any]) -> Session:
    return Session(
        created=results.created,
        commit=str(git.get("commit") or ""),
        changed_files=int(git.get("changed_files") or 0),
        versions=dict(results.machine.get("versions") or {}),
        workload=asdict(results.workload),
        readings={
            f"{row.variant} {row.metric}": (row.value, row.low, row.high)
            for row in results.measurements
            if row.metric in recorded(results.workload) and row.value is not None and not is_noise_floor(row)
        },
        regressed=tuple(f"{row.variant} {row.metric}" for row in verdicts if row.status == "regressed"),
    )


def read(file: Path) -> list[Session]:
    """The sessions in a file, oldest first. Raises BadInput, naming the line, for what is none."""
    sessions = []
    for number, line in enumerate(read_text(file, "run a gate: pytest bench --gate").splitlines(), 1):
        try:
            row = json.loads(line)
            readings = {name: tuple(map(_number, three)) for name, three in row["readings"].items()}
            if set(row) != _PARTS or any(len(three) != 3 or three[0] is None for three in readings.values()):
                raise ValueError("it lacks something, or has too much")
            Workload(**row["workload"])
            sessions.append(Session(**{**row, "readings": readings, "regressed": tuple(row["regressed"])}))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BadInput(f"{file}, line {number}, is no session ({error})", "remove the line") from error
    return sessions


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not math.isfinite(value)):
        raise ValueError(f"{value} is no figure")
    return value


@dataclass(frozen=True)
class Change:
    """A level that is another from session `at` on: medians before and after, and between which builds."""

    at: int
    before: float
    after: float
    good: Session
    bad: Session

    @property
    def versions(self) -> list[str]:
        """What else is another: `torch 2.14.1 → 2.15.0`."""
        names = sorted(self.good.versions.keys() | self.bad.versions.keys())
        pairs = ((name, self.good.versions.get(name, "-"), self.bad.versions.get(name, "-")) for name in names)
        return [f"{name} {old} → {new}" for name, old, new in pairs if old != new]


@dataclass(frozen=True)
class Course:
    """One figure of one workload over the sessions that have it."""

    workload: Workload
    variant: str
    metric: str
    sessions: tuple[Session, ...]
    values: tuple[float, ...]

    @property
    def changes(self) -> list[Change]:
        edges = [0, *change_points(self.values), len(self.values)]
        levels = [float(np.median(self.values[low:high])) for low, high in pairwise(edges)]
        return [
            Change(at, levels[number], levels[number + 1], self.sessions[at - 1], self.sessions[at])
            for number, at in enumerate(edges[1:-1])
        ]

    def is_worse(self, change: Change) -> bool:
        return (change.after < change.before) == (metric(self.metric).better == "higher")


def courses(sessions: Sequence[Session]) -> list[Course]:
    """The figures by workload, variant and metric, in the order in which they first came."""
    found: dict[tuple[Workload, str, str], list[tuple[Session, float]]] = {}
    for session in sessions:
        workload = Workload(**session.workload)
        for name, (value, _, _) in session.readings.items():
            variant, _, kind = name.rpartition(" ")
            if kind in METRICS:
                found.setdefault((workload, variant, kind), []).append((session, value))
    return [Course(*key, *map(tuple, zip(*rows, strict=True))) for key, rows in found.items()]


def change_points(values: Sequence[float]) -> list[int]:
    """Where a series' level changes: the indices of the first values of new levels.

    Seeded binary segmentation (Kovács et al., Biometrika 110, 2023): of all splits of a fixed set of intervals the one
    with the greatest cumulated sum of the ranks' deviations, kept where at most 1 % of 999 orders drawn at random have
    one as great (Antoch & Hušková, Statistics & Probability Letters 53, 2001); then the same on either side of it. At
    last each is moved to where it divides best what lies between its neighbours.
    Ranks, so that one late session counts as one.
    """
    numbers = np.asarray(values, float)
    edges = [0, *_splits(numbers), len(numbers)]
    for low, place, high in zip(range(len(edges)), range(1, len(edges) - 1), range(2, len(edges)), strict=False):
        between = _ranks(numbers[edges[low] : edges[high]])[None]
        edges[place] = edges[low] + int(_greatest(between, [(0, between.shape[1])])[0][0])
    return edges[1:-1]


def _splits(numbers: np.ndarray) -> list[int]:
    if len(numbers) < 2 * FEWEST_AROUND:
        return []
    ranks, intervals = _ranks(numbers), list(_intervals(len(numbers)))
    place, found = _greatest(ranks[None], intervals)
    orders = np.random.default_rng(0).permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)
    as_great = (_greatest(orders, intervals)[1] >= found[0] - 1e-9).sum()
    if found[0] == 0 or (1 + as_great) / (1 + PERMUTATIONS) > LEVEL:
        return []
    split = int(place[0])
    return [*_splits(numbers[:split]), split, *(split + later for later in _splits(numbers[split:]))]


def _ranks(numbers: np.ndarray) -> np.ndarray:
    return (numbers[:, None] > numbers).sum(1) + 0.5 * (numbers[:, None] == numbers).sum(1)


def _greatest(rows: np.ndarray, intervals: Iterable[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the split with the greatest scaled sum in any of the intervals, and that sum."""
    places, greatest = np.zeros(len(rows), int), np.zeros(len(rows))
    for low, high in intervals:
        size, part = high - low, rows[:, low:high]
        before = np.arange(FEWEST_AROUND, size - FEWEST_AROUND + 1)
        sums = np.cumsum(part - part.mean(1, keepdims=True), 1)[:, before - 1]
        scaled = abs(sums) / np.sqrt(before * (size - before) / size)
        best = scaled.argmax(1)
        found = scaled[np.arange(len(rows)), best]
        is_better = found > greatest + 1e-9
        places[is_better], greatest[is_better] = low + before[best][is_better], found[is_better]
    return places, greatest


def _intervals(count: int) -> Iterator[tuple[int, int]]:
    """The whole, then ever shorter ones by a factor of the root of 2, each level overlapping by half."""
    level, length = 0, float(count)
    while length >= 2 * FEWEST_AROUND:
        starts = 2 * math.ceil(math.sqrt(2) ** level) - 1
        shift = (count - length) / (starts - 1) if starts > 1 else 0.0
        yield from {(math.floor(i * shift), min(count, math.ceil(i * shift + length))): None for i in range(starts)}
        level, length = level + 1, length / math.sqrt(2)

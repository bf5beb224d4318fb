"""Figures as text: one unit and one precision a column, the same in the terminal, in Markdown and on the page."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optsd.judge.verdicts import is_of_build
from optsd.metrics import MAX_PSNR_DB, METRICS, Metric, metric
from optsd.records import Measurement, Results

MAIN = ("latency_s", "speedup", "peak_memory_bytes", "memory_reduction", "weight_bytes", "disk_bytes")
QUALITY = tuple(name for name, row in METRICS.items() if row.kind == "quality")
SIDE_BY_SIDE = (
    "a speedup compares rounds that ran side by side; the seconds are of the whole run, "
    "in which the machine was not the same all the time"
)
BESIDE_SPEED = ("objects_right", "clip", "fid")
"""The first of these that was measured stands beside the speedup: what the speed has cost."""

_BYTE_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def metric_of(name: str, unit: str = "") -> Metric:
    """The metric's row; for a name that the table of metrics lacks, one that is called by its name."""
    try:
        return metric(name)
    except KeyError:
        return Metric(unit, "higher", "performance", name.replace("_", " "))


@dataclass(frozen=True)
class Scale:
    """How the figures of one column are written: divided by `divisor`, with `decimals`, in `unit`."""

    divisor: float = 1.0
    decimals: int = 2
    unit: str = ""

    def write(self, value: float) -> str:
        text = f"{value / self.divisor:,.{self.decimals}f}"
        return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text

    def with_unit(self, value: float) -> str:
        gap = "" if self.unit in ("×", "") else "\N{NO-BREAK SPACE}"
        return f"{self.write(value)}{gap}{self.unit}"


def scale_for(unit: str, values: Iterable[float]) -> Scale:
    """Three significant digits for the largest value of a column, one more where the others need it."""
    sizes = [abs(value) for value in values if value]
    divisor, shown = 1.0, unit
    if unit == "B":
        smallest = min(sizes, default=0)
        shown, divisor = next((pair for pair in _BYTE_UNITS if smallest >= pair[1]), _BYTE_UNITS[-1])
    elif unit == "fraction":
        shown, divisor = "%", 0.01
    elif unit == "cosine":
        shown = ""
    if not sizes:
        return Scale(divisor, 2, shown)
    for_largest = 2 - _magnitude(max(sizes) / divisor)
    for_smallest = 1 - _magnitude(min(sizes) / divisor)
    # Where all are alike, as with SSIM, the difference is what a reader looks for.
    spread = (max(sizes) - min(sizes)) / divisor
    for_spread = 1 - _magnitude(spread) if spread else 0
    most = 1 if unit == "fraction" else 6
    decimals = max(for_largest, min(max(for_smallest, for_spread), for_largest + 1), 0)
    return Scale(divisor, min(decimals, most), shown)


def _magnitude(value: float) -> int:
    return math.floor(math.log10(value))


@dataclass(frozen=True)
class Cell:
    """One figure. `text` is `-` where there is none, and `note` then says why."""

    text: str
    value: float | None = None
    interval: str = ""
    note: str = ""
    best: bool = False
    aside: str = ""  # what a reader of this row would stumble over


@dataclass(frozen=True)
class Column:
    metric: str
    label: str
    unit: str
    better: str
    cells: tuple[Cell, ...]  # one a variant, in the order of the table

    @property
    def largest(self) -> float:
        """What the bars under the figures are measured by; 0 for a column whose figures are no lengths."""
        values = [cell.value for cell in self.cells if cell.value is not None]
        return max(values, default=0.0) if self.metric in MAIN and min(values, default=0.0) >= 0 else 0.0

    @property
    def heading(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit and self.unit not in self.label.split() else self.label


@dataclass(frozen=True)
class Table:
    variants: tuple[str, ...]
    columns: tuple[Column, ...]


def all_variants(results: Results) -> tuple[str, ...]:
    """Every variant that the run knows of: one that failed before its first figure stands in the tables too."""
    proven = (row.variant for row in results.techniques)
    judged = (row.variant for row in results.verdicts if row.status != "not comparable")
    failed = (row["variant"] for row in results.failures if row.get("variant"))
    drawn = (row["variant"] for row in results.images if isinstance(row.get("variant"), str))
    return tuple(dict.fromkeys([*results.variants, *proven, *judged, *failed, *drawn]))


def index(results: Results) -> dict[tuple[str, str], Measurement]:
    """(variant, metric) -> measurement; the first one where there are two, as in `Results.get`."""
    return {(row.variant, row.metric): row for row in reversed(results.measurements)}


def not_there(results: Results) -> str:
    """Why a figure has no row at all."""
    return "not part of this run" if results.complete else "the run did not get that far"


def overview(results: Results) -> Table:
    """The main table: speed, what it cost, memory and size if the run was about them, and all of quality."""
    rows = index(results)
    variants = all_variants(results)
    tried = {name for _, name in rows}
    measured = {name for (_, name), row in rows.items() if row.value is not None}
    cost = next((name for name in BESIDE_SPEED if name in measured), "")
    order = dict.fromkeys([*MAIN[:2], "speedup_unfused", *([cost] if cost else []), *MAIN[2:], *QUALITY])
    names = [name for name in order if name in (tried if name in MAIN else measured)] or ["latency_s"]
    return Table(variants, tuple(_column(name, variants, rows, results) for name in names))


def _column(name: str, variants: tuple[str, ...], rows: dict[tuple[str, str], Measurement], results: Results) -> Column:
    found = [rows.get((variant, name)) for variant in variants]
    values = [row.value for row in found if row is not None and row.value is not None]
    about = metric_of(name)
    scale = scale_for(about.unit, [value for value in values if not _of_equal_pictures(name, value)])
    best = (min if about.better == "lower" else max)(values, default=None)
    failed = {row.get("variant"): row.get("reason", "") for row in results.failures}
    cells = []
    for variant, row in zip(variants, found, strict=True):
        if row is None or row.value is None:
            reason = row.note if row is not None else failed.get(variant) or not_there(results)
            cells.append(Cell("-", note=reason))
            continue
        interval = ""
        if row.low is not None and row.high is not None:
            interval = f"[{scale.write(row.low)}, {scale.write(row.high)}]"
        # A best that half of the variants share says nothing, and so does one that may as well be the baseline's.
        marked = row.value == best and values.count(best) * 2 < len(values) and _stands_out(row, rows)
        aside = _disagreement(row, rows) if name == "speedup" else ""
        text = "equal" if _of_equal_pictures(name, row.value) else scale.write(row.value)
        cells.append(Cell(text, row.value, interval, row.note, marked, aside))
    return Column(name, about.label, scale.unit, about.better, tuple(cells))


def _of_equal_pictures(name: str, value: float) -> bool:
    """Whether it is the cap of a ratio to no error at all, which is no figure."""
    return name == "psnr_db" and value == MAX_PSNR_DB


def _stands_out(row: Measurement, rows: dict[tuple[str, str], Measurement]) -> bool:
    """Whether it is another's than the baseline's, and has nothing in common with the baseline's interval, if any."""
    base = rows.get(("baseline", row.metric))
    if row.variant == "baseline" or (row.samples and row.low is None):  # or was read too few times for an interval
        return False
    if base is None or base.low is None or base.high is None or row.value is None:
        return True
    low, high = (row.value if end is None else end for end in (row.low, row.high))
    return low > base.high or high < base.low


def _disagreement(row: Measurement, rows: dict[tuple[str, str], Measurement]) -> str:
    """Why the seconds of a row do not give its speedup, where they do not even fall into its interval."""
    base, own = rows.get(("baseline", "latency_s")), rows.get((row.variant, "latency_s"))
    if base is None or own is None or not base.value or not own.value or row.low is None or row.high is None:
        return ""
    return "" if row.low <= base.value / own.value <= row.high else SIDE_BY_SIDE


def one_line(results: Results, variant: str) -> str:
    """What a run has found of a variant so far, and what of it failed or was skipped: `0.160 s / image, speedup 1.05×
    (1.04× to 1.06×), peak memory 258 MiB`. Empty for nothing."""
    rows = index(results)
    cost = [name for name in BESIDE_SPEED if (variant, name) in rows][:1]
    said = [f"{row.status}, {row.note}" for row in results.verdicts if row.variant == variant and is_of_build(row)]
    for name in (*MAIN[:3], "energy_j", *cost):
        row = rows.get((variant, name))
        if row is not None and row.value is not None:
            bounds, amount = interval(row), figure(row.value, metric_of(name).unit)
            amount = f"{amount} / image" if name == "latency_s" else f"{metric_of(name).label} {amount}"
            at_best = " at best" if results.workload.is_estimate and name in MAIN[:2] else ""
            said.append(amount + (f" ({bounds})" if bounds and name == "speedup" else "") + at_best)
    failed = [row for row in results.failures if row.get("variant") == variant]
    return ", ".join(said + [f"{str(row.get('stage')).removeprefix('test_')}: {row.get('reason')}" for row in failed])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, in plain text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def figure(value: float, unit: str) -> str:
    """One figure by itself, with its unit: `5.82 GiB`, `1.39×`, `34.0 %`."""
    return scale_for(unit, [value]).with_unit(value)


def interval(row: Measurement) -> str:
    """The 95 % interval of a measurement in the precision of its value: `2.41× to 2.52×`. Empty where it has none."""
    if row.value is None or row.low is None or row.high is None:
        return ""
    scale = scale_for(metric_of(row.metric, row.unit).unit, [row.value])
    return f"{scale.with_unit(row.low)} to {scale.with_unit(row.high)}"

"""Speed against quality, and memory against quality, with the Pareto front."""

from collections.abc import Sequence
from typing import Any

from optsd.records import Measurement
from optsd.report.drawing import COLOURS, Drawing, finish, new_figure, printable
from optsd.report.labels import place_labels
from optsd.report.runs import Run, said, style_of
from optsd.report.tables import metric_of, scale_for

TRADED = (
    "objects_right", "lpips", "clip", "fid", "lpips_shapes", "clip_shapes", "fid_shapes", "psnr_db", "ssim",
)  # fmt: skip
"""The quality metrics to trade for: the first that was measured is drawn, the table has the others."""


def trade_offs(run: Run) -> list[Drawing]:
    """What speed costs in quality, and what memory does."""
    traded = [name for name in TRADED if len(run.having(name)) > 1][:1]
    costs = (("speedup", "speed"), ("peak_memory_bytes", "memory"))
    return [drawing for name in traded for cost, word in costs if (drawing := trade(run, cost, name, word)) is not None]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats in both coordinates, more being better in each: the Pareto front, best x last."""
    ordered = sorted(range(len(points)), key=lambda place: (-points[place][0], -points[place][1]))
    kept: list[int] = []
    for place in ordered:
        if not kept or points[place][1] > points[kept[-1]][1]:
            kept.append(place)
    return kept[::-1]


def trade(run: Run, cost: str, quality: str, word: str) -> Drawing | None:
    """One point a variant, up and to the right being better on both axes, with intervals and the Pareto front."""
    found = run.having(cost, quality)
    if len(found) < 2:
        return None
    page, (xs, ys) = new_figure(3.3), (_Axis(cost, found, 0), _Axis(quality, found, 1))
    axes = page.add_subplot()
    points = list(zip(xs.values, ys.values, strict=True))
    best = front([(xs.sign * x, ys.sign * y) for x, y in points])
    corner = [points[place] for place in best]
    band: Any = {"color": COLOURS["vae"], "alpha": 0.22, "zorder": 1}
    axes.step(*zip(*corner, strict=True), where="pre", linewidth=6, **band)
    axes.plot(*zip(*corner, strict=True), "o", markersize=16, markeredgewidth=0, **band)  # one point alone has no line
    labels = {}
    for (number, variant, rows), (x, y) in zip(found, points, strict=True):
        colour, marker, hollow = style_of(variant)
        bars = axes.errorbar(
            x, y, xerr=xs.error(rows[0]), yerr=ys.error(rows[1]), fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.55,
            zorder=2,
        )[2]  # fmt: skip
        for bar in bars:  # none where neither figure has an interval
            bar.set_gid(f"part-{number}")
        axes.plot(
            x, y, marker, markersize=6.5, markeredgecolor=colour, markeredgewidth=1.4, gid=f"point-{number}", zorder=3,
            markerfacecolor=COLOURS["surface"] if hollow else colour,
        )  # fmt: skip
        labels[f"point-{number}"] = f"{variant}: {said(rows[0])}, {said(rows[1])}"
    label = metric_of(quality).label
    title = f"{word.capitalize()} against {label}"
    axes.set_title(title)
    xs.prepare(axes, "x")
    ys.prepare(axes, "y")
    first = [*best, *(place for place in range(len(found)) if place not in best)]
    names = [(printable(found[place][1]), points[place], f"part-{found[place][0]}") for place in first]
    place_labels(axes, names)
    listed = ", ".join(found[place][1] for place in best)
    words = f"{title}, {len(found)} variants; up and right is better. On the Pareto front: {listed}."
    return finish(page, f"{word}-{quality}", "trade-offs", title, words, labels)


class _Axis:
    """One of the two figures of a trade-off plot, in the unit in which it is shown."""

    def __init__(self, name: str, found: list[tuple[int, str, list[Measurement]]], place: int) -> None:
        values = [rows[place].value or 0.0 for _, _, rows in found]
        self.about = metric_of(name)
        self.scale = scale_for(self.about.unit, values)
        self.values = [value / self.scale.divisor for value in values]
        self.rows = [rows[place] for _, _, rows in found]
        self.sign = 1 if self.about.better == "higher" else -1

    def error(self, row: Measurement) -> list[list[float]] | None:
        if row.low is None or row.high is None or row.value is None:
            return None
        # An interval need not hold its estimate; a bar cannot be shorter than nothing.
        low, high = max(row.value - row.low, 0), max(row.high - row.value, 0)
        return [[low / self.scale.divisor], [high / self.scale.divisor]]

    def prepare(self, axes, which: str) -> None:
        unit = f" ({self.scale.unit})" if self.scale.unit not in ("", "×") else ""
        # Of the upright axis the label is turned, and with it the arrow.
        getattr(axes, f"set_{which}label")(f"{self.about.label}{unit}, {self.about.better} is better →")
        # By the points, not by their intervals, which would squash them: an interval may leave the plot. By these where
        # the points are all alike.
        low, high = min(self.values), max(self.values)
        if low == high:
            ends = [end / self.scale.divisor for row in self.rows for end in (row.low, row.high) if end is not None]
            low, high = min([low, *ends]), max([high, *ends])
        room = max(0.16 * (high - low), 0.01 * max(abs(low), abs(high)), 1e-9)
        getattr(axes, f"set_{which}lim")(low - room, high + room)
        if self.about.unit == "fraction":  # room for the mark is no figure above 100 %
            ticks = [tick for tick in getattr(axes, f"get_{which}ticks")() if low - room <= tick <= 100]
            getattr(axes, f"set_{which}ticks")(ticks)
        if self.sign < 0:
            getattr(axes, f"invert_{which}axis")()

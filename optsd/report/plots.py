"""The plots of a report: what each shows, and from which figures. A plot without figures is left out."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl

from optsd.files import write_atomically
from optsd.records import Results
from optsd.report.drawing import COLOURS, STYLE, Drawing, finish, new_figure, printable
from optsd.report.findings import found_out
from optsd.report.judged import is_claim
from optsd.report.runs import Run, prepare, said, style_of
from optsd.report.tables import figure, metric_of, scale_for
from optsd.report.tradeoffs import trade_offs

STAGES = (("text_encoder_s", "text-encoder"), ("unet_step_s", "unet"), ("vae_decode_s", "vae"))
_ROW = 0.235  # inches of height for a variant's bar


def draw_all(results: Results) -> list[Drawing]:
    """Every plot that these results have figures for, in the order of the page."""
    run = prepare(results)
    with mpl.rc_context(STYLE):
        plots = (speedups(run), stages(run), waterfall(run), latencies(run), memory_saved(run), memory_over_run(run))
        return [*trade_offs(run), *(drawing for drawing in plots if drawing is not None)]


def save(drawings: Sequence[Drawing], folder: Path) -> None:
    """Each as SVG and PNG."""
    for drawing in drawings:
        write_atomically(folder / f"{drawing.name}.svg", drawing.svg)
        write_atomically(folder / f"{drawing.name}.png", drawing.png)


def speedups(run: Run) -> Drawing | None:
    return _against_claims(run, "speedup", "speedup")


def memory_saved(run: Run) -> Drawing | None:
    return _against_claims(run, "memory_reduction", "memory-saved")


def _against_claims(run: Run, name: str, file: str) -> Drawing | None:
    """Each variant's figure with its interval, and what was claimed for it on this workload."""
    found = run.having(name)
    if not found:
        return None
    scale = scale_for(metric_of(name).unit, [rows[0].value or 0.0 for _, _, rows in found])
    claimed: dict[str, float | None] = {}
    for row in run.results.verdicts:
        if row.metric == name and is_claim(row) and row.status != "not comparable":
            claimed.setdefault(row.variant, row.expected)  # of several the first: the guide's table of results
    page, axes = _bars([(number, variant) for number, variant, _ in found])
    labels, drawn = {}, False
    for place, (number, variant, rows) in enumerate(found):
        colour, value = style_of(variant)[0], (rows[0].value or 0.0) / scale.divisor
        low, high = rows[0].low, rows[0].high
        if low is not None and high is not None:
            axes.plot(
                [low / scale.divisor, high / scale.divisor], [place, place], color=colour, linewidth=5, alpha=0.3,
                solid_capstyle="butt", gid=f"part-{number}",
            )  # fmt: skip
        expected = claimed.get(variant)
        told = ""
        if expected is not None:
            axes.plot(
                expected / scale.divisor, place, "D", markersize=6, markerfacecolor="none", zorder=2,
                markeredgecolor=COLOURS["claim"], markeredgewidth=1.6, gid=f"part-{number}",
                label=None if drawn else "claimed",
            )  # fmt: skip
            drawn, told = True, f"; claimed {figure(expected, metric_of(name).unit)}"
        axes.plot(value, place, "o", markersize=6, color=colour, gid=f"point-{number}", zorder=3)
        labels[f"point-{number}"] = f"{variant}: {said(rows[0])}{told}"
    axes.axvline(1 if name == "speedup" else 0, color=COLOURS["muted"], linewidth=1, zorder=1)
    title = f"{metric_of(name).label.capitalize()}, {found_out(run.results)}{' and claimed' if drawn else ''}"
    axes.set_title(title)
    unit = "× the baseline" if name == "speedup" else f"{scale.unit} of the baseline's peak"
    axes.set_xlabel(f"{unit}; the bar is the 95 % interval" if any(r[0].low is not None for _, _, r in found) else unit)
    if drawn:
        _legend(page, axes)
    return finish(page, file, "speed" if name == "speedup" else "memory", title, _words(title, labels), labels)


def stages(run: Run) -> Drawing | None:
    """Seconds an image, a bar a variant, divided as the stages were in a pass of their own.

    That pass is not the one that the whole was measured in, and stages that are timed one by one take longer: their
    seconds may add up to more than the whole, so that only their shares are drawn.
    """
    timed = run.having("latency_s")
    parts = {variant: _stage_seconds(run, variant) for _, variant, _ in timed}
    every = set().union(*parts.values())  # of one that lacks a stage the shares are unknown
    found = [item for item in timed if set(parts[item[1]]) == every and sum(parts[item[1]].values()) > 0]
    if not found:
        return None
    page, axes = _bars([(number, variant) for number, variant, _ in found])
    labels, shown = {}, set()
    for place, (number, variant, rows) in enumerate(found):
        whole, left, told = rows[0].value or 0.0, 0.0, []
        total = sum(parts[variant].values())
        for name, token in STAGES:
            if not (seconds := parts[variant].get(name)):
                continue
            share, label = seconds / total, metric_of(name).label.removesuffix(" step")
            axes.barh(
                place, whole * share, left=left, height=0.68, color=COLOURS[token], edgecolor=COLOURS["surface"],
                linewidth=0.6, label=None if token in shown else label,
            )[0].set_gid(f"part-{number}")  # fmt: skip
            shown.add(token)
            left += whole * share
            told.append(f"{label} {figure(share, 'fraction')} ({figure(seconds, 's')} in its own pass)")
        axes.plot(whole, place, "|", color=COLOURS["ink"], markersize=11, gid=f"point-{number}")
        labels[f"point-{number}"] = f"{variant}: {figure(whole, 's')} an image; {', '.join(told)}"
    axes.set_title("Time by stage")
    axes.set_xlabel("seconds an image, divided as the stages were\nthat were timed in a pass of their own")
    axes.grid(False, axis="y")
    _legend(page, axes)
    return finish(page, "stages", "speed", "Time by stage", _words("Time by stage", labels), labels)


def _stage_seconds(run: Run, variant: str) -> dict[str, float]:
    """Seconds an image of each stage: the samples of a stage are its calls in one batch, `value` is their median."""
    workload = run.results.workload
    seconds = {}
    for name, _ in STAGES:
        row = run.rows.get((variant, name))
        if row is not None and row.value is not None:
            calls = workload.steps if name == "unet_step_s" else 1
            seconds[name] = (sum(row.samples) or row.value * calls) / max(workload.batch_size, 1)
    return seconds


def latencies(run: Run) -> Drawing | None:
    """Every timed round as a point, the median as a line."""
    found = [item for item in run.having("latency_s") if len(item[2][0].samples) > 1]
    if not found:
        return None
    page, axes = _bars([(number, variant) for number, variant, _ in found])
    labels = {}
    for place, (number, variant, rows) in enumerate(found):
        samples, value = rows[0].samples, rows[0].value or 0.0
        colour = style_of(variant)[0]
        axes.plot(
            samples, [place] * len(samples), "o", color=colour, alpha=0.45, markersize=4.5, markeredgewidth=0,
            gid=f"part-{number}",
        )  # fmt: skip
        axes.plot(value, place, "|", color=COLOURS["ink"], markersize=13, markeredgewidth=1.6, gid=f"point-{number}")
        labels[f"point-{number}"] = (
            f"{variant}: {figure(min(samples), 's')} to {figure(max(samples), 's')} in {len(samples)} rounds, "
            f"median {figure(value, 's')}"
        )
    axes.set_xlim(left=0)
    axes.set_title("How much the time varies")
    axes.set_xlabel("seconds an image: each round, and the median")
    title = "How much the time varies"
    return finish(page, "latencies", "speed", title, _words(title, labels), labels)


def waterfall(run: Run) -> Drawing | None:
    """From the baseline's seconds to those of the fastest combination, by the paired speedups."""
    chain = chain_to_fastest(run)
    if len(chain) < 3:
        return None
    number_of = {variant: number for number, variant in enumerate(run.variants)}
    whole = run.rows["baseline", "latency_s"].value or 0.0
    seconds = [whole, *(whole / (run.rows[variant, "speedup"].value or 1.0) for variant in chain[1:])]
    page, axes = _bars([(number_of[chain[0]], ""), *((0, "") for _ in chain[1:]), (0, "")])
    names = [chain[0], *(_added(before, after) for before, after in pairwise(chain)), chain[-1]]
    axes.set_yticks(range(len(names)), [printable(name) for name in names])
    labels = {}
    for place, value in ((0, seconds[0]), (len(chain), seconds[-1])):
        variant = chain[0] if place == 0 else chain[-1]
        axes.barh(place, value, height=0.68, color=style_of(variant)[0])[0].set_gid(f"point-{number_of[variant]}")
        labels[f"point-{number_of[variant]}"] = f"{variant}: {figure(value, 's')} an image"
        axes.annotate(figure(value, "s"), (value, place), (4, 0), textcoords="offset points", va="center")
    for place, (before, after) in enumerate(pairwise(seconds), start=1):
        faster = after <= before
        axes.barh(place, before - after, left=after, height=0.68, color=COLOURS["vae" if faster else "int4"])
        axes.plot([before, before], [place - 1, place], color=COLOURS["muted"], linewidth=0.8)
        axes.plot([after, after], [place, place + 1], color=COLOURS["muted"], linewidth=0.8)
        told = f"{'−' if faster else '+'}{figure(abs(before - after), 's')}"
        axes.annotate(told, (max(before, after), place), (4, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, max(seconds) * 1.22)
    title = "From the baseline to the fastest combination"
    axes.set_title(title)
    paired = ": the baseline's ÷ the speedup of rounds\nside by side, which need not be the table's median"
    axes.set_xlabel(f"seconds an image{'' if run.results.workload.is_estimate else paired}")
    axes.grid(False, axis="y")
    steps = ", ".join(f"{variant} {figure(value, 's')}" for variant, value in zip(chain, seconds, strict=True))
    return finish(page, "waterfall", "speed", title, f"{title}: {steps}.", labels)


def chain_to_fastest(run: Run) -> list[str]:
    """baseline, …, the fastest combination: each a measured subset of the next, the fastest of its size."""
    timed = {variant: 1 / (rows[0].value or 1.0) for _, variant, rows in run.having("speedup") if variant != "baseline"}
    joined = [variant for variant in timed if "+" in variant]
    if ("baseline", "latency_s") not in run.rows or not joined:
        return []
    chain = [min(joined, key=lambda variant: timed[variant])]
    while chain[0] != "baseline":
        parts = set(chain[0].split("+"))
        inside = [variant for variant in timed if set(variant.split("+")) < parts]
        most = max((variant.count("+") for variant in inside), default=0)
        largest = [variant for variant in inside if variant.count("+") == most]
        chain.insert(0, min(largest, key=lambda variant: timed[variant], default="baseline"))
    return chain


def _added(before: str, after: str) -> str:
    more = [part for part in after.split("+") if part not in before.split("+")]
    return " + ".join(["", *more]).strip()


def memory_over_run(run: Run) -> Drawing | None:
    """From what is in use after the first denoising step to what is at the end, and the peak; a row a variant."""
    found = [item for item in run.having("peak_memory_bytes") if len(item[2][0].samples) > 1]
    if not found:
        return None
    values = [reading for _, _, rows in found for reading in (*rows[0].samples, rows[0].value or 0.0)]
    scale = scale_for("B", [value for value in values if value > 0])
    page, axes = _bars([(number, variant) for number, variant, _ in found])
    labels = {}
    for place, (number, variant, rows) in enumerate(found):
        colour = style_of(variant)[0]
        first, *_, last = (reading / scale.divisor for reading in rows[0].samples)
        peak = (rows[0].value or 0.0) / scale.divisor
        bar = {"color": colour, "linewidth": 5, "alpha": 0.3, "solid_capstyle": "butt"}
        axes.plot([first, peak], [place, place], gid=f"part-{number}", **bar)
        for at, mark in ((first, "|"), (last, "o")):
            hollow = {"markerfacecolor": COLOURS["surface"], "markeredgecolor": colour}
            axes.plot(at, place, mark, color=colour, markersize=7, gid=f"part-{number}", **hollow)
        axes.plot(peak, place, "o", markersize=6, color=colour, gid=f"point-{number}", zorder=3)
        labels[f"point-{number}"] = (
            f"{variant}: {figure(rows[0].samples[0], 'B')} after the first step, "
            f"{figure(rows[0].samples[-1], 'B')} at the end, peak {figure(rows[0].value or 0.0, 'B')}"
        )
    title = "Memory over a run"
    axes.set_title(title)
    axes.set_xlabel(f"{scale.unit}: after the first step (line), at the end (ring), peak (disc)")
    return finish(page, "memory-over-run", "memory", title, _words(title, labels), labels)


def _bars(names: list[tuple[int, str]]):
    """A figure with one row a variant, the first on top."""
    page = new_figure(1.05 + _ROW * len(names))
    axes = page.add_subplot()
    axes.set_yticks(range(len(names)), [printable(name) for _, name in names])
    for tick, (number, _) in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_gid(f"part-{number}")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    return page, axes


def _legend(page, axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    page.legend(handles, names, loc="outside lower left", ncols=4, handlelength=1.1, columnspacing=1.2)


def _words(title: str, labels: dict[str, str]) -> str:
    return f"{title}. {'; '.join(list(labels.values())[:12])}."

"""What a person reads of a search: table, answer, what was not tried; a report, and the pictures that lost most."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from optsd.files import plain_name, write_atomically
from optsd.judge.expectations import machine_name
from optsd.metrics import metric
from optsd.quantization.rules import BITS
from optsd.records import Measurement, Results
from optsd.report.tables import aligned, figure
from optsd.report.text import proof_lines
from optsd.tune.candidates import split
from optsd.tune.found import Found
from optsd.tune.mixed import Proposed
from optsd.tune.search import BASELINE, ERROR, Demand, Known
from optsd.variants import against_eager, parse

if TYPE_CHECKING:
    from optsd.tune.measured import Measured

WORST = 4
"""Pairs that the sheet of what lost most shows."""
DISTANCES = ("lpips", "lpips_shapes")


def text(found: Found) -> str:
    """All that the command prints."""
    return "\n".join([*_asked(found), "", *_table(found), *_layers(found.by_layer), "", *_answer(found)])


def _asked(found: Found) -> Iterator[str]:
    work, made = found.workload, found.search
    size = f"{work.width}×{work.height}, batch {work.batch_size}, {work.steps} steps, guidance {work.guidance:g}"
    yield f"{work.model}, {work.dtype}, {size}; {machine_name(found.machine, work.device)}"
    limits = [demanded(one) for one in made.ask.demands]
    if made.ask.memory is not None:
        limits.append(f"at most {figure(made.ask.memory, 'B')} at the peak")
    yield f"the {'fastest' if made.ask.goal == 'speed' else 'smallest'} with {', '.join(limits)}"
    yield f"claims and lower bounds, all together, are wrong in at most {ERROR:.0%} of searches"
    if made.fewest_pictures > made.ask.pictures:
        yield (
            f"{made.ask.pictures} pictures cannot show that an approximate variant keeps that: it takes "
            f"{made.fewest_pictures} at least (--images {made.fewest_pictures})"
        )


def demanded(one: Demand) -> str:
    if one.metric in DISTANCES:
        return f"{metric(one.metric).label} at most {1 - one.share:.4g}"
    if one.metric == "ssim":
        return f"SSIM at least {one.share:g}"
    return f"{one.share:.4g} of the baseline's {metric(one.metric).label} kept"


def _table(found: Found) -> Iterator[str]:
    demands = found.search.ask.demands
    rows: list[tuple[str, ...]] = [
        ("variant", "speedup", "", *(part for one in demands for part in (_head(one), "")), "peak", "")
    ]
    some = [one for one in found.search.known.values() if one.ratios or one.peak or one.scores]
    for one in sorted(some, key=lambda one: (one.wins, not one.out, one.value), reverse=True):
        kept = [part for demand in demands for part in _kept(one, demand)]
        rows.append((one.name, *_speed(one), *kept, figure(one.peak, "B") if one.peak else "-", standing(one)))
    if len(rows) > 1:
        yield aligned([row if any(one.peak for one in some) else (*row[:-2], row[-1]) for row in rows])
    tried = {one.name for one in some}
    left = [(one.name, one.out) for one in found.search.known.values() if one.name not in tried]
    if left:
        yield "\nnot measured\n" + aligned([(name, why or "the time was up") for name, why in left])


def _layers(found: Proposed) -> Iterator[str]:
    """What the mixtures among the candidates were chosen from."""
    if found.why_none:
        yield f"\nno precision layer by layer was tried: {found.why_none}"
    if not found.kinds:
        return
    whole = sum(kind.weights for kind in found.kinds)
    rows = [
        (kind.pattern, f"{kind.weights / whole:.1%}", *(f"{kind.errors[name]:.2g}" for name in BITS))
        for kind in found.kinds
    ]
    yield "\nlayers quantized alone: the relative error of the denoiser's output"
    yield aligned([("layers", "of the weights", *BITS), *rows])
    for one in found.mixtures:
        yield f"tried for it: {one.name}, {one.error:.2g} expected: {one.why}"


def _head(one: Demand) -> str:
    # A distance and a likeness are of the baseline's own picture: 100 % is that picture.
    label = metric(one.metric).label
    return f"1 − {label}" if one.metric in DISTANCES else label if one.metric == "ssim" else f"{label} kept"


def _speed(one: Known) -> tuple[str, str]:
    if not one.ratios:
        return "-", ""
    low, high = one.speed_bounds()
    return f"{one.speedup:.2f}×", _bounds(low, high, 2)


def _kept(one: Known, demand: Demand) -> tuple[str, str]:
    found = one.kept(demand)
    if not found.pictures:
        return "-", ""
    return f"{found.share:.1%}", f"{_bounds(100 * found.low, 100 * found.high, 0)} of {found.pictures}".strip()


def _bounds(low: float, high: float, digits: int) -> str:
    if low <= 0:  # too few readings for a bound
        return ""
    shown = "…" if math.isinf(high) else f"{high:.{digits}f}"
    return f"[{low:.{digits}f}, {shown}]"


def standing(one: Known) -> str:
    """In a few words what a candidate is found to be."""
    if one.wins:
        return f"wins ({one.quality})" if one.quality == "exact" else "wins"
    if one.out:
        return one.out
    lacking = [] if one.gains else ["its gain"]
    lacking += [] if one.quality in ("kept", "exact") else ["its quality"]
    return f"not proved: {' and '.join(lacking)}" if lacking else ""


def _answer(found: Found) -> Iterator[str]:
    made, best = found.search, found.search.winner
    cut = "Ctrl-C" if found.interrupted else f"{found.request.time_budget_s:g} s were up"
    if not made.complete:
        yield f"{cut} before all was clear: this is the answer so far. The same command goes on from here."
    if best is None:
        better = "faster" if made.ask.goal == "speed" else "smaller"
        yield f"no variant is proved to be {better} and within what was asked: the baseline stays"
        yield from _why_none(found)
    else:
        low, _ = best.speed_bounds()
        gain = f"{best.speedup:.2f}× as fast (at least {low:.2f}×, {len(best.ratios)} rounds)"
        yield f"answer: {best.name}, {gain}; {'; '.join(_kept_in_words(best, one) for one in made.ask.demands)}"
        if best.peak:
            yield f"  {figure(best.peak, 'B')} at the peak, the baseline {figure(best.baseline_peak or 0, 'B')}"
        if found.technique:
            yield f"  {len(found.technique.touched)} modules touched"
            yield from proof_lines(found.technique.proof)
        yield from ("", *_recipe(found, best.name))
    yield f"\n{len(made.known)} candidates, {found.made} new readings, {found.took_s:.0f} s"
    yield f"report: {found.folder / 'index.html'}"
    if best is not None and best.quality == "kept":
        yield f"what {best.name} lost most: {found.folder / 'contact-sheet.png'}"


def _why_none(found: Found) -> Iterator[str]:
    made = found.search
    known = [one for one in made.known.values() if one.peak or one.ratios or one.scores]
    if not known and not made.complete:
        yield "nothing was measured: give it more --time-budget"
    elif made.ask.memory is not None and all(one.out for one in made.known.values()):
        least = min((one for one in known if one.peak), key=lambda one: one.peak or 0, default=None)
        if least is not None and (least.peak or 0) > made.ask.memory:
            yield f"the least memory that was measured is {least.name}'s, {figure(least.peak or 0, 'B')}"
    fast = [one for one in known if one.gains and not one.out]
    if fast:
        yield f"faster, but its quality is not proved: {', '.join(one.name for one in fast)}"


def _kept_in_words(best: Known, one: Demand) -> str:
    found, label = best.kept(one), metric(one.metric).label
    if one.metric in DISTANCES:
        said, bound = f"{label} {1 - found.share:.3f}", f"at most {1 - found.low:.3f}, "
    elif one.metric == "ssim":
        said, bound = f"{label} {found.share:.3f}", f"at least {found.low:.3f}, "
    else:
        said, bound = f"keeps {found.share:.1%} of {label}", f"at least {found.low:.1%}, "
    said = f"{said} ({bound if found.low > 0 else ''}{found.pictures} pictures)"
    return f"the same mathematics: {said}" if best.quality == "exact" else said


def _recipe(found: Found, candidate: str) -> Iterator[str]:
    model = found.request.model
    name, steps = split(candidate)
    # A bench gives eager attention to what names no attention; `apply` gives what is asked for.
    spelled = name if len(against_eager(name).steps) == len(parse(name).steps) else f"eager+{name}"
    yield "  import optsd"
    yield f"  pipe = optsd.load({model!r})"
    yield f"  optsd.apply(pipe, {spelled!r})    # on this machine the same as optsd.load({model!r}, variant='tuned')"
    if steps:
        yield f"  pipe(prompt, num_inference_steps={steps})    # tuned warns that they have to be asked for"
    asked = f" --steps {steps}    # the baseline takes as many there" if steps else ""
    yield f"  $ pytest bench --model {model} --variant {shlex.quote(name)}{asked}"
    yield f"  written to {found.file}: pytest bench --variant tuned, with --expected-update and --gate, watches it"


def results(found: Found) -> Results:
    """The figures as every run of this project has them."""
    made = found.search
    known = ["speedup", *(shown(one) for one in made.ask.demands)]
    rows = [
        Measurement(BASELINE, name, metric(name).unit, 0.0 if name in DISTANCES else 1.0, note="by definition")
        for name in known
    ]
    for one in made.known.values():
        rows += _measurements(one)
    best = made.winner
    if best and best.baseline_peak:
        rows.append(Measurement(BASELINE, "peak_memory_bytes", "B", best.baseline_peak))
    failed = [one for one in made.known.values() if one.failed]
    return Results(
        found.machine,
        found.workload,
        tuple(rows),
        techniques=(found.technique,) if found.technique else (),
        failures=tuple({"variant": one.name, "stage": "tune", "reason": one.failed} for one in failed),
        command="optsd tune",
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        complete=made.complete,
    )


def _measurements(one: Known) -> Iterator[Measurement]:
    note = "the lower bounds of this search hold all together in 95 % of searches, and so do the upper ones"
    if one.ratios:
        low, high = _finite(*one.speed_bounds())
        samples = tuple(1 / ratio for ratio in one.ratios)
        yield Measurement(one.name, "speedup", "×", one.speedup, low, high, samples, note)
    if one.peak:
        yield Measurement(one.name, "peak_memory_bytes", "B", one.peak)
    for demand in one.ask.demands:
        kept, name = one.kept(demand), shown(demand)
        if not kept.pictures:
            continue
        value, (low, high) = kept.share, _finite(kept.low, kept.high)
        if name in DISTANCES:
            value, low, high = 1 - value, None if high is None else 1 - high, None if low is None else 1 - low
        yield Measurement(one.name, name, metric(name).unit, value, low, high, note=note)


def _finite(low: float, high: float) -> tuple[float | None, float | None]:
    """An interval that is open at one side is none that could be drawn."""
    return (low, high) if low > 0 and not math.isinf(high) else (None, None)


def shown(demand: Demand) -> str:
    """The metric under which the share that is kept is recorded."""
    return demand.metric if demand.metric in (*DISTANCES, "ssim") else f"{demand.metric}_retention"


def write(found: Found, bench: "Measured") -> None:
    """results.json, its report, the front as plots/front.svg and .png, and the winner's worst pictures in one sheet."""
    import matplotlib as mpl

    from optsd import report
    from optsd.report import plots, runs
    from optsd.report.drawing import STYLE
    from optsd.report.tradeoffs import trade

    folder, made = found.folder, results(found)
    best = found.search.winner
    if best is not None and best.pictures:
        made = replace(made, images=_worst(found, best, bench))
    write_atomically(folder / "results.json", made.to_json())
    report.write(made, folder)
    with mpl.rc_context(STYLE):
        drawing = trade(runs.prepare(made), "speedup", shown(found.search.ask.demands[0]), "speed")
    if drawing is not None:
        plots.save([replace(drawing, name="front")], folder / "plots")


def _worst(found: Found, best: Known, bench: "Measured") -> tuple[dict, ...]:
    """The pictures of the winner that lost most, and the baseline's beside them."""
    from optsd.quality.measure import Judge
    from optsd.quality.store import to_png

    count = best.pictures
    ours, theirs = bench.images(best.name, count), bench.images(BASELINE, count)
    texts = bench.setting.texts[:count]
    judge = Judge(theirs, texts, bench.setting.reference, bench.setting.networks, store=bench.store)
    rows = []
    wanted = {row: (rank, loss) for rank, (row, loss) in enumerate(judge.worst(ours, WORST), 1)}
    for variant, pictures in ((BASELINE, theirs), (best.name, ours)):
        for index, image in enumerate(pictures):
            if index in wanted:
                file = f"images/{plain_name(variant)}/{index:04d}.png"
                write_atomically(found.folder / file, to_png(image))
                row = {"variant": variant, "prompt": texts[index], "seed": found.workload.seed, "index": index}
                row["file"], (rank, loss) = file, wanted[index]
                rows.append(row | ({"worst": rank, "loss": loss} if variant != BASELINE else {}))
    return tuple(rows)

"""Ratios beside the figures that they are the ratios of: a speedup and its seconds, a percentage and its reading."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from optsd.claims import names
from optsd.claims.figures import Interval, as_printed, of_value, seconds, size
from optsd.claims.findings import Finding, alike, figure_of, middle, parameters_agree, quoted, same_run
from optsd.claims.schema import Claim, Printed


@dataclass(frozen=True)
class _Pair:
    """A baseline's figure and the technique's own, in the same unit; `text` as printed."""

    before: Interval
    after: Interval
    text: tuple[str, str]
    labels: tuple[str, ...] = ()

    @property
    def ratio(self) -> Interval:
        return self.before / self.after


_READINGS: dict[str, tuple[str, Callable[[Interval], Interval]]] = {
    # of t₀ ÷ t: what a figure may be, in the unit of a ratio or in %
    "x": ("{0} ÷ {1} = {2:.4g}×", lambda ratio: ratio),
    "% faster": ("{0} ÷ {1} − 1 = {2:.4g} %", lambda ratio: ratio.plus(-1).scaled(100)),
    "% of time saved": ("1 − {1} ÷ {0} = {2:.4g} %", lambda ratio: ratio.inverse().scaled(-100).plus(100)),
    "%": ("{0} ÷ {1} = {2:.4g} %", lambda ratio: ratio.scaled(100)),
    "share": ("1 − {1} ÷ {0} = {2:.4g}", lambda ratio: ratio.inverse().scaled(-1).plus(1)),
}


def _meant(claim: Claim) -> str:
    """What a bare % means by its metric's name: of memory a share saved, of time one where a reduction is spoken of."""
    if claim.value.unit not in ("", "%"):
        return claim.value.unit
    saved = re.search(r"reduc|sav|less|lower|shorter", claim.metric.said, re.I)
    if claim.value.unit == "%":
        return "% of time saved" if saved or claim.metric.kind == "memory_saved" else "% faster"
    return "share" if claim.metric.kind == "memory_saved" else "x"


_CALLED = {
    "x": "a ratio",
    "%": "a ratio in %",
    "% faster": "a rate gained",
    "% of time saved": "a share of time saved",
    "share": "a share saved",
}


def ratios(claims: Sequence[Claim]) -> Iterator[Finding | str]:
    """A speedup or a factor of memory beside the figures that it is the ratio of."""
    saved: defaultdict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        if claim.metric.kind not in ("speedup", "memory_saved") or not claim.value.numbers:
            continue
        yield from _other_baseline(claim, claims)
        unit = _meant(claim)
        pairs = pairs_of(claim, claims)
        if unit not in _READINGS or not pairs or claim.value.bound:
            continue
        yield claim.label
        claimed = of_value(claim.value, places=1.0)
        if any(claimed.meets(_READINGS[unit][1](pair.ratio)) for pair in pairs):
            if unit == "% of time saved" and _called_a_speed(claim):
                saved[f"{claim.source.page} {claim.metric.said}"].append(claim)
            continue
        others = [
            (name, pair)
            for name in _READINGS if name != unit and unit.startswith("%")
            for pair in pairs if claimed.meets(_READINGS[name][1](pair.ratio))
        ]  # fmt: skip
        nearest = min(pairs, key=lambda pair: abs(middle(_READINGS[unit][1](pair.ratio)) - middle(claimed)))
        assumption = _about_the_same_run(claim, nearest)
        if others:
            name, pair = others[0]
            yield Finding(
                "reading", (claim.label, *pair.labels), f"{quoted(claim)} is {_CALLED[name]}, not {_CALLED[unit]}",
                f"{_shown(name, pair)}; {_shown(unit, pair)}", assumption,
            )  # fmt: skip
        else:
            yield Finding(
                "contradiction", (claim.label, *nearest.labels),
                f"{quoted(claim)} is {_shown(unit, nearest).rpartition('= ')[2]} by its own figures",
                _shown(unit, nearest), assumption,
            )  # fmt: skip
    for group in saved.values():
        first = group[0]
        share = (first.value.figure or 0) / 100
        gained = 100 * share / (1 - share)
        yield Finding(
            "reading", tuple(claim.label for claim in group),
            f"{first.metric.said.strip(chr(34))} is a share of the time saved, not a rate gained{in_claims(group)}",
            f"{first.value.figure:g} % of the time saved is {1 / (1 - share):.3g}×, {gained:.3g} % faster",
            "its seconds are those of the same page",
        )  # fmt: skip


def pairs_of(claim: Claim, claims: Sequence[Claim]) -> list[_Pair]:
    """What the ratio can be of: its technique's and its baseline's figures of the same run."""
    found = [
        _Pair(as_printed(one.numbers[1]), as_printed(one.numbers[0]), (f"{one.numbers[1]:g}", f"{one.numbers[0]:g}"))
        for one in claim.printed
        if one.said.replace(" ", "").startswith("1-") and len(one.numbers) == 2
    ]
    for one in claim.printed:  # 16.3 -> 39.57 it/s, 4.8 -> 1.4 s
        if len(one.numbers) == 2 and ("->" in one.said or "→" in one.said):
            ends = [as_printed(number) for number in one.numbers]
            shown = (f"{one.numbers[0]:g} {one.unit}", f"{one.numbers[1]:g} {one.unit}")
            rate = one.unit in ("it/s", "images/s")
            found.append(_Pair(ends[1], ends[0], shown[::-1]) if rate else _Pair(ends[0], ends[1], shown))
    measure = size if claim.metric.kind == "memory_saved" else seconds
    methods = names.methods(claim.technique)
    own = [
        (row, figure) for row in claims
        if names.methods(row.technique) == methods and same_run(claim, row) and parameters_agree(claim, row)
        and (figure := measure(row)) is not None
    ]  # fmt: skip
    bases = [(base, known) for base in claims if own and _is_base_of(claim, base) and (known := measure(base))]
    for row, figure in own:
        for base, before in bases:
            if base is not row and alike(row, base):
                shown = (figure_of(base), figure_of(row))
                inverted = row.metric.kind == "rate" and row.value.unit not in ("s/it", "s/image")
                found.append(_Pair(before, figure, shown[::-1] if inverted else shown, (base.label, row.label)))
        if claim.against.seconds and row.metric.per != "step" and measure is seconds:
            shown = (f"{claim.against.seconds:g} s", figure_of(row))
            found.append(_Pair(as_printed(claim.against.seconds), figure, shown, (row.label,)))
    nearer = [pair for pair in found if not pair.labels or _places(claims, pair.labels) == {claim.source.place}]
    return nearer or found


def _is_base_of(claim: Claim, base: Claim) -> bool:
    """Whether a row is what a ratio is said to be taken of."""
    named = claim.metric.over or claim.technique.lower().partition(" over ")[2]
    mine = names.methods(base.technique)
    if named:
        is_base = mine == names.methods(named)
    else:
        is_base = mine <= {"eager", claim.against.attention} and mine != names.methods(claim.technique)
        if claim.against.compiled and "compile" in mine:
            is_base = mine <= {"compile", claim.against.attention}
    wanted = claim.against.dtype
    given = names.dtype(base.setting.dtype)
    if wanted and given != "unstated" and given != wanted:
        return False
    ignored = ("dtype", "scheduler", "steps") if wanted or claim.against.steps else ()
    if claim.against.steps and base.setting.steps.known and base.setting.steps.value != claim.against.steps:
        return False
    return is_base and same_run(claim, base, ignored)


def _other_baseline(claim: Claim, claims: Sequence[Claim]) -> Iterator[Finding]:
    """A ratio that is taken of another baseline than the text says."""
    said, figure = claim.against.text_says, claim.value.figure
    if not said or figure is None:
        return
    taken = claim.against.said.split("(")[0].strip(" ,")
    arithmetic = f"the figure is taken of {taken}"
    before = claim.against.seconds
    if before and claim.value.unit in ("% of time saved", "% faster", "x"):
        ratio = {"x": figure, "% faster": 1 + figure / 100, "% of time saved": 1 / (1 - figure / 100)}[claim.value.unit]
        after = before / ratio
        arithmetic = f"{_READINGS[claim.value.unit][0].format(f'{before:g} s', f'{after:.4g} s', figure)}, {ratio:.3g}×"
        wanted = names.methods(said)
        rows = [
            (row, before) for row in claims
            if row.source.name == claim.source.name and wanted and names.methods(row.technique) == wanted
            and row.setting.batch.value == claim.setting.batch.value and row.setting.model == claim.setting.model
            and (found := seconds(row)) is not None and row.metric.per != "step" and (before := middle(found))
        ]  # fmt: skip
        for row, then in rows:
            arithmetic += f"; of {figure_of(row)} ({row.technique}, {row.source.place}) "
            arithmetic += f"it would be {100 - 100 * after / then:.3g} %"
    yield Finding(
        "contradiction", (claim.label,), f"{quoted(claim)} is not taken of the baseline that the text names ({said})",
        arithmetic, "the seconds beside it are the ones that it was computed from",
    )  # fmt: skip


def printed_again(claims: Sequence[Claim]) -> Iterator[Finding | str]:
    """`printed +118.1%` beside the figure that has risen so much over the baseline's."""
    for claim in claims:
        for one in claim.printed:
            if len(one.numbers) != 1 or one.place or seconds(claim) is None or one.unit not in ("%", "x"):
                continue
            pairs = [
                (base, before / after)
                for base in claims
                if base is not claim and alike(claim, base) and same_run(claim, base) and names.is_baseline(base)
                and not names.is_baseline(claim)
                and (before := seconds(base)) is not None and (after := seconds(claim)) is not None
            ]  # fmt: skip
            if not pairs:
                continue
            yield claim.label
            shown = as_printed(one.numbers[0], places=1.0)
            if any(shown.meets(_change(claim, one, ratio)) for _, ratio in pairs):
                continue
            base, ratio = pairs[0]
            value = middle(_change(claim, one, ratio))
            yield Finding(
                "contradiction", (claim.label, base.label),
                f"printed {one.said}, by its own figures {value:.4g} {one.unit}",
                f"{figure_of(claim)} beside {figure_of(base)}: {value:.4g} {one.unit}", "both rows are of the same run",
            )  # fmt: skip


def _change(claim: Claim, one: Printed, ratio: Interval) -> Interval:
    """What the printed figure must be, where the baseline takes `ratio` times as long."""
    if one.unit == "x":
        return ratio
    return (ratio if claim.metric.kind == "rate" else ratio.inverse()).plus(-1).scaled(100)


def _places(claims: Sequence[Claim], labels: Sequence[str]) -> set[str]:
    return {claim.source.place for claim in claims if claim.label in labels}


def _about_the_same_run(claim: Claim, pair: _Pair) -> str:
    missing = claim.setting.missing()
    gaps = f" (unstated: {', '.join(missing)})" if missing else ""
    return f"the three figures are of the same run{gaps}" if pair.labels else "the figures beside it are its own"


def in_claims(claims: Sequence[Claim]) -> str:
    return f" (in {len(claims)} claims)" if len(claims) > 1 else ""


def _called_a_speed(claim: Claim) -> bool:
    return any(word in claim.metric.said.lower() for word in ("speed", "fast"))


def _shown(reading: str, pair: _Pair) -> str:
    return _READINGS[reading][0].format(*pair.text, middle(_READINGS[reading][1](pair.ratio)))

"""The table that a run ends with, fitted to the terminal; in a pipe it is 100 columns wide and has no colours."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.box import Box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from optsd.records import Results
from optsd.report.findings import ESTIMATED, answers, failures, said_first
from optsd.report.judged import tally
from optsd.report.tables import BESIDE_SPEED, MAIN, Column, Table, overview

WIDTH_IN_A_PIPE = 100

# Which quality columns stay when not all of them fit.
_DEAR = (
    "objects_right", "fid", "fid_shapes", "lpips", "lpips_shapes", "clip", "clip_shapes", "psnr_db", "ssim",
)  # fmt: skip
_SHORT = {
    "latency_s": "s/image", "speedup_unfused": "speedup today's kernels", "peak_memory_bytes": "peak",
    "memory_reduction": "saved", "disk_bytes": "disk",
}  # fmt: skip
_GAP = 2
_RULES, _ASCII_RULES = (
    Box(f"    \n    \n {rule} \n    \n    \n    \n    \n    \n", ascii=plain)
    for rule, plain in (("──", False), ("--", True))
)
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_TONES = {"good": "green", "bad": "red", "unknown": "dim"}


def print_table(results: Results, console: Console) -> None:
    """One table, variants down and metrics across; below it, why a `-` stands there, and the verdicts."""
    with _wide_enough(console):
        table = overview(results)
        for told in said_first(results):
            console.print(Text(told, style="yellow"))
        if not table.variants:
            console.print(Text("Nothing was measured."))
        else:
            _print_figures(table, console)
        _print_findings(results, console)
        if results.workload.is_estimate:
            console.print(Text(ESTIMATED, style="yellow"))


@contextmanager
def _wide_enough(console: Console) -> Iterator[None]:
    """A pipe has no width, and Rich would take 80 columns for it."""
    width = console.width
    if not console.is_terminal:
        console.width = max(width, WIDTH_IN_A_PIPE)
    try:
        yield
    finally:
        console.width = width


def _print_figures(table: Table, console: Console) -> None:
    plain = console.options.ascii_only
    columns, left_out = _fit(table, console.width)
    notes: dict[str, int] = {}
    rules = _ASCII_RULES if plain else _RULES
    shown = RichTable(box=rules, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    shown.add_column("variant", no_wrap=True, vertical="bottom")
    for column in columns:
        shown.add_column(Text("\n".join(_heading(column))), justify="right", no_wrap=True)
    for row, variant in enumerate(table.variants):
        shown.add_row(Text(variant), *(_cell(column, row, notes, plain) for column in columns))
    console.print(shown)
    for reason, number in notes.items():
        console.print(Text(f"{_mark(number, plain)} {reason}", style="dim"))
    if left_out:
        names = ", ".join(column.label for column in left_out)
        console.print(Text(f"Not shown for want of width, see table.md: {names}", style="dim"))


def _print_findings(results: Results, console: Console) -> None:
    console.print()
    for answer in answers(results):
        line = Text.assemble(f"{answer.question}: ", (" ".join(filter(None, (answer.variant, answer.figure))), "bold"))
        console.print(line.append(f" ({answer.reason})", "dim"))
    if entries := tally(results):
        line = Text("Claims and baselines: ")
        for place, entry in enumerate(entries):
            line.append(", " if place else "").append(str(entry), _TONES[entry.tone])
        console.print(line)
    for said in failures(results):
        console.print(Text(f"Failed or skipped: {said}", style="red"))
    if not results.complete:
        console.print(Text("The run was cut off: these are the figures so far.", style="yellow"))


def _fit(table: Table, width: int) -> tuple[list[Column], list[Column]]:
    """The columns that fit, and those that do not: the dearest are kept, and the order stays."""
    room = width - max(len(name) for name in ["variant", *table.variants])
    order = [*MAIN[:2], *BESIDE_SPEED[:1], *MAIN[2:], *_DEAR]
    ranked = sorted(table.columns, key=lambda column: (*order, column.metric).index(column.metric))
    kept, full = set(), False
    for column in ranked:
        needed = _GAP + _width(column)
        full = full or needed > room
        if not full:
            kept.add(column.metric)
            room -= needed
    return [c for c in table.columns if c.metric in kept], [c for c in table.columns if c.metric not in kept]


def _heading(column: Column) -> tuple[str, str]:
    """Two short lines: the label, and the rest of it or the unit."""
    if column.metric == "speedup":
        interval = "[95 %]" if any(cell.interval for cell in column.cells) else ""
        return "speedup", "at best" if any("at best" in cell.note for cell in column.cells) else interval
    label, _, rest = _SHORT.get(column.metric, column.label).partition(" ")
    unit = "" if column.metric == "latency_s" else column.unit
    return label, " ".join(part for part in (rest.strip("()"), unit) if part)


def _texts(column: Column) -> list[tuple[str, ...]]:
    """What stands in each row: the figure, and for the speedup its interval."""
    with_interval = column.metric == "speedup"
    return [(cell.text, cell.interval) if with_interval and cell.interval else (cell.text,) for cell in column.cells]


def _width(column: Column) -> int:
    noted = [
        " ".join(texts) + "(1)" * bool(cell.aside) for texts, cell in zip(_texts(column), column.cells, strict=True)
    ]
    return max(len(line) for line in [*_heading(column), *noted])


def _cell(column: Column, row: int, notes: dict[str, int], plain: bool) -> Text:
    cell = column.cells[row]
    if cell.value is None:
        number = notes.setdefault(cell.note, len(notes) + 1)
        return Text(f"-{_mark(number, plain)}", style="dim")
    figure, *interval = _texts(column)[row]
    shown = Text.assemble((figure, "bold green" if cell.best else ""))
    if interval:
        shown.append(f" {interval[0]}", "dim")
    if cell.aside:
        shown.append(_mark(notes.setdefault(cell.aside, len(notes) + 1), plain), "dim")
    return shown


def _mark(number: int, plain: bool) -> str:
    """Of a note: small and raised, or where there are no such digits in brackets, which no minus can be taken for."""
    return f"({number})" if plain else str(number).translate(_SUPERSCRIPTS)

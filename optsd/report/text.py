"""The report as text: table.md for people, table.csv for spreadsheets, summary.md for the page of a CI job."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optsd.files import write_atomically
from optsd.judge.verdicts import FAILING
from optsd.records import Results, Verdict, Workload
from optsd.report.findings import answers, found_out, missing, said_first
from optsd.report.judged import judged_nothing, set_apart, sign_of, tally
from optsd.report.tables import Cell, Column, figure, metric_of, overview

_FAILING = (*FAILING, "differs")


def write(results: Results, folder: Path) -> None:
    texts = {"table.md": table_md(results), "table.csv": table_csv(results), "summary.md": summary_md(results)}
    for name, text in texts.items():
        # A results file may hold half of a surrogate pair, which UTF-8 cannot.
        write_atomically(folder / name, text.encode("utf-8", "replace"))


def describe(workload: Workload) -> str:
    """`shapes, cpu float32, 20 steps, guidance 7.5, 64×64, batch 4, seed 42`."""
    own = [f", {name} {value}" for name in ("prompts", "reference") if (value := getattr(workload, name))]
    return (
        f"{workload.model}, {workload.device} {workload.dtype}, {workload.steps} steps, "
        f"guidance {workload.guidance:g}, {workload.width}×{workload.height}, batch {workload.batch_size}, "
        f"seed {workload.seed}{''.join(own)}"
    )


def in_words(machine: Mapping[str, Any]) -> list[str]:
    """The machine as a person would describe it, a line each; what a record lacks is left out."""
    cpu, gpus, versions = (machine.get(name) or {} for name in ("cpu", "gpus", "versions"))
    said = []
    if isinstance(cpu, Mapping) and cpu.get("name"):
        cores = cpu.get("usable_cores") or cpu.get("logical_cores")
        said.append(f"{cpu['name']}, {cores} cores" if cores else str(cpu["name"]))
        if flags := cpu.get("flags"):
            said[-1] += f" ({', '.join(map(str, flags))})"
    if isinstance(memory := machine.get("memory_bytes"), int | float):
        said.append(f"{figure(memory, 'B')} of memory")
    said.append(", ".join(str(gpu.get("name", gpu)) for gpu in gpus) if gpus else "no GPU")
    known = [f"{name} {versions[name]}" for name in ("python", "torch", "diffusers", "optsd") if name in versions]
    said.append(", ".join(filter(None, [str(machine.get("system") or ""), *known])))
    return [line for line in said if line]


def proof_lines(proof: Mapping[str, Any]) -> list[str]:
    """What a technique counted while it ran, a line for each."""

    def said(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} ({said(each)})" for name, each in value.items()) or "none"
        if isinstance(value, list | tuple):
            return ", ".join(map(said, value)) or "none"
        return str(value)

    return [f"  {name.replace('_', ' ')}: {said(value)}" for name, value in proof.items()]


def table_md(results: Results) -> str:
    """The main table with every quality column, the reasons for each `-`, and every verdict."""
    parts = [f"Workload: {escape(describe(results.workload))}", *map(escape, said_first(results)), _figures(results)]
    here, elsewhere = set_apart(results.verdicts)
    if here:
        rows = [
            [
                f"{sign_of(row.status)[0]} {row.status}", row.variant, metric_of(row.metric).label,
                _value(row.measured, row.metric), _value(row.expected, row.metric), row.tolerance, row.source, row.note,
            ]
            for row in here
        ]  # fmt: skip
        heads = ["status", "variant", "metric", found_out(results), "expected", "tolerance", "source", "note"]
        parts.append(_table(heads, rows, "lllrrlll"))
    parts.append("\n".join(f"- ≠ {escape(f'{told}: {why}')}" for told, why in elsewhere))
    if results.bounds and elsewhere:
        beyond = sum(row.get("status") == "unattainable" for row in results.bounds)
        parts.append(escape(f"Of {len(results.bounds)} claims with a bound {beyond} are beyond it: see index.html."))
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_md(results: Results) -> str:
    """What a CI job page shows: the answers, the table, what failed, what is missing."""
    parts = ["## OptSD" if results.complete else "## OptSD (the run was cut off)"]
    parts.append(escape(describe(results.workload)))
    said = [(row.question, " ".join(filter(None, (row.variant, row.figure))), row.reason) for row in answers(results)]
    parts.append("\n".join(f"- **{escape(name)}:** {escape(text)} ({escape(why)})" for name, text, why in said))
    if entries := tally(results):
        parts.append(f"Claims and baselines: {escape(', '.join(map(str, entries)))}")
    parts += map(escape, [*judged_nothing(results), *said_first(results)])
    parts.append("\n".join(_failed(row, found_out(results)) for row in results.verdicts if row.status in _FAILING))
    parts.append(_figures(results))
    gaps = missing(results)
    if gaps:
        listed = "\n".join(f"- {escape(gap)}" for gap in gaps)
        parts.append(f"<details><summary>What is missing, and why ({len(gaps)})</summary>\n\n{listed}\n\n</details>")
    if results.command:
        parts.append(f"Made by {_code(results.command)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def table_csv(results: Results) -> str:
    """One row a figure, values unrounded and in the unit of results.json."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["variant", "metric", "unit", "value", "low", "high", "samples", "note"])
    for row in results.measurements:
        writer.writerow([
            row.variant, row.metric, row.unit, row.value, row.low, row.high, len(row.samples), row.note,
        ])  # fmt: skip
    return stream.getvalue()


def escape(text: str) -> str:
    """Text that Markdown and its HTML show as it is, on one line."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: str) -> str:
    """A code span: its fence is longer than any run of backticks inside."""
    text = re.sub(r"\s+", " ", text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def _figures(results: Results) -> str:
    table = overview(results)
    notes: dict[str, int] = {}
    rows = [
        [variant, *(_cell(column, column.cells[place], notes) for column in table.columns)]
        for place, variant in enumerate(table.variants)
    ]
    shown = _table(["variant", *(column.heading for column in table.columns)], rows, "l" + "r" * len(table.columns))
    reasons = [f"({number}) {escape(reason)}" for reason, number in notes.items()]
    return "\n\n".join([shown, *(["  \n".join(reasons)] if reasons else [])])


def _cell(column: Column, cell: Cell, notes: dict[str, int]) -> str:
    if cell.value is None:
        return f"- ({notes.setdefault(cell.note, len(notes) + 1)})"
    if column.metric != "speedup":
        return cell.text
    aside = f" ({notes.setdefault(cell.aside, len(notes) + 1)})" if cell.aside else ""
    return f"{cell.text} {cell.interval}".rstrip() + aside


def _table(heads: list[str], rows: list[list[str]], sides: str) -> str:
    ruler = ["---:" if side == "r" else "---" for side in sides]
    lines = [[escape(head) for head in heads], ruler, *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _failed(row: Verdict, found_out: str) -> str:
    measured, expected = _value(row.measured, row.metric), _value(row.expected, row.metric)
    text = f"{row.variant}, {metric_of(row.metric).label}: {row.status}, {measured} {found_out}, {expected} expected"
    return f"- {sign_of(row.status)[0]} {escape(text)}"


def _value(value: float | None, name: str) -> str:
    return "-" if value is None else figure(value, metric_of(name).unit)

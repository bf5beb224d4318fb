"""What every plot starts from: the results by variant, and how a variant is drawn."""

from dataclasses import dataclass

from optsd.records import Measurement, Results
from optsd.report.drawing import COLOURS
from optsd.report.tables import all_variants, figure, index, interval, metric_of

_MARKERS = (("flash-enhanced", "D"), ("flash", "^"), ("sdpa", "s"))


@dataclass(frozen=True)
class Run:
    """The results, prepared for drawing. A variant's number is its place in `variants`, as in the page's tables."""

    results: Results
    variants: tuple[str, ...]
    rows: dict[tuple[str, str], Measurement]

    def having(self, *metrics: str) -> list[tuple[int, str, list[Measurement]]]:
        """(number, variant, measurements) of each variant that has a value of every one of these metrics."""
        found = []
        for number, variant in enumerate(self.variants):
            taken = [self.rows.get((variant, name)) for name in metrics]
            present = [row for row in taken if row is not None and row.value is not None]
            if len(present) == len(metrics):
                found.append((number, variant, present))
        return found


def prepare(results: Results) -> Run:
    return Run(results, all_variants(results), index(results))


def style_of(variant: str) -> tuple[str, str, bool]:
    """Colour by weights, marker by attention, hollow with a KV cache: (colour, marker, hollow)."""
    parts = variant.split("+")
    colour = next((part[:4] for part in parts if part.startswith(("int8", "int4"))), "")
    if not colour:
        colour = (
            "other" if any(part.startswith(("deepcache", "tome", "compile", "graph")) for part in parts) else "full"
        )
    marker = next((marker for name, marker in _MARKERS if name in parts), "o")
    return COLOURS[colour], marker, "kvcache" in parts


def said(row: Measurement) -> str:
    about, bounds = metric_of(row.metric), interval(row)
    return f"{about.label} {figure(row.value or 0.0, about.unit)}{f' ({bounds})' if bounds else ''}"

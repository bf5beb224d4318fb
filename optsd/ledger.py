"""What a run computes, moves and holds, by module and operator: figures without noise, as a text to compare.

A ledger is a table of one line an operator in a module, sorted, so that the difference of two files names what
changed. It is counted in a trace under fake tensors: the same code gives the same ledger on every machine that has the
same libraries. Imports no torch.
"""

from collections import Counter
from dataclasses import astuple, dataclass
from typing import Literal, get_args

from optsd.errors import BadInput
from optsd.files import plain_name
from optsd.records import Workload

What = Literal["weights", "runs", "peak", "kept"]
HEADS = ("what", "module", "operator", "type", "number", "flops", "bytes")
BETWEEN = "pipeline"
"""The module of what runs between the components."""
WEIGHT = "weight"
"""The operator of what was there before the run."""


@dataclass(frozen=True, order=True)
class Entry:
    """One operator in one module, of one type.

    `what`: "runs" in one batch, is live at the "peak", is "kept" after it; "weights" of a component.
    """

    what: What
    module: str
    operator: str  # of memory: what made it
    precision: str
    number: int  # of launches, or of tensors
    flops: int  # multiplications and additions on matrices, of floats or integers
    size: int  # bytes moved by all launches together, or held


SUMS: dict[str, tuple[What, int, str]] = {
    # figure -> of which entries it is the sum, of types of at least so many bits, and of what
    "flops": ("runs", 0, "flops"),
    "flops_16bit": ("runs", 16, "flops"),
    "flops_32bit": ("runs", 32, "flops"),
    "moved_bytes": ("runs", 0, "size"),
    "kernel_launches": ("runs", 0, "number"),
    "peak_memory_bytes": ("peak", 0, "size"),
    "weight_bytes": ("weights", 0, "size"),
    "kept_bytes": ("kept", 0, "size"),
}
FIGURES = tuple(SUMS)


@dataclass(frozen=True)
class Ledger:
    """One variant's, of one batch of its workload."""

    entries: tuple[Entry, ...]

    def figures(self) -> dict[str, int]:
        """The totals, by their names in the table of metrics. Less is better in each."""
        return {name: sum(self.sums(name).values()) for name in SUMS}

    def sums(self, figure: str) -> dict[tuple[str, str, str], int]:
        """What the figure is the sum of, by module, operator and type."""
        what, least_bits, amount = SUMS[figure]
        found: Counter[tuple[str, str, str]] = Counter()
        for one in self.of(what):
            if width(one.precision) >= least_bits and getattr(one, amount):
                found[one.module, one.operator, one.precision] += getattr(one, amount)
        return dict(found)

    def of(self, what: What) -> tuple[Entry, ...]:
        return tuple(one for one in self.entries if one.what == what)

    def to_text(self) -> str:
        lines = ("\t".join(map(str, astuple(one))) for one in sorted(self.entries))
        return "\n".join(("\t".join(HEADS), *lines)) + "\n"

    @classmethod
    def from_text(cls, text: str, source: str) -> "Ledger":
        """Raises BadInput, naming `source` and the line, for what `to_text` would not write."""
        head, *lines = text.splitlines() or [""]
        if head.split("\t") != [*HEADS]:
            raise BadInput(f"{source} is no ledger", "record it again with --expected-update")
        entries = []
        for number, line in enumerate(lines, 2):
            what, *names = line.split("\t")
            try:
                module, operator, precision, *counts = names
                count, flops, size = map(int, counts)
                if what not in get_args(What) or min(count, flops, size) < 0:
                    raise ValueError
            except ValueError:
                raise BadInput(
                    f"{source}, line {number} is no entry of a ledger", "record it again with --expected-update"
                ) from None
            entries.append(Entry(what, module, operator, precision, count, flops, size))  # type: ignore[arg-type]
        return cls(tuple(sorted(entries)))


def width(precision: str) -> int:
    """Bits of a type by its name: 16 of `bfloat16`, 8 of `int8`; 0 of none."""
    digits = "".join(letter for letter in precision if letter.isdecimal())
    return int(digits or 0)


def folder_name(workload: Workload) -> str:
    """`shapes-float16-64x64-batch-4-steps-20-guidance-5`: where the ledgers of a workload are kept, one a variant."""
    sizes = f"{workload.width}x{workload.height}-batch-{workload.batch_size}-steps-{workload.steps}"
    return f"{plain_name(workload.model)}-{workload.dtype}-{sizes}-guidance-{workload.guidance:g}"


def file_name(variant: str) -> str:
    return f"{plain_name(variant)}.tsv"

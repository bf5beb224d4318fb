"""`python -m optsd.quality.scale`: how long the metrics of many pictures take with their intervals, in what memory.

    python -m optsd.quality.scale                                  1,000 to 30,000 pictures, 2,048 features
    python -m optsd.quality.scale --counts 1000,5000 --output FOLDER

The features are made, not read in pictures: as wide as Inception's, of one sign, with a spectrum that falls. They lie
on disk, like those of a run. Each count is measured in a process of its own, whose peak is all of its memory, libraries
included; the reference has as many features. Writes scale.json and scale.png.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from optsd import workloads
from optsd.files import write_atomically
from optsd.metrics import metric
from optsd.records import dumps

COUNTS = (1000, 3000, 10000, 30000)
WIDTH, CLASSES = 2048, 1008
DINOV2, CLIP = 1024, 768


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m optsd.quality.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), metavar="N[,N]", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("reports/quality-scale"), help="default: %(default)s")
    parser.add_argument("--one", type=int, metavar="N", help="measure one count in this process and print it as JSON")
    given = parser.parse_args(arguments)
    if given.one is not None:
        workloads.at_least("--one", given.one, 2)
        print(json.dumps(measure(given.one)))
        return 0

    from optsd.measure.environment import machine

    found = []
    for count in map(int, given.counts.split(",")):
        command = [sys.executable, "-m", "optsd.quality.scale", "--one", str(count)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found.append(row)
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in row["seconds"].items())
        print(f"{count:,} pictures: {seconds}; peak {row['peak_bytes'] / 2**20:,.0f} MiB", flush=True)
    write_atomically(given.output / "scale.json", dumps({"machine": machine(), "width": WIDTH, "counts": found}))
    plot(found, given.output / "scale.png")
    return 0


def measure(count: int) -> dict[str, Any]:
    """Seconds, value and interval of each metric of `count` made pictures, and the process's peak memory."""
    from optsd.measure.memory import resident_bytes
    from optsd.quality import metrics
    from optsd.quality.readings import Table

    widths = [(1, WIDTH), (2, WIDTH), (3, CLASSES), (5, DINOV2), (6, DINOV2), (7, CLIP), (8, CLIP)]
    ours, reference, logits, seen, real, embedded, embedded_real = tables = [Table() for _ in widths]
    for table, (seed, width) in zip(tables, widths, strict=True):
        fill(table, count, width, seed)
    cosines = np.random.default_rng(4).normal(0.32, 0.03, count)
    rows = metrics.resample(count)
    measures = {
        "fid": lambda: metrics.fid(ours, reference, rows),
        "kid": lambda: metrics.kid(ours, reference, rows),
        "is": lambda: metrics.inception_score(logits, rows),
        "precision": lambda: metrics.precision(ours, metrics.Manifold.of(reference), rows),
        "recall": lambda: metrics.recall(metrics.Manifold.of(ours), reference, rows),
        "fd_dinov2": lambda: metrics.fid(seen, real, rows),
        "cmmd": lambda: metrics.cmmd(embedded, metrics.Cloud.of(embedded_real), rows),
        "clip": lambda: metrics.mean(cosines, rows),
    }
    seconds, values = {}, {}
    for name, compute in measures.items():
        start = time.perf_counter()
        figure = compute()
        seconds[name] = time.perf_counter() - start
        values[name] = [figure.value, *figure.interval()]
    return {"count": count, "seconds": seconds, "values": values, "peak_bytes": resident_bytes("VmHWM")}


def fill(table: Any, count: int, width: int, seed: int) -> None:
    """Append count×width numbers that look like Inception's pooled features: none below zero, few directions large."""
    rank, rng = 512, np.random.default_rng(seed)
    directions = np.random.default_rng(0).normal(size=(rank, width)).astype(np.float32)
    directions *= (np.arange(1, rank + 1, dtype=np.float32) ** -0.8)[:, None]
    for first in range(0, count, 1000):
        rows = min(1000, count - first)
        large = rng.standard_normal((rows, rank), np.float32) @ directions
        table.append(
            np.maximum(0.4 + 0.1 * seed + 0.25 * large + 0.1 * rng.standard_normal((rows, width), np.float32), 0)
        )


def plot(found: list[dict[str, Any]], file: Path) -> None:
    from io import BytesIO

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = [row["count"] for row in found]
    for name in found[0]["seconds"]:
        left.plot(counts, [row["seconds"][name] for row in found], marker="o", label=metric(name).label)
    left.set(xscale="log", yscale="log", xlabel="pictures", ylabel="seconds, with the interval")
    figure.legend(loc="outside right upper", fontsize="small")  # beside the plots: the lines cross all of theirs
    right.plot(counts, [row["peak_bytes"] / 2**20 for row in found], marker="o", color="black")
    right.set(xscale="log", xlabel="pictures", ylabel="peak of the process, MiB", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    write_atomically(file, stream.getvalue())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

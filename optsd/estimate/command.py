"""`optsd estimate`: what a variant needs at least, and what the guide's claims could be at best, without a GPU."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from optsd.errors import BadInput
from optsd.estimate import Estimate, devices, estimate, measurements, roofline
from optsd.records import Workload
from optsd.workloads import PRESETS, parse_size

EXAMPLES = """examples:
  optsd estimate                                        SD v1.5, the guide's workload, on an A100
  optsd estimate --variant int8+flash --device rtx4090  a variant, against the baseline
  optsd estimate --model sdxl --size 1024 --batch-size 1
  optsd estimate --model PATH --variant flash           any diffusers folder or hub id: configurations suffice
  optsd estimate --json > estimate.json

models: shapes, sd15, sd21, sdxl, dit, a diffusers folder, a hub id
devices: {devices}

Memory is that of live tensors: libraries and their workspaces come on top. Times are lower bounds."""

GIB = 2**30


def main(arguments: list[str]) -> int:
    """Print the estimate; the exit status."""
    chosen = _parser().parse_args(arguments)
    workload = _workload(chosen)
    baseline = estimate(chosen.model, "baseline", workload, chosen.device)
    found = (
        baseline if chosen.variant == "baseline" else estimate(chosen.model, chosen.variant, workload, chosen.device)
    )
    rows = measurements(found, baseline)
    if chosen.json:
        print(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
        return 0
    print("\n\n".join((_heading(found), memory_table(found), *_time_tables(found), _summary(rows))))
    return 0


def memory_table(found: Estimate) -> str:
    """Peak by stage and kind, what makes it, and the largest activations."""
    rows: list[tuple[str, ...]] = [("stage", "GiB at its peak", "weights", "scores", "activations", "reached in")]
    for stage, peak in found.peaks.items():
        kinds = peak.by_kind()
        cause = f"{peak.cause.module or 'between components'}: {_shape(peak.cause.shape)} {peak.cause.operation}"
        sizes = (f"{kinds[kind] / GIB:.2f}" for kind in ("weights", "scores", "activations"))
        rows.append((stage, f"{peak.total / GIB:.2f}", *sizes, cause))
    by_module = list(found.peak.by_module().items())[:5]
    largest = [
        (f"{one.size / GIB:.3f}", one.dtype, _shape(one.shape), one.operation, one.module or "between components")
        for one in found.peak.activations[:5]
    ]
    modules = [("GiB", "made in"), *((f"{size / GIB:.3f}", name) for name, size in by_module)]
    heads = ("GiB", "type", "shape", "made by", "in")
    return "\n\n".join(
        (
            table(rows),
            f"at the highest peak, by module\n{table(modules)}",
            f"largest at the highest peak\n{table([heads, *largest])}",
        )
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, in plain text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _time_tables(found: Estimate) -> list[str]:
    if not found.device.has_data_sheet:
        return []
    stages = [
        ("stage", "s at the roofline"),
        *((name, f"{s:.4f}") for name, s in roofline.stage_seconds(found).items()),
    ]
    kinds = [("kind", "s", "held up by memory", "10¹² operations", "GB moved")]
    for share in roofline.shares(found):
        bound = f"{share.memory_bound_seconds / share.seconds:.0%}"
        kinds.append(
            (share.kind, f"{share.seconds:.4f}", bound, f"{share.flops / 1e12:.2f}", f"{share.moved_bytes / 1e9:.1f}")
        )
    floor = roofline.arithmetic_seconds(found)
    return [
        f"one batch of {found.workload.batch_size}, each operation a kernel of its own\n{table(stages)}",
        f"{table(kinds)}\nmultiplications alone: {floor:.4f} s, the floor for every implementation",
    ]


def _heading(found: Estimate) -> str:
    work, device = found.workload, found.device
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in found.parameters.items())
    return (
        f"{found.model}, {found.variant}, {work.dtype}, {work.width}×{work.height}, batch {work.batch_size}, "
        f"{work.steps} steps, guidance {work.guidance:g}, on {device.title}\nparameters: {sizes}\n"
        f"touched: {len(found.touched)} modules\ndevice: {device.source}"
    )


def _summary(rows: Sequence) -> str:
    shown = [("figure", "estimate", "")]
    for row in rows:
        value = "-" if row.value is None else f"{row.value:,.4g}" if row.unit != "B" else f"{row.value / GIB:.3f} GiB"
        shown.append((row.metric, f"{value} {'' if row.unit == 'B' else row.unit}".strip(), row.note))
    return table(shown)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _workload(chosen: argparse.Namespace) -> Workload:
    from optsd.estimate.architectures import side

    guide = PRESETS["guide"]
    width, height = parse_size(chosen.size) if chosen.size else (side(chosen.model), side(chosen.model))
    device = devices.find(chosen.device)
    dtype = chosen.dtype or ("float16" if device.kind == "cuda" else "float32")
    for option, value in (("--steps", chosen.steps), ("--batch-size", chosen.batch_size)):
        if value < 1:
            raise BadInput(f"{option} {value} is too small", "give 1 or more")
    return Workload(
        chosen.model, device.kind, dtype, chosen.steps, guide.guidance if chosen.guidance is None else chosen.guidance,
        height, width, chosen.batch_size,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    guide = PRESETS["guide"]
    parser = argparse.ArgumentParser(
        prog="optsd estimate",
        description="Memory and time of a variant on a device, from its architecture and the device's data sheet.",
        epilog=EXAMPLES.format(devices=", ".join(devices.DEVICES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="sd15", help="default: %(default)s")
    parser.add_argument("--variant", default="baseline", help="such as int8+flash; default: %(default)s")
    parser.add_argument("--device", default=devices.DEFAULT, help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16 on a GPU")
    parser.add_argument("--size", help="512, or 768x512 for width × height; default: the model's own")
    parser.add_argument("--steps", type=int, default=guide.steps, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, help=f"default: {guide.guidance:g}")
    parser.add_argument("--batch-size", type=int, default=guide.batch_size, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    return parser

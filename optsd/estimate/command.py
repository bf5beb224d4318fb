"""`optsd estimate`: what a variant needs at least, and what the guide's claims could be at best, without a GPU."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from optsd import variants
from optsd.estimate import Estimate, architectures, devices, estimate, measurements, roofline
from optsd.models import Source
from optsd.records import Measurement, Workload
from optsd.workloads import PRESETS, at_least, dtype_name, parse_size

EXAMPLES = """examples:
  optsd estimate                                        SD v1.5, the guide's workload, on an A100
  optsd estimate --variant int8+flash --device rtx4090  a variant, against the baseline
  optsd estimate --variant int8,int4                    a list, as in the benches
  optsd estimate --model sdxl --size 1024 --batch-size 1
  optsd estimate --model PATH --variant flash           any diffusers folder or hub id: configurations suffice
  optsd estimate --json > estimate.json

models: shapes, sd15, sd21, sdxl, dit, a diffusers folder, a hub id
devices: {devices}

Memory is that of live tensors: libraries and their workspaces come on top. Times are lower bounds."""

GIB = 2**30


def main(arguments: list[str]) -> int:
    """Print the estimate; the exit status."""
    options = _parser().parse_args(arguments)
    names = variants.chosen(options.variant, ["baseline"])
    source = architectures.check(options.model)
    device = devices.find(options.device.removeprefix("estimate:"))  # as the benches' --device has it
    workload = _workload(options, source, device)
    baseline = estimate(source.location, "baseline", workload, device.name)
    listed: list[Measurement] = []
    for number, name in enumerate(names):
        found = baseline if name == "baseline" else estimate(source.location, name, workload, device.name)
        rows = measurements(found, baseline)
        listed += rows
        if not options.json:
            told = (_heading(found), memory_table(found), *_time_tables(found), _summary(rows))
            print("\n\n".join(("\n", *told) if number else told), flush=True)
    if options.json:
        print(json.dumps([asdict(row) for row in listed], indent=2, ensure_ascii=False))
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


def _workload(options: argparse.Namespace, source: Source, device: devices.Device) -> Workload:
    width, height = parse_size(options.size) if options.size else source.size
    dtype = dtype_name(options.dtype)
    if dtype == "auto":
        dtype = "float16" if device.kind == "cuda" else "float32"
    at_least("--steps", options.steps, 1)
    at_least("--batch-size", options.batch_size, 1)
    at_least("--guidance", options.guidance, 0)
    return Workload(source.name, device.kind, dtype, options.steps, options.guidance, height, width, options.batch_size)


def _parser() -> argparse.ArgumentParser:
    guide = PRESETS["guide"]
    parser = argparse.ArgumentParser(
        prog="optsd estimate",
        description="Memory and time of a variant on a device, from its architecture and the device's data sheet.",
        epilog=EXAMPLES.format(devices=", ".join(devices.DEVICES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="sd15", help="default: %(default)s")
    parser.add_argument(
        "--variant",
        action="append",
        metavar="NAME[,NAME]",
        help="these, each against the baseline; join techniques with + (default: baseline)",
    )
    parser.add_argument("--device", default=devices.DEFAULT, help="default: %(default)s")
    parser.add_argument("--dtype", default="auto", help="float32, float16, bfloat16; default: float16 on a GPU")
    parser.add_argument("--size", help="512, or 768x512 for width × height; default: the model's own")
    parser.add_argument("--steps", type=int, default=guide.steps, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=guide.guidance, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=guide.batch_size, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    return parser

"""`optsd estimate`: what a variant needs at least, and what the guide's claims could be at best, without a GPU."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import count

from optsd import variants
from optsd.estimate import Estimate, architectures, devices, estimate, measurements, roofline
from optsd.models import Source
from optsd.records import Measurement, Workload
from optsd.report.findings import ESTIMATED
from optsd.report.tables import aligned, figure
from optsd.terminals import progress
from optsd.workloads import PRESETS, at_least, dtype_name, parse_size

EXAMPLES = """examples:
  optsd estimate                                        SD v1.5, the guide's workload, on an A100
  optsd estimate --variant int8+flash --device rtx4090  a variant, against the baseline
  optsd estimate --variant int8,int4 --device a100,h100 lists, as in the benches
  optsd estimate --variant int8 --details               where memory and time go
  optsd estimate --variant 'int8:up_blocks.*=int4'      some layers in another precision (docs/quantization.md)
  optsd estimate --model sdxl --size 1024 --batch-size 1
  optsd estimate --model PATH --variant flash           any diffusers folder or hub id: configurations suffice
  optsd estimate --json > estimate.json

models: {models}, a diffusers folder, a hub id
devices: {devices}

Nothing is run. "At best" is what a technique gives when everything that it changes is done perfectly (docs/claims.md);
"today" counts each operation as a kernel of its own, as today's kernels are. Memory is that of live tensors: libraries
and their workspaces come on top."""

GIB = 2**30
NEWEST_ASKED_FOR = (8, 0)
"""The highest compute capability that a kernel of ours asks for."""


def main(arguments: list[str]) -> int:
    """Print the estimate; the exit status."""
    options = _parser().parse_args(arguments)
    names = variants.chosen(options.variant, ["baseline"])
    source = architectures.check(options.model)
    targets = [devices.find(name.strip().removeprefix("estimate:")) for name in options.device.split(",")]
    workloads = {target.name: _workload(options, source, target) for target in targets}  # all names, before any work
    wanted = list(dict.fromkeys(("baseline", "sdpa", *names)))
    listed: list[tuple[Estimate, list[Measurement]]] = []
    traces: dict[tuple[str, object], Estimate] = {}
    done = count()
    with progress(len(targets) * len(wanted)) as at:
        for target in targets:
            of_target = {}
            for name in wanted if target.has_data_sheet else dict.fromkeys(("baseline", *names)):
                at(f"tracing {name} on {target.name}", next(done))
                place = (name, _kernels_of(target))
                if place not in traces:
                    traces[place] = estimate(source.location, name, workloads[target.name], target.name)
                of_target[name] = replace(traces[place], device=target)
            fused = of_target["sdpa"] if target.has_data_sheet else None
            listed += [(of_target[name], measurements(of_target[name], of_target["baseline"], fused)) for name in names]
    if options.json:
        rows = [asdict(row) | {"device": found.device.name} for found, measured in listed for row in measured]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    print(f"{ESTIMATED}\n{_about(listed[0][0])}\n\n{overview(listed)}")
    for found, _ in listed if options.details else ():
        print("\n\n".join(("", _heading(found), memory_table(found), *_time_tables(found))))
    print(f"\n{ESTIMATED}")
    return 0


def _kernels_of(device: devices.Device) -> object:
    """Alike for devices on which the same kernels run: then one trace serves them, at the rates of each."""
    modern = device.kind == "cuda" and device.capability is not None and device.capability >= NEWEST_ASKED_FOR
    return "modern GPU" if modern else device.name


def overview(listed: Sequence[tuple[Estimate, list[Measurement]]]) -> str:
    """A row for each device and variant: time at best and as today's kernels are, memory."""
    heads = ("device", "variant", "s / image", "at best", "today", "peak", "saved", "weights")
    shown: list[tuple[str, ...]] = [heads]
    for found, rows in listed:
        by_name = {row.metric: row for row in rows}

        def cell(name: str, by_name: dict[str, Measurement] = by_name) -> str:
            row = by_name.get(name)
            return "-" if row is None or row.value is None else figure(row.value, row.unit)

        names = ("latency_s", "speedup", "speedup_unfused", "peak_memory_bytes", "memory_reduction", "weight_bytes")
        shown.append((found.device.name, found.variant, *map(cell, names)))
    return aligned(shown)


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
            aligned(rows),
            f"at the highest peak, by module\n{aligned(modules)}",
            f"largest at the highest peak\n{aligned([heads, *largest])}",
        )
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
        f"one batch of {found.workload.batch_size}, each operation a kernel of its own\n{aligned(stages)}",
        f"{aligned(kinds)}\nmultiplications alone: {floor:.4f} s, the floor for every implementation",
    ]


def _about(found: Estimate) -> str:
    work = found.workload
    return (
        f"{work.model}, {work.dtype}, {work.width}×{work.height}, batch {work.batch_size}, {work.steps} steps, "
        f"guidance {work.guidance:g}"
    )


def _heading(found: Estimate) -> str:
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in found.parameters.items())
    return (
        f"{found.variant} on {found.device.title}\nparameters: {sizes}\n"
        f"touched: {len(found.touched)} modules\ndevice: {found.device.source}"
    )


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
        epilog=EXAMPLES.format(models=", ".join(architectures.NAMED), devices=", ".join(devices.DEVICES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="sd15", help="default: %(default)s")
    parser.add_argument(
        "--variant",
        action="append",
        metavar="NAME[,NAME]",
        help="these, each against the baseline; join techniques with + (default: baseline)",
    )
    parser.add_argument(
        "--device", default=devices.DEFAULT, metavar="NAME[,NAME]", help="see below (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="auto", help="float32, float16, bfloat16; default: float16 on a GPU")
    parser.add_argument("--size", help="512, or 768x512 for width × height; default: the model's own")
    parser.add_argument("--steps", type=int, default=guide.steps, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=guide.guidance, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=guide.batch_size, help="default: %(default)s")
    parser.add_argument("--details", action="store_true", help="where memory and time go, stage by stage")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    return parser

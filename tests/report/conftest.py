"""Invented results for the tests of the report. TEST DATA: no figure here was measured, and none may be published."""

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter

from optsd import report
from optsd.metrics import METRICS, metric
from optsd.records import Measurement, Results, Technique, Verdict, Workload
from optsd.variants import GUIDE_VARIANTS

COLOURS = ("red", "green", "blue", "orange", "purple")
NOT_HERE = "Inception weights are not on this machine: put pt_inception-2015-12-05.pth under $OPTSD_HOME"
MEBIBYTE = 2**20


def invent(
    folder: Path | None = None, variants: tuple[str, ...] = GUIDE_VARIANTS, prompts: int = 12, with_quality: bool = True
) -> Results:
    """A finished run, as far as figures go; with `folder`, its pictures are drawn there."""
    chance = random.Random(7)
    measurements: list[Measurement] = []
    for variant in variants:
        measurements += _performance(variant, chance)
        if with_quality:
            measurements += _quality(variant, prompts, chance)
    return Results(
        machine={
            "name": "TEST DATA: invented machine",
            "cpu": {"model": "Imaginary CPU @ 2.00 GHz", "cores": 2, "flags": ["avx512_vnni", "amx_int8"]},
            "gpu": None,
            "versions": {"torch": "2.11.0", "diffusers": "0.42.1", "optsd": "0.1.0"},
        },
        workload=Workload("shapes", "cpu", "float32", 20, 7.5, 64, 64, 4),
        measurements=tuple(measurements),
        verdicts=tuple(_verdicts(variants, measurements)),
        techniques=tuple(_technique(variant) for variant in variants),
        images=tuple(_images(folder, variants, prompts, measurements)) if folder else (),
        command="TEST DATA pytest bench --model shapes --steps 20",
        created="2026-01-02T03:04:05+00:00",
        complete=True,
    )


def _performance(variant: str, chance: random.Random) -> list[Measurement]:
    speedup = _speedup(variant) * (1 if variant == "baseline" else chance.uniform(0.97, 1.03))
    latency = 0.42 / speedup
    samples = tuple(round(latency * chance.gauss(1, 0.02), 5) for _ in range(9))
    weights = 25.2 * MEBIBYTE * (0.31 if "int4" in variant else 0.53 if "int8" in variant else 1)
    peak = 190 * MEBIBYTE + weights + (0 if "flash" in variant or variant == "sdpa" else 96 * MEBIBYTE)
    figures = {
        "latency_s": (latency, min(samples), max(samples), samples),
        "throughput_images_s": (1 / latency, None, None, ()),
        "speedup": (speedup, speedup * 0.975, speedup * 1.02, ()),
        "text_encoder_s": (0.0021, None, None, ()),
        "unet_step_s": (latency * 4 * 0.88 / 20, None, None, (latency * 4 * 0.88 / 20,) * 20),
        "vae_decode_s": (0.046, None, None, ()),
        "peak_memory_bytes": (peak, None, None, tuple(peak * share for share in (0.7, 0.74, 0.75, 0.75, 0.82))),
        "peak_process_bytes": (peak, None, None, ()),
        "memory_reduction": (1 - peak / (311.2 * MEBIBYTE), None, None, ()),
        "weight_bytes": (weights, None, None, ()),
        "unet_weight_bytes": (weights * 0.7, None, None, ()),
        "disk_bytes": (weights * 1.002, None, None, ()),
    }
    rows = [
        Measurement(variant, name, METRICS[name].unit, value, low, high, taken)
        for name, (value, low, high, taken) in figures.items()
    ]
    return [*rows, Measurement(variant, "compile_s", "s", None, note="there is no compiler on this machine")]


def _speedup(variant: str) -> float:
    if variant == "baseline":
        return 1.0
    return (
        (2.1 if "int8" in variant else 1.7 if "int4" in variant else 1.0)
        * (1.16 if "flash" in variant or variant == "sdpa" else 1.0)
        * (1.02 if "kvcache" in variant else 1.0)
    )


def _quality(variant: str, prompts: int, chance: random.Random) -> list[Measurement]:
    damage = 0.09 if "int4" in variant else 0.015 if "int8" in variant else 0.0
    figures = {
        "fid_shapes": 3.1 * (1 + 3 * damage), "kid_shapes": 0.004 + damage / 50, "is_shapes": 11.2 - 8 * damage,
        "clip_shapes": 0.31 - damage / 10, "objects_right": 0.955 - damage / 2,
    }  # fmt: skip
    rows = [Measurement(variant, name, METRICS[name].unit, v, v * 0.97, v * 1.03) for name, v in figures.items()]
    for name, value in figures.items():
        if variant != "baseline":
            kept = value / (figures[name] + damage)
            rows.append(Measurement(variant, f"{name}_retention", "fraction", kept))
    paired = {"lpips_shapes": 0.002 + damage, "psnr_db": 48 - 200 * damage, "ssim": 0.999 - damage}
    for name, value in paired.items():
        if variant == "baseline":
            rows.append(Measurement(variant, name, METRICS[name].unit, None, note="it is compared with itself"))
            continue
        samples = tuple(value * chance.uniform(0.8, 1.2) for _ in range(prompts))
        rows.append(Measurement(variant, name, METRICS[name].unit, value, value * 0.95, value * 1.05, samples))
    rows += [
        Measurement(variant, name, METRICS[name].unit, None, note=NOT_HERE)
        for name in ("fid", "kid", "is", "clip", "lpips")
    ]
    return rows


def _verdicts(variants: tuple[str, ...], measurements: list[Measurement]) -> list[Verdict]:
    measured = {(row.variant, row.metric): row.value for row in measurements}
    claims = {"int8": (1.39, 0.34), "int4": (1.79, 0.55), "flash": (1.19, 0.1), "int8+flash": (1.65, 0.4)}
    statuses = ("reproduced", "exceeded", "missed", "not comparable", "not measured")
    rows = []
    for variant in variants:
        speedup, reduction = claims.get(variant, (1.1, 0.2))
        for name, expected in (("speedup", speedup), ("memory_reduction", reduction), ("fid", 24.9)):
            status = "not measured" if name == "fid" else statuses[len(rows) % 4]
            value = measured.get((variant, name))
            source = f"expected/claims.json {metric(name).label} {variant}"
            note = "another workload: the guide's is sd15, 50 steps" if status == "not comparable" else ""
            rows.append(Verdict(variant, name, status, value, expected, "±10 %", source, note))
    return rows


def _technique(variant: str) -> Technique:
    proof: dict[str, object] = {"kernels": ["aten::bmm", "aten::_softmax"], "unet_calls": 20}
    if "int" in variant:
        proof |= {"quantized": {"Linear": 96, "Conv2d": 51}, "left": {"unet.conv_in": "first convolution"}}
    if "flash" in variant:
        proof |= {"attention_kernel": "aten::_scaled_dot_product_flash_attention_for_cpu", "kernel_calls": 640}
    if "kvcache" in variant:
        proof |= {"cache_hits": 608, "cache_misses": 32, "active": True}
    touched = tuple(f"unet.down_blocks.{i}.attentions.{j}.attn{k}" for i in range(3) for j in range(2) for k in (1, 2))
    return Technique(variant, "int" not in variant, touched, proof)


def _images(
    folder: Path, variants: tuple[str, ...], prompts: int, measurements: list[Measurement]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    lost = {row.variant: row.samples for row in measurements if row.metric == "lpips_shapes"}
    for variant in variants:
        readings = lost.get(variant, ())
        worst = sorted(range(len(readings)), key=lambda number: -readings[number])[:4]
        for index in range(prompts):
            file = f"images/{variant}/{index:04d}.png"
            first, second = COLOURS[index % 5], COLOURS[(index + 1) % 5]
            prompt = f"a large {first} circle to the left of a small {second} square on a white background"
            row = {"variant": variant, "prompt": prompt, "seed": 42, "index": index, "file": file}
            rank = {"worst": worst.index(index) + 1, "loss": readings[index]} if index in worst else {}
            rows.append(row | rank)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            _draw(first, second, variant, index).save(folder / file)
    return rows


def _draw(first: str, second: str, variant: str, index: int) -> Image.Image:
    picture = Image.new("RGB", (64, 64), (250, 250, 250))
    pen, shift = ImageDraw.Draw(picture), index % 3 + (2 if "int4" in variant else 0)
    pen.ellipse((6 + shift, 18, 30 + shift, 42), fill=first)
    pen.rectangle((42, 24, 56 - shift, 38), fill=second)
    return picture.filter(ImageFilter.GaussianBlur(0.8)) if "int" in variant else picture


@pytest.fixture(scope="session")
def make_results() -> Callable[..., Results]:
    return invent


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and results.json, read only: every test that writes takes a folder of its own."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "results.json").write_text(invent(folder).to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def results(run_folder: Path) -> Results:
    return Results.read(run_folder / "results.json")


@pytest.fixture(scope="session")
def written(results: Results, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with its report, read only."""
    folder = tmp_path_factory.mktemp("written")
    shutil.copytree(run_folder, folder, dirs_exist_ok=True)
    report.write(results, folder)
    return folder


@pytest.fixture
def cut_off(results: Results) -> Results:
    """The same run, killed in its third variant: no quality, no pictures, no verdicts, one failure."""
    kept = results.variants[:3]
    rows = [row for row in results.measurements if row.variant in kept and METRICS.get(row.metric)]
    rows = [row for row in rows if row.metric in METRICS and METRICS[row.metric].kind == "performance"]
    rows = [row for row in rows if (row.variant, row.metric) != (kept[2], "speedup")]
    failure = {"variant": "int4", "stage": "build", "reason": "int4 cannot run here; choose int8"}
    return dataclasses.replace(
        results, measurements=tuple(rows), verdicts=(), images=(), failures=(failure,), complete=False,
        techniques=results.techniques[:3],
    )  # fmt: skip

"""What an author should state so that a claim can be checked: as a file of claims, and as a table for a README.

`of_results` fills it in from a run of the benches: a claim that is made so is checkable by construction.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from optsd.claims.schema import SCHEMA, Against, Claim, Metric, Published, Setting, Source, Stated, Value
from optsd.errors import BadInput
from optsd.metrics import metric
from optsd.records import Measurement, Results

WHAT = {
    "model": ("checkpoint, with its revision", "runwayml/stable-diffusion-v1-5"),
    "device": ("GPU with board and memory", "A100-SXM4-80GB"),
    "dtype": ("type of weights and activations", "float16"),
    "steps": ("denoising steps", 50),
    "scheduler": ("scheduler", "PNDM"),
    "guidance": ("guidance scale; 1 or 0 where there is none", 7.5),
    "size": ("pixels of the pictures", 512),
    "batch": ("pictures in one call", 1),
}
"""Each field of a setting, what to state, and an example."""

METRICS: tuple[dict[str, Any], ...] = (
    {
        "technique": "sdpa",
        "variant": "sdpa",
        "metric": {"said": "seconds an image", "kind": "time", "per": "image", "statistic": "median"},
        "value": {"figure": 1.6, "unit": "s", "low": 1.59, "high": 1.62},
        "images": 40,
    },
    {
        "technique": "DeepCache",
        "variant": "deepcache:3",
        "parameters": {"N": 3, "branch": 0, "schedule": "uniform"},
        "metric": {"said": "seconds an image", "kind": "time", "per": "image", "statistic": "median"},
        "value": {"figure": 0.75, "unit": "s", "low": 0.74, "high": 0.76},
        "images": 40,
    },
    {
        "technique": "DeepCache",
        "variant": "deepcache:3",
        "parameters": {"N": 3, "branch": 0, "schedule": "uniform"},
        "metric": {"said": "speedup", "kind": "speedup"},
        "value": {"figure": 2.13, "unit": "x"},
        "against": {"said": "the row above: SDPA, eager", "attention": "sdpa", "compiled": False, "dtype": "float16"},
        "images": 40,
    },
    {
        "technique": "DeepCache",
        "variant": "deepcache:3",
        "parameters": {"N": 3, "branch": 0, "schedule": "uniform"},
        "metric": {"said": "peak memory", "kind": "memory", "when": "peak", "counted": "allocated"},
        "value": {"figure": 3.1, "unit": "GiB"},
        "images": 1,
    },
    {
        "technique": "DeepCache",
        "variant": "deepcache:3",
        "parameters": {"N": 3, "branch": 0, "schedule": "uniform"},
        "metric": {"said": "FID", "kind": "fid", "reference": "COCO2017 val", "resized": 299, "count": 5000},
        "value": {"figure": 21.5, "spread": 0.3},
        "images": 5000,
        "prompts": "COCO2017 val, the first caption of each picture",
    },
)
"""One claim of each kind that can be checked; the figures are made up."""


def data() -> dict[str, Any]:
    """A file of claims with every field that a check needs, to be filled in."""
    return {
        "$schema": "schema/claims.schema.json",
        "schema": SCHEMA,
        "source": "your project's README",
        "tables": [
            {
                "all": {
                    "source": {
                        "repository": "owner/name", "commit": "0123abc", "document": "README.md", "place": "Benchmarks",
                    },
                    "setting": {name: example for name, (_, example) in WHAT.items()},
                },
                "claims": copy.deepcopy(list(METRICS)),
            }
        ],
    }  # fmt: skip


def json_text() -> str:
    return json.dumps(data(), indent=2, ensure_ascii=False) + "\n"


def markdown(claims: Sequence[Claim] = ()) -> str:
    """The same as two tables: the workload, and the figures with what each was taken of."""
    from pathlib import Path

    from optsd.claims.files import from_data

    shown = list(claims) or list(from_data(data(), Path("template.json")).claims)
    setting = shown[0].setting
    lines = ["| workload | |", "| --- | --- |"]
    lines += [f"| {WHAT[each.name][0]} | {getattr(setting, each.name)} |" for each in fields(Setting)]
    lines += [
        "",
        "| technique | parameters | metric | figure | against | images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for claim in shown:
        metric, value = claim.metric, claim.value
        more = [part for part in (metric.statistic, metric.counted, metric.network, metric.reference) if part]
        more += [f"resized to {metric.resized}"] if metric.resized else []
        figure = f"{value.figure:g} {value.unit}".strip().replace(" x", "×")
        if value.low is not None and value.high is not None:
            figure += f" ({value.low:g} to {value.high:g})"
        if value.spread is not None:
            figure += f" ± {value.spread:g}"
        parameters = ", ".join(f"{key} {item}" for key, item in claim.parameters.items())
        name = f"{metric.said or metric.kind}{f' ({chr(44).join(more)})' if more else ''}"
        lines.append(
            f"| {claim.technique} | {parameters} | {name} | {figure} | {claim.against.said} | {claim.images} |"
        )
    return "\n".join(lines) + "\n"


_OWN = {
    # metric of optsd -> what it is in the words of a claim, and its unit there
    "latency_s": (Metric("seconds an image", "time", per="image", statistic="median"), "s"),
    "throughput_images_s": (Metric("images a second", "rate", per="image", statistic="median"), "images/s"),
    "speedup": (Metric("speedup", "speedup", statistic="median"), "x"),
    "peak_memory_bytes": (Metric("peak memory", "memory", when="peak", counted="allocated"), "B"),
    "memory_reduction": (Metric("memory saved", "memory_saved", when="peak", counted="allocated"), ""),
    "vae_decode_s": (Metric("VAE decode", "time", per="call", scope="vae", statistic="median"), "s"),
}
_CLAIMED = (*_OWN, "weight_bytes", "disk_bytes")


def of_results(results: Results) -> Published:
    """The figures of a run as claims with nothing unstated. Raises BadInput where the run has none."""
    work, machine = results.workload, results.machine
    gpus, cpu = machine.get("gpus") or [], machine.get("cpu") or {}
    schedulers = [row.proof["scheduler"] for row in results.techniques if row.proof.get("scheduler")]
    setting = Setting(
        model=Stated(work.model),
        device=Stated(
            gpus[0].get("name") if work.device == "cuda" and gpus else f"{cpu.get('name') or ''} CPU".strip()
        ),
        dtype=Stated(work.dtype),
        steps=Stated(work.steps),
        scheduler=Stated(schedulers[0] if schedulers else None),
        guidance=Stated(work.guidance),
        size=Stated(work.width if work.width == work.height else f"{work.width}x{work.height}"),
        batch=Stated(work.batch_size),
    )
    commit = str((machine.get("git") or {}).get("commit") or "")
    source = Source(
        repository="optsd" if commit else "", commit=commit, document=f"run of {results.created or 'today'}"
    )
    claims = [_claim(row, results, setting, source) for row in results.measurements if _can_be_claimed(row)]
    if work.is_estimate or not claims:
        raise BadInput("this run measured nothing that could be claimed", "run benches, on a device")
    return Published("", f"a run of optsd on {setting.device}", tuple(claims))


def _can_be_claimed(row: Measurement) -> bool:
    about = metric(row.metric)
    kept = row.metric in _CLAIMED or (about.kind == "quality" and not row.metric.endswith("_retention"))
    return kept and row.value is not None


def _claim(row: Measurement, results: Results, setting: Setting, source: Source) -> Claim:
    made, unit = _OWN.get(row.metric, (Metric(metric(row.metric).label, row.metric), ""))
    quality = metric(row.metric).kind == "quality"
    pictures = sum(image.get("variant") == row.variant for image in results.images)
    taken_of_baseline = row.metric in ("speedup", "memory_reduction")
    return Claim(
        technique=row.variant,
        variant=row.variant,
        metric=made,
        value=Value(figure=row.value, unit=unit, low=row.low, high=row.high),
        source=source,
        setting=setting,
        against=Against("baseline of the same run: eager attention", "eager", results.workload.dtype, False)
        if taken_of_baseline
        else Against(),
        images=Stated(pictures if quality and pictures else max(1, len(row.samples)) * results.workload.batch_size),
        prompts="the standard prompts of optsd for this model" if quality else "",
    )

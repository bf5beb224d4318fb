"""Claims of schema 2 as expectations: what of a source a run can be judged by, workload by workload.

A claim is judged where optsd has its technique, measures its metric, and its unit leaves one reading.
"""

from collections.abc import Mapping
from typing import Any

from optsd.claims import names
from optsd.claims.schema import Claim, Published
from optsd.claims.words import UNITS
from optsd.metrics import METRICS

SD15_WEIGHTS = ("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5")
DEFAULT_TOLERANCE = {"performance": {"relative": 0.1}, "quality": {"relative": 0.05}}


def as_expectations(published: Published) -> list[dict[str, Any]]:
    """The judged claims of a file, grouped by workload, in the form that `optsd.judge.reading` checks."""
    groups: dict[tuple, dict[str, Any]] = {}
    for claim in published.claims:
        row = row_of(claim)
        if row is None:
            continue
        work, machine = workload_of(claim)
        key = (*sorted(work.items()), machine, claim.setting.model, claim.images)
        group = groups.setdefault(
            key,
            {
                "guide": published.source,
                "workload": work,
                "images": claim.images.value,
                "models": dict(published.models) or models_of(claim),
                "tolerance": dict(published.tolerance) or DEFAULT_TOLERANCE,
                "claims": [],
                "machine": machine,
                "unstated": list(claim.setting.missing()),
            },
        )
        if any(_same(row, old) and _figures(row) != _figures(old) for old in group["claims"]):
            row["source"] = f"{row['source']} ({claim.label})"  # two figures for one thing: both are judged
        group["claims"].append(row)
    return list(groups.values())


def row_of(claim: Claim) -> dict[str, Any] | None:
    """The claim as variant, metric and expected figure of optsd; None where it cannot be judged so."""
    name, figures = measured_as(claim)
    if not claim.variant or not name:
        return None
    row: dict[str, Any] = {"variant": claim.variant, "metric": name}
    if "expected" in figures:
        row["expected"] = figures["expected"]
    else:
        ends = {"at_least": figures.get("low"), "at_most": figures.get("high")}
        if None not in ends.values():
            ends = {"from": ends["at_least"], "to": ends["at_most"]}
        row |= {key: value for key, value in ends.items() if value is not None}
    if claim.tolerance:
        row["tolerance"] = dict(claim.tolerance)
    return row | {"source": claim.source.place or claim.source.said, "label": claim.label}


def measured_as(claim: Claim) -> tuple[str, dict[str, float]]:
    """The metric of optsd that a claim is about and its figures there; "" where there is none, or no one reading."""
    name, convert = _conversion(claim)
    if not name or claim.value.outcome or claim.metric.change:
        return "", {}
    value = claim.value
    ends = {"low": value.low, "high": value.high}
    if value.figure is None and value.numbers:
        return name, {key: convert(end) for key, end in ends.items() if end is not None}
    if value.figure is None or value.before is not None:
        return "", {}
    figure = convert(value.figure)
    if value.bound in ("up to", "less than"):
        return name, {"high": figure}
    return name, {"low": figure} if value.bound == "at least" else {"expected": figure}


def workload_of(claim: Claim) -> tuple[dict[str, Any], str]:
    """The fields of a Workload that a claim states, and the GPU or CPU that it names; "" for any."""
    setting = claim.setting
    work: dict[str, Any] = {}
    if setting.device.known:
        plain = str(setting.device).lower()
        is_cpu = any(word in plain for word in ("cpu", "xeon", "core i", "epyc", "ryzen", "core(tm)"))
        work["device"] = "cpu" if is_cpu else "mps" if plain.startswith(("m1", "m2", "mac", "apple")) else "cuda"
    if names.dtype(setting.dtype) in ("float32", "float16", "bfloat16"):
        work["dtype"] = names.dtype(setting.dtype)
    for field_name, name in (("steps", "steps"), ("guidance", "guidance"), ("batch", "batch_size")):
        value = getattr(setting, field_name).value
        if isinstance(value, (int, float)):
            work[name] = value
    if pixels := names.pixels(setting.size):
        work["width"], work["height"] = pixels
    named = setting.device.known and str(setting.device).lower() not in ("cuda", "cpu", "mps")
    return work, str(setting.device) if named else ""


def models_of(claim: Claim) -> dict[str, list[str]]:
    """Values of --model on which a claim means what it says: SD v1.5's weights, or only its layers; a hub id itself."""
    if not claim.setting.model.known:
        return {"performance": [], "quality": []}
    said = str(claim.setting.model)
    if names.architecture(said) == "sd15":
        known = list(SD15_WEIGHTS) if "v1-5" in said or "1.5" in said else []
        return {"performance": [*SD15_WEIGHTS, "sd15-random", said], "quality": [*known, said]}
    same = [names.architecture(said)] if names.architecture(said) else []
    return {"performance": [said, *same], "quality": [said]}


def _conversion(claim: Claim) -> tuple[str, Any]:
    metric, value = claim.metric, claim.value
    dimension, factor = UNITS[value.unit]
    if metric.kind == "speedup":
        one_reading = value.unit in _SPEEDUPS and not metric.over
        return ("speedup", _SPEEDUPS[value.unit]) if one_reading else ("", None)
    if metric.kind == "memory_saved" and value.unit in _SAVED:
        return "memory_reduction", _SAVED[value.unit]
    if metric.kind == "time" and dimension == "time":
        return _time(claim, factor)
    if metric.kind == "rate" and value.unit == "images/s":
        return "throughput_images_s", _times(1.0)
    if metric.kind == "memory" and metric.when == "peak" and dimension == "bytes" and not metric.per:
        return ("peak_memory_bytes", _times(factor)) if metric.counted != "reserved" else ("", None)
    if metric.kind == "clip":
        # Another network's cosines are other figures; 2.5 × max(cosine, 0) is CLIP-S of Hessel et al. (2021).
        return ("clip", _times(factor)) if dimension == "cosine" and not metric.network else ("", None)
    return (metric.kind, _times(1.0)) if metric.kind in METRICS else ("", None)


def _time(claim: Claim, factor: float) -> tuple[str, Any]:
    batch = claim.setting.batch.value
    if claim.metric.scope == "vae":
        return "vae_decode_s", _times(factor)
    if claim.metric.scope:
        return "", None
    if claim.metric.per == "image":
        return "latency_s", _times(factor)
    if claim.metric.per == "call" and isinstance(batch, int):
        return "latency_s", lambda figure: figure * factor / batch
    return "", None


def _times(factor: float) -> Any:
    return lambda figure: figure if factor == 1 else figure * factor if factor > 1 else figure / round(1 / factor, 9)


_SPEEDUPS = {
    "x": lambda figure: figure,
    "": lambda figure: figure,
    "% faster": lambda figure: (100 + figure) / 100,
    "% of time saved": lambda figure: 100 / (100 - figure) if figure < 100 else float("inf"),
}
_SAVED = {"x": lambda figure: 1 - 1 / figure, "%": lambda figure: figure / 100, "": lambda figure: figure}


def _same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (row["variant"], row["metric"], row["source"]) == (other["variant"], other["metric"], other["source"])


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("expected", "at_least", "at_most", "from", "to") if key in row}

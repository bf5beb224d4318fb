"""index.html: one file with style, script, plots and pictures inside, which asks nothing of the network.

A content security policy on the page forbids every request and every script but its own, so that text from a results
file stays text even if an escape were forgotten somewhere.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from optsd.files import write_atomically
from optsd.records import Measurement, Results, Verdict
from optsd.report import judged, pictures
from optsd.report.drawing import Drawing
from optsd.report.findings import answers, disturbances, found_out, missing
from optsd.report.tables import all_variants, figure, index, interval, metric_of, overview
from optsd.report.text import describe, in_words

_TEMPLATES = Path(__file__).parent / "templates"


def write(results: Results, drawings: Sequence[Drawing], folder: Path) -> None:
    """Write index.html; the pictures are read from `folder`."""
    page = render(results, drawings, folder)
    # A results file may hold half of a surrogate pair, which UTF-8 cannot.
    write_atomically(folder / "index.html", page.encode("utf-8", "replace"))


def render(results: Results, drawings: Sequence[Drawing], folder: Path) -> str:
    variants, rows = all_variants(results), index(results)
    number_of = {variant: number for number, variant in enumerate(variants)}
    here, elsewhere = judged.set_apart([row for row in results.verdicts if not judged.is_noise_floor(row)])
    table = overview(results)
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sign"] = judged.sign_of
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html").render(
        results=results,
        variants=variants,
        number_of=number_of,
        workload=describe(results.workload),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        answers=answers(results),
        tally=judged.tally(results),
        about_claims=any(map(judged.is_claim, results.verdicts)),
        counts=judged.count_verdicts(here),
        noise_floor=[row for row in results.verdicts if judged.is_noise_floor(row)],
        judged_nothing=judged.judged_nothing(results),
        missing=missing(results),
        table=table,
        verdicts=sorted((_verdict(row, rows) for row in here), key=lambda item: item["rank"]),
        elsewhere=elsewhere,
        disturbances=disturbances(results),
        asides=dict.fromkeys(cell.aside for column in table.columns for cell in column.cells if cell.aside),
        machine=in_words(results.machine),
        bounds=sorted(map(_bound, results.bounds), key=lambda item: item["rank"]),
        found_out=found_out(results),
        estimated=results.workload.is_estimate,
        sections={
            name: [(drawing, Markup(drawing.inline)) for drawing in drawings if drawing.section == name]
            for name in dict.fromkeys(drawing.section for drawing in drawings)
        },
        techniques=[_technique(results, variant) for variant in variants],
        gallery=_gallery(results, number_of, folder),
        shape=shape_of,
    )


def shape_of(value: Any) -> str:
    """How a value of a proof or of the machine is shown: "tree", "list" or "text"."""
    if isinstance(value, Mapping):
        return "tree"
    return "list" if isinstance(value, (list, tuple)) else "text"


def _verdict(row: Verdict, rows: Mapping[tuple[str, str], Measurement]) -> dict[str, Any]:
    about, found = metric_of(row.metric), rows.get((row.variant, row.metric))
    sign, tone = judged.sign_of(row.status)
    known = list(judged.STATUSES)
    return {
        "row": row,
        "label": about.label,
        "sign": sign,
        "tone": tone,
        "rank": known.index(row.status) if row.status in known else len(known),
        "measured": "-" if row.measured is None else figure(row.measured, about.unit),
        "expected": "-" if row.expected is None else figure(row.expected, about.unit),
        "interval": interval(found) if found is not None else "",
    }


def _bound(row: Mapping[str, Any]) -> dict[str, Any]:
    about, status = metric_of(str(row.get("metric"))), str(row.get("status"))
    sign, tone = {"unattainable": ("✗", "bad"), "possible": ("✓", "good")}.get(status, ("?", "unknown"))
    values = [row.get(name) for name in ("claimed", "bound", "measured")]
    return {
        **{name: str(row.get(name) or "") for name in ("variant", "source", "arithmetic")},
        "status": status,
        "rank": ("unattainable", "possible").index(status) if status in ("unattainable", "possible") else 2,
        "sign": sign,
        "tone": tone,
        "label": about.label,
        "cells": [{"value": value, "text": "-" if value is None else figure(value, about.unit)} for value in values],
    }


def _technique(results: Results, variant: str) -> dict[str, Any]:
    """A variant's evidence, and every figure that it has."""
    found = [
        {
            "label": metric_of(row.metric).label,
            "name": row.metric,
            "value": "-" if row.value is None else figure(row.value, row.unit),
            "interval": interval(row),
            "samples": len(row.samples),
            "note": row.note,
        }
        for row in results.measurements
        if row.variant == variant
    ]
    proofs = [row for row in results.techniques if row.variant == variant]
    failures = [row for row in results.failures if row.get("variant") == variant]
    return {"variant": variant, "technique": proofs[-1] if proofs else None, "figures": found, "failures": failures}


def _gallery(results: Results, number_of: Mapping[str, int], folder: Path) -> dict[str, Any] | None:
    """What the page shows of the pictures; `data` goes to the script. None where no picture can be read."""
    found = pictures.album(results, folder)
    chosen = pictures.embed(found)
    if not chosen.urls:
        return None
    names = [variant for variant in number_of if variant in found.variants]
    advised = next((answer.variant for answer in answers(results) if answer.variant in names), names[-1])
    embedded = {number for _, number in chosen.urls}
    prompts = {
        number: {"text": row.prompt, "seed": str(row.seed)}  # it has 64 bits, a number of JavaScript 53
        for (_, number), row in sorted(found.pictures.items(), key=lambda item: item[0][1])
        if number in embedded
    }
    data = {
        "baseline": number_of.get("baseline", -1),
        "first": next(iter(chosen.worst.get(advised, ())), None),
        "urls": {f"{number_of[variant]}/{number}": url for (variant, number), url in chosen.urls.items()},
        "prompts": prompts,
        "lost": {f"{number_of[variant]}/{number}": _lost(found, variant, number) for variant, number in chosen.urls},
        "choices": {number_of[name]: sorted(n for owner, n in chosen.urls if owner == name) for name in names},
        "names": {number_of[name]: name for name in names},
    }
    return {
        "variants": names,
        "first": advised,
        "shared": chosen.shared,
        "worst": {name: numbers for name, numbers in chosen.worst.items() if numbers},
        "prompts": prompts,
        "lost": data["lost"],
        "count": len(found.pictures),
        "smaller": chosen.smaller,
        "data": data,
    }


def _lost(found: pictures.Album, variant: str, number: int) -> str:
    """`LPIPS 0.021, PSNR 38.2 dB`: the distance of one picture to the baseline's."""
    values = found.lost.get((variant, number), {})
    return ", ".join(f"{metric_of(name).label} {figure(value, metric_of(name).unit)}" for name, value in values.items())


def _breakable(name: str) -> Markup:
    """A variant's name, which may go on in the next line after each of its parts."""
    return escape(name).replace("+", Markup("+<wbr>")).replace(":", Markup(":<wbr>"))

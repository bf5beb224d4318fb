"""Rows of a collection of claims, one table of plain keys each, as claims: nothing lost, nothing invented.

`to_row(from_row(row)) == row` for every row. A row has the keys of `KEYS`, null where the source states nothing.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optsd.claims import names, notes, words
from optsd.claims.schema import Claim, Setting, Source
from optsd.errors import BadInput

KEYS = (
    "source", "url_or_path", "technique", "parameters", "model", "device", "dtype", "steps", "scheduler", "guidance",
    "size", "batch", "images", "baseline", "metric", "value", "unit", "notes", "seen",
)  # fmt: skip
_TEXTS = ("source", "url_or_path", "technique", "baseline", "metric", "unit", "notes", "seen")


def read_rows(file: Path) -> list[Claim]:
    """The claims of a JSON list of rows. Raises BadInput, naming file and row, for what is none."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {file} ({error.strerror})", "give a JSON list of rows") from error
    except ValueError as error:
        raise BadInput(f"{file} is no JSON ({error})", "give a JSON list of rows") from error
    if not isinstance(data, list) or not data:
        raise BadInput(f"{file} holds no rows", f"give a JSON list of tables with the keys {', '.join(KEYS)}")
    return [from_row(row, f"{file} row {number}") for number, row in enumerate(data, 1)]


def from_row(row: Mapping[str, Any], where: str = "row") -> Claim:
    """One row as a claim. Raises BadInput for a key that it does not know: it would be lost."""
    if not isinstance(row, Mapping):
        raise BadInput(f"{where}: it is no table", f"give the keys {', '.join(KEYS)}")
    if unknown := sorted(set(row) - set(KEYS)):
        raise BadInput(f"{where}: unknown key {unknown[0]!r}", f"use {', '.join(KEYS)}")
    said: dict[str, Any] = {key: row.get(key) for key in KEYS}
    for key in _TEXTS:
        said[key] = "" if said[key] is None else said[key]
        if not isinstance(said[key], str):
            raise BadInput(f"{where}: {key} is no text", "quote it")
    for key in ("model", "device", "dtype", "steps", "scheduler", "guidance", "size", "batch", "images"):
        if isinstance(said[key], (bool, list, dict)):
            raise BadInput(f"{where}: {key} {said[key]!r} is neither number nor text", "write it as a number or text")
    if isinstance(said["value"], (bool, list, dict)) or said["value"] in (None, ""):
        raise BadInput(f"{where}: value {said['value']!r} is no figure", "give a number, or its words")
    note, metric = said["notes"], words.metric(said["metric"], said["unit"])
    value = words.value(said["value"], said["unit"])
    found = notes.spread(note)
    if found and value.figure is not None and value.low is None:
        value = replace(value, **found)
    claim = Claim(
        technique=said["technique"],
        metric=metric,
        value=value,
        source=_source(said["source"], said["url_or_path"], said["seen"]),
        setting=Setting(**{
            key: words.stated(said[key])
            for key in ("model", "device", "dtype", "steps", "scheduler", "guidance", "size", "batch")
        }),
        against=notes.against(said["baseline"]),
        parameters=dict(said["parameters"] or {}),
        images=words.stated(said["images"]),
        prompts=notes.prompts(note),
        printed=notes.printed(note),
        note=note,
    )  # fmt: skip
    return replace(claim, variant=names.variant_of(claim))


def to_row(claim: Claim) -> dict[str, Any]:
    """The row again."""
    setting = {key: words.unstated_words(getattr(claim.setting, key)) for key in KEYS if hasattr(claim.setting, key)}
    return {
        **dict.fromkeys(KEYS),
        **setting,
        "source": claim.source.name,
        "url_or_path": claim.source.said,
        "technique": claim.technique,
        "parameters": dict(claim.parameters),
        "images": words.unstated_words(claim.images),
        "baseline": claim.against.said,
        "metric": claim.metric.said,
        "value": claim.value.said or claim.value.figure,
        # The unit of a value in words may stand in the words alone.
        "unit": claim.value.unit_said or ("" if claim.value.said else claim.value.unit),
        "notes": claim.note,
        "seen": claim.source.seen,
    }


def by_source(claims: Iterable[Claim]) -> dict[str, list[Claim]]:
    """Claims by the name of their source, in the order of the rows."""
    found: dict[str, list[Claim]] = {}
    for claim in claims:
        found.setdefault(claim.source.name, []).append(claim)
    return found


def _source(name: str, text: str, seen: str) -> Source:
    """`owner/name@commit path, place` and `document, place` in their parts."""
    at = re.match(r"([\w.-]+/[\w.-]+)@([0-9a-f]{7,40}) (?=\S)", text)
    rest = text[at.end() :] if at else text
    document, comma, place = rest.partition(", ")
    if not comma or not place:
        document, place = rest, ""
    return Source(name, at[1] if at else "", at[2] if at else "", document, place, seen)

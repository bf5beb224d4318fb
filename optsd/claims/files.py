"""Files of claims, schema 2: one source a file, `expected/claims/NAME.json`. Written with one claim a line.

What all claims of a table share stands once, in the table's `all`; a claim's own keys come on top, and of `setting`
each field by itself.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from optsd.claims.schema import SCHEMA, Claim, Metric, Published, Setting, Stated, Value, from_json, to_json
from optsd.errors import BadInput, NotFound
from optsd.files import parse_json, read_text, refuse_number, write_atomically

FOLDER = Path("expected") / "claims"
GUIDE = "guide"
_TOP = ("$schema", "schema", "source", "models", "tolerance", "tables")


def read(file: Path) -> Published:
    """A file of claims. Raises BadInput, naming file, table and claim, for what does not fit the schema."""
    data = load(file)
    if data.get("schema") == 1:
        raise BadInput(f"{file} is a file of claims of schema 1", f"convert it: optsd claims convert {file} NEW.json")
    if data.get("schema") != SCHEMA:
        raise BadInput(f"{file} is no file of claims of schema {SCHEMA}", f'begin it with {{"schema": {SCHEMA}}}')
    return from_data(data, file)


def load(file: Path) -> dict[str, Any]:
    text = read_text(file, "give the path of an expectations file")
    data = parse_json(text, str(file), "restore it from version control", lambda name: refuse_number(file, name))
    return data if isinstance(data, dict) else {}


def from_data(data: Mapping[str, Any], file: Path) -> Published:
    """The claims of a file's plain data, each labelled by the file and its number."""
    if unknown := sorted(set(data) - set(_TOP)):
        raise BadInput(f"{file}: the file: unknown key {unknown[0]!r}", f"use {', '.join(_TOP)}")
    if not isinstance(data.get("source"), str) or not data["source"].strip():
        raise BadInput(f"{file}: it has no source", "name the paper, README or page that makes the claims")
    claims: list[Claim] = []
    for number, table in enumerate(_list(data.get("tables"), f"{file}: tables"), 1):
        where = f"{file}: table {number}"
        if not isinstance(table, Mapping) or set(table) - {"all", "claims"}:
            raise BadInput(f"{where}: it is no table of claims", "give it the keys all and claims")
        shared = table.get("all", {})
        for place, row in enumerate(_list(table.get("claims"), f"{where} claims"), 1):
            if not isinstance(row, Mapping) or not isinstance(shared, Mapping):
                raise BadInput(f"{where} claim {place}: it is no table", "give keys and values")
            whole = {**shared, **row}
            if isinstance(shared.get("setting"), Mapping) and isinstance(row.get("setting"), Mapping):
                whole["setting"] = {**shared["setting"], **row["setting"]}
            claim = from_json(Claim, whole, f"{where} claim {place}")
            source = replace(claim.source, name=data["source"])
            claims.append(replace(claim, source=source, label=f"{file.stem} {len(claims) + 1}"))
    models, tolerance = data.get("models", {}), data.get("tolerance", {})
    for name, part in (("models", models), ("tolerance", tolerance)):
        if not isinstance(part, Mapping):
            raise BadInput(f"{file}: {name}: it is no table", "give keys and values")
    return Published(
        str(file),
        data["source"],
        tuple(claims),
        {kind: tuple(names) for kind, names in models.items()},
        dict(tolerance),
    )


def write(published: Published, file: Path) -> None:
    """Write a file that `read` reads back as it was."""
    top: dict[str, Any] = {"$schema": _schema_of(file), "schema": SCHEMA, "source": published.source}
    for name in ("models", "tolerance"):
        if getattr(published, name):
            top[name] = {key: _plain(part) for key, part in getattr(published, name).items()}
    tables = [
        _table([to_json(replace(claim, source=replace(claim.source, name=""))) for claim in group])
        for _, group in groupby(published.claims, key=lambda claim: (claim.source.said, claim.source.seen))
    ]
    head = json.dumps(top, indent=2, ensure_ascii=False, allow_nan=False)[:-2]
    body = ",\n".join(tables)
    write_atomically(file, f'{head},\n  "tables": [\n{body}\n  ]\n}}\n')


def or_shipped(folder: Path) -> Path:
    """The folder of claims; where there is none, that of the sources which came with this package."""
    places = (Path(__file__).parents[depth] / "expected" / "claims" for depth in (1, 2))  # installed; of a checkout
    return next((place for place in (folder, *places) if any(place.glob("*.json"))), folder)


def find(names: str, folder: Path) -> tuple[Path, ...]:
    """The files that `deepcache,tome` or a path names: by stem, or by a word of the stem. Raises NotFound."""
    found: list[Path] = []
    known = sorted(folder.glob("*.json"))
    for name in filter(None, (part.strip() for part in names.split(","))):
        exact = [file for file in known if file.stem == name.lower()]
        if name.endswith(".json") or "/" in name:
            exact = [Path(name)]
        words = [file for file in known if f"-{name.lower()}-" in f"-{file.stem}-"]
        if not (exact or words):
            listed = ", ".join(file.stem for file in known) or f"none in {folder}"
            raise NotFound(f"no claims {name!r}", f"choose from {listed}, or give a file")
        found += exact or words
    return tuple(dict.fromkeys(found))


def slug(source: str) -> str:
    """What the file of a source is called: `DeepCache (CVPR 2024)` → `deepcache`, `diffusers docs: ToMe` → …-tome."""
    plain = re.sub(r"\s*\([^)]*\)?", "", source)
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "claims"


def publish(claims: Sequence[Claim], folder: Path) -> tuple[Path, ...]:
    """Write the claims, one file a source."""
    names: dict[str, str] = {}
    for source in dict.fromkeys(claim.source.name for claim in claims):
        stem = slug(source)
        while stem in names.values() or stem == GUIDE:
            stem += "-2"
        names[source] = stem
    for source, stem in names.items():
        mine = tuple(claim for claim in claims if claim.source.name == source)
        write(Published(stem, source, mine), folder / f"{stem}.json")
    return tuple(folder / f"{stem}.json" for stem in names.values())


def from_schema_1(data: Mapping[str, Any]) -> Published:
    """The claims of a file of schema 1, which has one workload for all of them."""
    work = dict(data["workload"])
    setting = Setting(
        model=Stated(data["models"]["performance"][0]),
        device=Stated(work["device"]),
        dtype=Stated(work["dtype"]),
        steps=Stated(work["steps"]),
        guidance=Stated(work["guidance"]),
        size=Stated(work["width"] if work["width"] == work["height"] else f"{work['width']}x{work['height']}"),
        batch=Stated(work["batch_size"]),
    )
    claims = tuple(_from_schema_1(row, setting, data) for row in data["claims"])
    return Published("", data["guide"], claims, data["models"], data["tolerance"])


def _from_schema_1(row: Mapping[str, Any], setting: Setting, data: Mapping[str, Any]) -> Claim:
    from optsd.claims.schema import Source
    from optsd.metrics import METRICS, metric

    name = row["metric"]
    low, high = row.get("at_least", row.get("from")), row.get("at_most", row.get("to"))
    about = metric(name)
    return Claim(
        technique=row["variant"],
        metric=Metric(kind=name),
        value=Value(
            figure=row.get("expected"), unit=_OLD_UNITS.get(about.unit, METRICS[name].unit), low=low, high=high
        ),
        source=Source(document=str(data["guide"]), place=row["source"]),
        setting=setting,
        images=Stated(data["images"]),
        variant=row["variant"],
        tolerance=dict(row.get("tolerance", {})),
    )


_OLD_UNITS = {"×": "x", "fraction": ""}


def _table(rows: list[dict[str, Any]]) -> str:
    """A table of claims as JSON: what all of them share, then one line for each."""
    shared = {key: rows[0][key] for key in rows[0] if all(row.get(key) == rows[0][key] for row in rows)}
    first = rows[0].get("setting", {})
    common = {key: first[key] for key in first if all(row.get("setting", {}).get(key) == first[key] for row in rows)}
    if len(rows) == 1:
        shared, common = {}, {}
    lines = []
    for row in rows:
        own = {key: value for key, value in row.items() if key not in shared and key != "setting"}
        setting = {key: value for key, value in row.get("setting", {}).items() if key not in common}
        lines.append("      " + _line({**own, **({"setting": setting} if setting else {})}))
    shared.pop("setting", None)
    everything = {**shared, **({"setting": common} if common else {})}
    head = f'      "all": {_line(everything)},\n' if everything else ""
    claims = ",\n".join(f"  {line}" for line in lines)
    return f'    {{\n{head}      "claims": [\n{claims}\n      ]\n    }}'


def _line(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def _plain(part: Any) -> Any:
    return list(part) if isinstance(part, tuple) else part


def _schema_of(file: Path) -> str:
    return "../schema/claims.schema.json" if file.parent.name == FOLDER.name else "claims.schema.json"


def _list(data: Any, where: str) -> Iterable[Any]:
    if not isinstance(data, list):
        raise BadInput(f"{where}: it is no list", "give a list")
    return data

"""Prompts of one's own, in the forms that the field uses. A file's content says which; it is hostile input.

One prompt a line; JSON lines, or a JSON list, of texts or objects (GenEval's metadata); a table with a header, of tabs
or commas (MLPerf's captions_source.tsv, PartiPrompts, DrawBench); COCO's captions of any year. A row may also have an
id, a seed and the plain name of a picture's file: then the file is a manifest of pictures.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from optsd.data import captions, sets
from optsd.data.prompts import SEED, Prompt
from optsd.errors import BadInput, NotFound
from optsd.files import parse_json

MAX_CHARACTERS = 4096
TEXT = ("prompt", "caption", "text", "prompts", "captions", "description")
FILE = ("file_name", "file", "filename", "image", "path")
ID = ("id", "prompt_id", "caption_id")
SEEDS = ("seed",)
_FORMS = "one prompt a line, JSON lines, a table with a header (tabs or commas), or COCO's captions"
_PARTI = ("Prompt", "Category", "Challenge", "Note")


@dataclass(frozen=True)
class Row:
    """A prompt; where the file says so, its id, the seed and the plain file name of its picture."""

    text: str
    id: str = ""
    file_name: str = ""
    seed: int | None = None


def read(file: Path) -> list[Row]:
    """The prompts of a file. Raises NotFound or BadInput, naming file, row and remedy."""
    try:
        if file.stat().st_size > captions.MAX_FILE_BYTES:
            raise BadInput(f"{file} has {file.stat().st_size / 2**20:.0f} MiB, too much for prompts", f"give {_FORMS}")
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", f"give {_FORMS}") from None
    except OSError as error:
        raise BadInput(f"cannot read {file} ({error.strerror})", "give a file that can be read") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    return parse(text, str(file), is_table=file.suffix.lower() in (".csv", ".tsv"))


def parse(text: str, source: str, is_table: bool = False) -> list[Row]:
    """Those of a file's text. `is_table`: its name says that it has a header. Raises BadInput, naming `source`."""
    head = text.lstrip()[:1]
    first = next((line for line in _lines(text) if line.strip()), "")
    if head in ("[", "{") and (whole := _json(text, source, head, first)) is not None:
        rows = _of_json(whole, source)
    elif head == "{":
        rows = _checked(_json_lines(text, source))
    elif is_table or "\t" in first or _column(first.split(","), TEXT):
        rows = _checked(_table(text, source, first))
    else:
        lines = ((f"{source}, line {n}", line) for n, line in enumerate(_lines(text), 1) if line.strip())
        rows = _checked((place, {"text": line}) for place, line in lines)
    if not rows:
        raise BadInput(f"{source} holds no prompt", f"give {_FORMS}")
    counts = Counter(row.id for row in rows if row.id)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise BadInput(f"{source}: the id {twice[:60]!r} is there twice", "give each prompt an id of its own")
    return rows


def identity(rows: Iterable[Row]) -> str:
    """12 digits that stand for these prompts in a workload: another text, order, seed or picture gives others."""
    return hashlib.sha256(json.dumps([astuple(row) for row in rows]).encode()).hexdigest()[:12]


def prompts(rows: Iterable[Row]) -> tuple[Prompt, ...]:
    return tuple(Prompt(row.text, index, row.file_name) for index, row in enumerate(rows))


def _json(text: str, source: str, head: str, first: str) -> Any:
    """The whole as one value of JSON; None where it is a value a line, or lines that begin with a bracket."""
    if head == "{" and len(_lines(text.strip())) > 1:
        try:
            json.loads(first)  # the first line is a value by itself
        except (ValueError, RecursionError):
            return parse_json(text, source, f"give {_FORMS}")
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if head == "[" and not first.rstrip().endswith((",", "[", "{")):
            return None
        raise BadInput(f"{source} is no JSON ({str(error)[:100]})", f"give {_FORMS}") from error


def _of_json(whole: Any, source: str) -> list[Row]:
    if isinstance(whole, dict) and "annotations" in whole:
        rows = captions.check(whole, source)
        chosen = sets.one_caption_each(rows, len(rows.files), SEED)
        found = [(f"{source}, image {row.image_id}", {"text": row.text, "file": row.file_name}) for row in chosen]
        return _checked(found)
    listed = whole if isinstance(whole, list) else [whole]
    return _checked((f"{source}, entry {number}", _object(entry)) for number, entry in enumerate(listed, 1))


def _json_lines(text: str, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            place = f"{source}, line {number}"
            yield place, _object(parse_json(line, place, "give one JSON object a line"))


def _lines(text: str) -> list[str]:
    """Only at line feeds: JSON may have the others' separators in a text."""
    return text.replace("\r\n", "\n").split("\n")


def _object(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    return value if isinstance(value, dict) else {}


def _table(text: str, source: str, first: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    delimiter = "\t" if "\t" in first else ","
    # PartiPrompts alone is known to write quotation marks as they are.
    how: Any = csv.QUOTE_NONE if tuple(first.split("\t")) == _PARTI else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text.lstrip("\r\n"), newline=""), delimiter=delimiter, quoting=how, strict=True)
    names: list[str] = []
    try:
        for row in reader:
            if not names:
                names = [name.strip() for name in row]
                if not _column(names, TEXT):
                    listed = ", ".join(names)[:200]
                    raise BadInput(f"{source} has no column of text among {listed}", f"call one {TEXT[0]}")
                continue
            if not any(row):
                continue
            place = f"{source}, line {reader.line_num}"
            if len(row) != len(names):
                raise BadInput(f"{place} has {len(row)} fields, the header {len(names)}", "quote what has a delimiter")
            yield place, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise BadInput(f"{source}, line {reader.line_num} is no row of a table ({error})", f"give {_FORMS}") from error


def _checked(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Row]:
    found = []
    for place, row in rows:
        column = _column(row, TEXT)
        if not column:
            listed = ", ".join(map(str, row))[:200] or "no keys"
            raise BadInput(f"{place} has no text, but {listed}", f"call it {TEXT[0]}")
        text, file_name = row[column], _value(row, FILE)
        if not isinstance(text, str) or not text.strip():
            raise BadInput(f"{place}: its {column} is no text", "write a prompt there")
        if len(text) > MAX_CHARACTERS:
            raise BadInput(f"{place}: {len(text):,} characters are no prompt", f"give {MAX_CHARACTERS:,} or fewer")
        text = " ".join(text.split())
        if not text.isprintable():
            raise BadInput(f"{place}: there are characters in it that no one can read", "write plain text")
        if file_name is not None and not captions.PLAIN_NAME.fullmatch(str(file_name)):
            raise BadInput(f"{place}: {str(file_name)[:80]!r} is no plain file name", "name a file without folders")
        number = _value(row, ID)
        found.append(Row(text, "" if number is None else str(number), str(file_name or ""), _seed(row, place)))
    return found


def _seed(row: Mapping[str, Any], place: str) -> int | None:
    said = _value(row, SEEDS)
    if said is None:
        return None
    if isinstance(said, bool) or not re.fullmatch(r"[0-9]{1,20}", str(said)) or int(said) >= 2**64:
        raise BadInput(f"{place}: {str(said)[:40]!r} is no seed", f"give 0 to {2**64 - 1}")
    return int(said)


def _value(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    column = _column(row, names)
    return row[column] if column and row[column] != "" else None


def _column(columns: Iterable[Any], names: tuple[str, ...]) -> str:
    """The first of `names` that is a column's name, as the column spells it; empty where none is."""
    spelled = {str(column).strip().strip('"').lower(): str(column) for column in columns}
    return next((spelled[name] for name in names if name in spelled), "")

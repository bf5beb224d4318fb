"""Where the files of a user are kept, and how every file is read and written."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optsd.errors import BadInput


def home() -> Path:
    """Where models, metric weights and compiled kernels are looked for first: `$OPTSD_HOME`, else `~/.cache/optsd`."""
    return Path(os.environ.get("OPTSD_HOME") or Path.home() / ".cache" / "optsd").expanduser()


def read_text(file: Path, remedy: str) -> str:
    """Text in UTF-8, with or without a byte order mark. Raises BadInput, naming the file, for anything else."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, MemoryError) as error:
        raise BadInput(f"cannot read {file} ({error})", remedy) from error


def parse_json(text: str, source: str, remedy: str, constant: Callable[[str], Any] | None = None) -> Any:
    """JSON in which no key is given twice and every number is one. Raises BadInput, naming `source`, else.

    `constant` makes something of NaN, Infinity and -Infinity, for a reader that can say where they stand.
    """
    try:
        return json.loads(text, parse_constant=constant or _refuse_constant, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{source} is no JSON, or a part of it is missing ({error})", remedy) from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the key {next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)!r} twice")
    return row


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write beside the target and rename: a reader, or a run that was killed, never sees half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.chmod(0o644)  # mkstemp makes files that only their owner can read
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise

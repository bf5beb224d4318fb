"""Where the files of a user are kept, how every file is read and written, and how a text names no user."""

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optsd.errors import BadInput


def home() -> Path:
    """Where models, metric weights and compiled kernels are looked for first: `$OPTSD_HOME`, else `~/.cache/optsd`.

    Where the system knows no home directory (in a container, without HOME and with an unknown user id) it is a folder
    of this user's own among the temporary files. Raises BadInput where there is none.
    """
    given = os.environ.get("OPTSD_HOME")
    try:
        return Path(given).expanduser() if given else Path.home() / ".cache" / "optsd"
    except RuntimeError:
        return _temporary_home()


def _temporary_home() -> Path:
    try:
        folder = Path(tempfile.gettempdir()) / f"optsd-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        problem = f"there is no home directory, and no place among the temporary files ({error.strerror or error})"
        raise BadInput(problem, "set OPTSD_HOME") from error
    # Compiled kernels are loaded from it: whoever can write there could run code as this user.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BadInput(f"{folder} is not this user's alone", "set OPTSD_HOME to a folder of your own")
    return folder


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


def refuse_number(file: Path, name: str) -> float:
    raise BadInput(f"{file}: {name} is no number that JSON knows", "record a measured one, or remove the row")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"the key {next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)!r} twice")
    return row


def plain_name(name: str) -> str:
    """A variant's or a model's name as that of a file: with nothing in it that a file system or an upload refuses.

    `deepcache:3` is `deepcache-3`. One that is long, or has signs that tell it from another, ends with a hash of all.
    """
    plain = "".join(letter if letter.isalnum() or letter in "-+.@" else "-" for letter in name)
    if len(plain) <= _LONG and not set(name) & set("*?="):
        return plain
    return f"{plain[:_LONG]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


_LONG = 80  # of the 255 bytes that a name may have, with what comes before and after


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write beside the target and rename: a reader, or a run that was killed, never sees half a file.

    Raises BadInput where the file cannot be written: no permission, no space.
    """
    try:
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
    except OSError as error:
        raise cannot_write(file, error) from error


def check_writable(folder: Path, option: str) -> None:
    """Make the folder, and write and remove a file there: what is found out now costs no run. Raises BadInput."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(
            f"{option} {folder} cannot be written ({error.strerror or error})", "name another folder"
        ) from error


def cannot_write(file: Path, error: OSError) -> BadInput:
    return BadInput(
        f"cannot write {file} ({error.strerror or error})", "make room or give permission there, or go elsewhere"
    )


def without_user(text: str) -> str:
    """The text without what tells whose machine it is of: the home directory is `~`, a folder of the user `user`."""
    try:
        own = str(Path.home())
    except RuntimeError:
        own = ""
    if len(own) > 1:
        text = re.sub(rf"{re.escape(own)}(?![\w.-])", "~", text)
    name = re.escape(os.environ.get("USER") or os.environ.get("LOGNAME") or Path(own).name)
    # a folder, or /tmp/pytest-of-NAME
    return re.sub(rf"((?<=/)|(?<=-of-)){name}(?![\w.-])", "user", text) if name else text

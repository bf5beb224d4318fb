"""Where the files of a user are kept, how every file is written, and how a text names no user."""

import os
import re
import stat
import tempfile
from pathlib import Path

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

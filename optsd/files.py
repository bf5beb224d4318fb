"""Where the files of a user are kept, and how every file is written."""

import os
import tempfile
from pathlib import Path


def home() -> Path:
    """Where models, metric weights and compiled kernels are looked for first: `$OPTSD_HOME`, else `~/.cache/optsd`."""
    return Path(os.environ.get("OPTSD_HOME") or Path.home() / ".cache" / "optsd").expanduser()


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

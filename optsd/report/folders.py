"""Where runs lie: each in a folder of its own, `reports/<when>-<process>`; `reports/latest` leads to the newest."""

import contextlib
import os
import re
from datetime import datetime, timezone
from pathlib import Path

LATEST = "latest"
_OF_A_RUN = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)+")


def new_run(reports: Path, began: datetime | None = None) -> Path:
    """A folder that no other run has; it is not made yet. The time (default: now) is UTC's."""
    moment = began or datetime.now(timezone.utc)
    name = f"{moment.astimezone(timezone.utc):%Y-%m-%d_%H-%M-%S}-{os.getpid()}"
    folder, number = reports / name, 1
    while folder.exists():
        number += 1
        folder = reports / f"{name}-{number}"
    return folder


def make_latest(folder: Path) -> None:
    """Make the folder, and let `latest` beside it lead there. A folder that is called `latest` gets a name of its own.

    Where links cannot be made there is no `latest`; `newest` finds the run all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    link = folder.parent / LATEST
    beside = folder.parent / f".{LATEST}.{folder.name}"
    with contextlib.suppress(OSError, NotImplementedError):
        if link.is_dir() and not link.is_symlink():
            link.rename(new_run(folder.parent, datetime.fromtimestamp(link.stat().st_mtime, timezone.utc)))
        beside.symlink_to(folder.name, target_is_directory=True)
        beside.replace(link)
    beside.unlink(missing_ok=True)


def newest(reports: Path) -> Path:
    """The folder that `latest` leads to; where that leads nowhere, of the last run that left results."""
    if (reports / LATEST / "results.json").is_file():
        return reports / LATEST
    runs = [folder for folder in runs_in(reports) if (folder / "results.json").is_file()]
    return runs[-1] if runs else reports / LATEST


def runs_in(reports: Path) -> list[Path]:
    """The folders of runs, the oldest first."""
    found = reports.iterdir() if reports.is_dir() else ()
    return sorted(folder for folder in found if _OF_A_RUN.fullmatch(folder.name) and folder.is_dir())


def bytes_of(folders: list[Path]) -> int:
    """What they take of the disk, links not followed."""
    return sum(file.lstat().st_size for folder in folders for file in folder.rglob("*"))

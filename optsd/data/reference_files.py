"""A folder of pictures of one's own to compare with, by what is in it. Imports neither torch nor NumPy."""

import hashlib
from pathlib import Path

from optsd.data.captions import PLAIN_NAME
from optsd.errors import BadInput, NotFound

SUFFIXES = (".jpg", ".jpeg", ".png")


def names(folder: Path) -> list[str]:
    """The pictures' files, in order. Raises NotFound for fewer than two, BadInput where it cannot be read."""
    try:
        found = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    except OSError as error:
        raise BadInput(f"cannot read {folder} ({error.strerror})", "give a folder that can be read") from error
    found = [name for name in found if PLAIN_NAME.fullmatch(name)]
    if len(found) < 2:
        raise NotFound(f"{folder} holds {len(found)} pictures", "give a folder of two or more, JPEG or PNG")
    return found


def identity(folder: Path) -> str:
    """12 digits that stand for these pictures in a workload."""
    digest = hashlib.sha256()
    for name in names(folder):
        try:
            content = hashlib.sha256((folder / name).read_bytes())
        except OSError as error:
            raise BadInput(f"cannot read {folder / name} ({error.strerror})", "give pictures to read") from error
        digest.update(f"{name} {content.hexdigest()}\n".encode())
    return digest.hexdigest()[:12]

"""What is benched beside our variants: somebody's callable, or a folder of somebody's pictures. Imports no torch.

    --subject openvino=my_package.pipelines:draw      speed, memory, size where it tells, and quality
    --subject theirs=folder/                          quality only

The callable is `draw(prompts, seeds, workload)` and gives a picture for each prompt: PIL's RGB images of the workload's
size, or an array N×H×W×3 of uint8 or of numbers from 0 to 1. `seeds` has a number for each picture; our own pictures
start from `torch.Generator("cpu").manual_seed(number)`. What takes long is made once: a callable of one argument, a
class for example, gets the workload and gives such a `draw`. It may have `weight_bytes` and `proof`, a number and a
dictionary or functions that return them.
"""

import importlib
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optsd import sources
from optsd.data import prompt_files
from optsd.errors import BadInput, NotFound
from optsd.records import Workload
from optsd.variants import is_variant

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "manifest"
"""A folder's file of prompts and seeds is called so, whatever its suffix."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_CONTRACT = "it gets (prompts, seeds, workload), or the workload alone and returns what does"


@dataclass(frozen=True)
class Drawer:
    """Somebody's callable, by its place: `my_package.pipelines:draw`, looked for from `folder` too."""

    name: str
    target: str
    folder: Path

    def load(self, workload: Workload) -> Callable[..., Any]:
        """Import it, and make what it makes of a workload. Runs its code: in a process of its own (`measure.guest`)."""
        module, _, attribute = self.target.partition(":")
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise BadInput(f"{self.name}: {module} has no {attribute}", "name a callable that is there")
            found = getattr(found, part)
        if not callable(found):
            raise BadInput(f"{self.name}: {self.target} is a {type(found).__name__}, no callable", _CONTRACT)
        if _takes(found, 3):
            return found
        if not _takes(found, 1):
            raise BadInput(f"{self.name}: {self.target} takes other arguments", _CONTRACT)
        made = found(workload)
        if not callable(made) or not _takes(made, 3):
            kind = type(made).__name__
            raise BadInput(f"{self.name}: {self.target} returns a {kind}, no draw(prompts, seeds, workload)", _CONTRACT)
        return made


@dataclass(frozen=True)
class Folder:
    """Somebody's pictures, and a manifest (`optsd.data.prompt_files`) of the prompt and seed of each."""

    name: str
    folder: Path

    def manifest(self) -> list[prompt_files.Row]:
        """Its rows. Raises NotFound or BadInput for a folder without one, and for rows without prompt, seed or file."""
        found = sorted(file for file in self.folder.glob(f"{MANIFEST}.*") if file.is_file())
        if len(found) != 1:
            which = "no manifest" if not found else f"{len(found)} manifests"
            raise NotFound(
                f"{self.name}: {self.folder} has {which}",
                f"write one {MANIFEST}.jsonl or {MANIFEST}.csv there, with prompt, seed and file of each picture",
            )
        rows = prompt_files.read(found[0])
        for number, row in enumerate(rows, 1):
            if row.seed is None or not row.file_name:
                lacks = "seed" if row.seed is None else "file"
                raise BadInput(f"{found[0]}: picture {number} has no {lacks}", "give prompt, seed and file of each")
        (place, times), *_ = Counter((row.text, row.seed) for row in rows).most_common(1)
        if times > 1:
            raise BadInput(f"{found[0]}: two pictures of {place[0][:60]!r} with seed {place[1]}", "leave one of them")
        return rows

    def pictures(self, prompts: Sequence[str], seeds: Iterable[int], height: int, width: int) -> "np.ndarray":
        """Seeds × prompts pictures, seed by seed: N×H×W×3, uint8. `seeds` are the run's: 42, then 43, ….

        Raises BadInput where one is missing, cannot be read, or has another size.
        """
        import numpy as np

        rows = {(row.text, row.seed): row.file_name for row in self.manifest()}
        wanted = [(text, seed) for seed in seeds for text in prompts]
        if missing := [place for place in wanted if place not in rows]:
            text, seed = missing[0]
            raise BadInput(
                f"{self.name} lacks {len(missing)} of {len(wanted)} pictures, first of {text[:60]!r} with seed {seed}",
                "draw them, or take its own prompts: --prompts MANIFEST --images N --seed SEED",
            )
        return np.stack([_read(self.folder, rows[place], height, width, self.name) for place in wanted])


Subject = Drawer | Folder


def parse(text: str, folder: Path) -> Subject:
    """`name=package.module:callable` or `name=folder/`, the latter relative to `folder`.

    Raises BadInput, NotFound: for a module or a name in it too that its source does not have. Runs none of its code.
    """
    name, equals, target = text.partition("=")
    if not equals or not target or not _NAME.fullmatch(name):
        raise BadInput(f"--subject {text} is no subject", "write NAME=package.module:callable, or NAME=FOLDER")
    if is_variant(name):
        raise BadInput(f"--subject {name} is the name of a variant of ours", "call it something else")
    place = folder / Path(target).expanduser()
    if place.is_dir():
        theirs = Folder(name, place)
        theirs.manifest()
        return theirs
    if not _TARGET.fullmatch(target):
        raise NotFound(f"--subject {name}: there is no folder {target}", "name one, or package.module:callable")
    sources.check(target, folder, f"--subject {name}")
    return Drawer(name, target, folder)


def parse_all(texts: Iterable[str], folder: Path) -> dict[str, Subject]:
    """Subjects by name. Raises BadInput for a name that is given twice."""
    found: dict[str, Subject] = {}
    for text in texts:
        subject = parse(text, folder)
        if subject.name in found:
            raise BadInput(f"--subject {subject.name} is given twice", "call one of them something else")
        found[subject.name] = subject
    return found


def checked(made: Any, count: int, height: int, width: int) -> "np.ndarray":
    """What a callable gave, as N×H×W×3 of uint8. Raises BadInput where that is not `count` pictures of this size."""
    import numpy as np
    from PIL import Image

    remedy = f"return {count} pictures of {width}×{height} pixels: PIL's, RGB, or an array N×H×W×3 of uint8 or 0 to 1"
    if isinstance(made, np.ndarray):
        if made.ndim != 4 or made.shape[3] != 3 or not (made.dtype == np.uint8 or made.dtype.kind == "f"):
            raise BadInput(f"an array of {made.dtype} and shape {made.shape} is no set of pictures", remedy)
        pictures = list(made)
    elif isinstance(made, list | tuple):
        pictures = list(made)
    else:
        raise BadInput(f"a {type(made).__name__} is no set of pictures", remedy)
    if len(pictures) != count:
        raise BadInput(f"{len(pictures)} pictures for {count} prompts", remedy)
    found = []
    for number, picture in enumerate(pictures):
        if isinstance(picture, Image.Image):
            if picture.mode != "RGB":
                raise BadInput(f"picture {number} has the mode {picture.mode}", remedy)
        elif not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
            raise BadInput(f"picture {number} is a {type(picture).__name__}, no picture", remedy)
        pixels = np.asarray(picture)
        if pixels.shape[:2] != (height, width):
            raise BadInput(f"picture {number} has {pixels.shape[1]}×{pixels.shape[0]} pixels", remedy)
        if pixels.dtype.kind == "f":
            if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
                raise BadInput(f"picture {number} has numbers that are not from 0 to 1", remedy)
            pixels = (pixels * 255).round().astype(np.uint8)
        if pixels.dtype != np.uint8:
            raise BadInput(f"picture {number} is of {pixels.dtype}", remedy)
        found.append(pixels)
    return np.stack(found)


def weight_bytes(draw: Any) -> int | None:
    """What a callable says of the bytes of its weights; None where it says nothing. Raises BadInput for no number."""
    said = _said(draw, "weight_bytes")
    if said is None or (isinstance(said, int) and not isinstance(said, bool) and said > 0):
        return said
    raise BadInput(f"its weight_bytes are {said!r:.60}", "give a number of bytes above 0, or leave it out")


def proof(draw: Any) -> dict[str, Any]:
    """What a callable says of what ran: a dictionary that JSON can hold. Raises BadInput for anything else."""
    said = _said(draw, "proof")
    try:
        made = json.loads(json.dumps({} if said is None else said, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadInput(f"its proof cannot be written as JSON ({error})", "give numbers and texts by name") from error
    if not isinstance(made, dict):
        raise BadInput(f"its proof is a {type(said).__name__}", "give a dictionary of numbers and texts")
    return made


def _said(draw: Any, name: str) -> Any:
    said = getattr(draw, name, None)
    return said() if callable(said) else said


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # of a function in C nothing is known
        return count == 3
    return True


def _read(folder: Path, name: str, height: int, width: int, subject: str) -> "np.ndarray":
    import numpy as np
    from PIL import Image

    try:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{subject}: {name[:80]!r} leads out of its folder", "name files in it")
        with Image.open(folder / name, formats=["PNG", "JPEG", "WEBP"]) as opened:
            if opened.size != (width, height):
                raise BadInput(
                    f"{subject}: {name} has {opened.width}×{opened.height} pixels, not {width}×{height}",
                    "draw at the run's --size",
                )
            return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"{subject}: {name[:80]} is no picture ({error})", "draw it again as PNG") from error

"""Techniques that other packages bring: classes that they name under the entry point `optsd.techniques`.

    [project.entry-points."optsd.techniques"]
    mine = "my_package.technique:Mine"

`optsd.patching.Optimization` says what such a class is, `optsd.testing` tests it. Imports no torch until one is used.
"""

import hashlib
import inspect
import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from optsd import __version__
from optsd.errors import BadInput

GROUP = "optsd.techniques"
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_ATTRIBUTES = ("name", "exact", "stage", "slot")
_METHODS = ("check", "apply")


@cache
def techniques() -> dict[str, tuple[EntryPoint, ...]]:
    """What the installed packages name, by name: more than one entry where packages take the same name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        same = found.get(entry.name, ())
        if not any((entry.value, _package(entry)) == (other.value, _package(other)) for other in same):
            found[entry.name] = (*same, entry)  # a package that lies on the path twice is one
    return found


def refuse_taken(name: str, ours: bool) -> None:
    """Raise BadInput, naming both packages, for a name that means two techniques. `ours`: optsd has it too."""
    packages = ([f"optsd {__version__}"] if ours else []) + [_package(entry) for entry in techniques().get(name, ())]
    if len(packages) > 1:
        raise BadInput(
            f"the technique {name!r} is in {' and in '.join(packages)}", "uninstall one, or ask its author to rename it"
        )
    if not NAME.fullmatch(name):
        raise BadInput(f"{packages[0]} calls a technique {name!r}", "a name has small letters, digits and hyphens")


def load(name: str, parameter: str | None) -> Any:
    """The technique of that name, made with the parameter after its colon if there is one.

    Raises BadInput, naming both packages, where it cannot be imported or made, or is no technique.
    """
    (entry,) = techniques()[name]
    whose = f"the technique {name!r} of {_package(entry)}"
    try:
        kind = entry.load()
        if parameter is not None and not hasattr(kind, "from_text"):
            raise BadInput(f"{name} takes no parameter, {name}:{parameter} gives one", f"write {name}")
        made = kind() if parameter is None else kind.from_text(parameter)
    except BadInput:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        raise BadInput(f"{whose} cannot be used with optsd {__version__} ({said})", "mend or uninstall it") from error
    if problem := breach(made, name):
        raise BadInput(
            f"{whose} is none of optsd {__version__}: {problem}", "its author can test it with optsd.testing"
        )
    return made


def breach(technique: Any, name: str) -> str:
    """How an object breaks the protocol `optsd.patching.Optimization`; empty where it does not."""
    from optsd.patching import Stage

    if lacking := [each for each in (*_ATTRIBUTES, *_METHODS) if not hasattr(technique, each)]:
        return f"it lacks {', '.join(lacking)}"
    if wrong := [each for each in _METHODS if not callable(getattr(technique, each))]:
        return f"its {wrong[0]} cannot be called"
    if str(technique.name).partition(":")[0] != name:
        return f"it calls itself {technique.name!r}"
    if not isinstance(technique.exact, bool):
        return f"its exact is {technique.exact!r}, not True or False"
    if not isinstance(technique.stage, Stage):
        return f"its stage is {technique.stage!r}, no optsd.patching.Stage"
    if not isinstance(technique.slot, str) or not technique.slot:
        return f"its slot is {technique.slot!r}, no name"
    try:
        again = hash(technique) == hash(type(technique)()) or technique != type(technique)()
    except TypeError as error:
        return f"it cannot be hashed or made without arguments ({error}): make it a frozen dataclass"
    if not again or " object at 0x" in repr(technique):
        return "two of it are not equal: make it a frozen dataclass"
    return ""


def source_of(technique: object) -> str:
    """SHA-256 of the package, or the module, that a technique from outside is written in; empty for one of ours."""
    module = type(technique).__module__
    if module.partition(".")[0] == "optsd":
        return ""
    file = inspect.getsourcefile(type(technique))
    if file is None:
        return module
    top = Path(file)
    depth = module.count(".")  # a.b.c lies in a/b/c.py: its package is the folder a
    root = top.parents[depth - 1 if top.stem != "__init__" else depth] if depth or top.stem == "__init__" else top
    digest = hashlib.sha256()
    for each in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
        digest.update(each.name.encode() + b"\0" + each.read_bytes() + b"\0")
    return digest.hexdigest()


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value

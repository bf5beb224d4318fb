"""What a module defines, by its source: read, and never run. Imports nothing that it looks at.

A name that is not there is found in a moment, and not when a run comes to it. What only running the module could tell
counts as there.
"""

import ast
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from optsd.errors import BadInput, NotFound

_DYNAMIC = {"globals", "locals", "vars", "exec", "eval", "setattr", "__getattr__", "__path__", "modules"}
"""Names in a source that may bind others: `globals()["draw"] = …`, `sys.modules[…]`, a module's own `__getattr__`."""

_SHOWN = 5


def check(target: str, folder: Path, what: str) -> None:
    """`package.module:name` or `…:Class.name`, as Python imports it where `folder` comes first.

    Raises NotFound, which begins with `what`, for a module or a name that is not there, BadInput for a source that is
    no Python.
    """
    module, _, attribute = target.partition(":")
    file = _find(module, folder, what)
    if file is None:
        return
    tree: ast.AST = _parsed(file, what)
    place = module
    for name in attribute.split("."):
        known = _bound(tree)
        if known is None or _is_submodule(file, name):  # of a package, which whatever is imported may bind
            return
        if name not in known:
            raise NotFound(f"{what}: {place} has no {name} ({file})", f"name one of {_listed(known)}")
        within = known[name]
        if not isinstance(within, ast.ClassDef) or within.bases or within.keywords or within.decorator_list:
            return
        tree, place = ast.Module(within.body, []), f"{place}:{name}"


def _find(module: str, folder: Path, what: str) -> Path | None:
    """The module's source; None where it has none, or only its package could tell."""
    top, *parts = module.split(".")
    spec, name = _top(top, folder), top
    if spec is None:
        raise NotFound(f"{what}: no module {top!r}", f"install it, or run where {top} lies")
    for part in parts:
        inside = spec.submodule_search_locations
        found = PathFinder.find_spec(f"{name}.{part}", list(inside)) if inside is not None else None
        if found is None:
            source = _source(spec)
            if source is not None and _names(_parsed(source, what)) & _DYNAMIC:
                return None
            meant = folder.joinpath(*module.split("."))
            if meant.with_suffix(".py").is_file() or (meant / "__init__.py").is_file():
                hides = f"{meant.parent} is hidden by another {top!r}, in {', '.join(map(str, inside or ()))}"
                raise NotFound(f"{what}: {hides}", "install what lies there without -e, or rename your folder")
            where = f" in {', '.join(map(str, inside))}" if inside else ""
            raise NotFound(f"{what}: no module '{name}.{part}'{where}", "name a module that is there")
        spec, name = found, f"{name}.{part}"
    return _source(spec)


def _top(name: str, folder: Path) -> ModuleSpec | None:
    found = PathFinder.find_spec(name, [str(folder), *sys.path])
    if found is None:  # one that is built in, or that something else than the path finds
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
    return found


def _source(spec: ModuleSpec) -> Path | None:
    file = Path(spec.origin) if spec.origin else None
    return file if file is not None and file.suffix == ".py" and file.is_file() else None


def _is_submodule(file: Path, name: str) -> bool:
    return file.name == "__init__.py" and ((file.parent / name).is_dir() or any(file.parent.glob(f"{name}.*")))


def _parsed(file: Path, what: str) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        line = f", line {error.lineno}," if isinstance(error, SyntaxError) and error.lineno else ""
        raise BadInput(f"{what}: {file}{line} is no Python ({getattr(error, 'msg', error)})", "mend it") from None


def _names(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        found |= {getattr(node, key) for key in ("id", "attr", "name") if isinstance(getattr(node, key, None), str)}
    return found


def _bound(tree: ast.AST) -> dict[str, ast.AST] | None:
    """What a module or a class binds, by name; None where its source does not tell."""
    if _names(tree) & _DYNAMIC:
        return None
    found: dict[str, ast.AST] = {}
    waiting = list(ast.iter_child_nodes(tree))
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Global):
            found |= dict.fromkeys(inner.names, inner)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.asname or alias.name for alias in node.names]
            if "*" in names:
                return None
            # `from .sub import name` in a package binds `sub` too, and `import package.sub` does.
            names.append(getattr(node, "module", None) or "")
            found |= {part: node for name in names for part in name.split(".") if part}
            continue
        name = getattr(node, "name", None) or getattr(node, "rest", None)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        if isinstance(name, str):
            found[name] = node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


def _listed(known: dict[str, ast.AST]) -> str:
    """What is defined there: what is imported too is rarely meant."""
    own = sorted(
        name for name, node in known.items() if name[0] != "_" and not isinstance(node, ast.Import | ast.ImportFrom)
    )
    more = f" and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
    return ", ".join(own[:_SHOWN]) + more if own else "those that are there"

"""What holds of the source as a whole."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("optsd", "bench", "conftest_plugins")
ANATOMY = ROOT / "optsd" / "anatomy.py"
DENOISERS = ("unet", "transformer")
MAKERS = "networks"
"""The module of the shipped model, whose functions of these names make its networks."""


def _asks(tree: ast.AST) -> Iterator[str]:
    """Every look at a pipeline's denoiser by its attribute, and at a pipeline's class."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=base), attr=name) if name in DENOISERS and base == MAKERS:
                continue
            case ast.Attribute(value=ast.Attribute(attr="mark")):  # pytest's
                continue
            case ast.Attribute(attr=name, lineno=line) if name in DENOISERS:
                yield f"{line}: .{name}"
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(name), *_]):
                if name in DENOISERS:
                    yield f"{node.lineno}: {name}"
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, kind]):
                if any(name.endswith("Pipeline") and name != "DiffusionPipeline" for name in _names(kind)):
                    yield f"{node.lineno}: {ast.unparse(node)}"


def _names(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr


def test_only_the_anatomy_asks_what_a_pipeline_is_made_of() -> None:
    files = [ROOT / "conftest.py", *(file for folder in CODE for file in (ROOT / folder).rglob("*.py"))]
    assert ANATOMY in files
    found = {
        str(file.relative_to(ROOT)): asks
        for file in files
        if file != ANATOMY and (asks := list(_asks(ast.parse(file.read_text(encoding="utf-8")))))
    }
    assert not found, "ask optsd.anatomy"


@pytest.mark.parametrize(
    ("line", "asks"),
    [
        ("pipe.unet(x)", 1),
        ("pipe.transformer.config", 1),
        ("flash.unet.forward = step", 1),
        ("getattr(pipe, 'unet', None)", 1),
        ("isinstance(pipe, diffusers.FluxPipeline)", 1),
        ("isinstance(pipe, (A, StableDiffusionPipeline))", 1),
        ("isinstance(pipe, diffusers.DiffusionPipeline)", 0),
        ("StableDiffusionPipeline(unet=networks.unet())", 0),
        ("from diffusers.models.transformers import x", 0),
    ],
)
def test_what_counts_as_asking(line: str, asks: int) -> None:
    assert len(list(_asks(ast.parse(line)))) == asks


def test_every_page_is_in_the_index_and_every_link_leads_somewhere() -> None:
    pages = {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"}
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page for page in pages if f"({page})" in index} == pages
    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{file.name}: {target}"


@pytest.mark.parametrize("page", ["reference", "shapes-dit"])
def test_what_a_committed_report_links_to_is_committed_too(page: str) -> None:
    file = ROOT / "reports" / page / "index.html"
    links = set(re.findall(r'href="([^"#:]+)"', file.read_text(encoding="utf-8")))
    assert "table.md" in links
    assert [link for link in sorted(links) if not (file.parent / link).is_file()] == []


def _imports(file: Path) -> set[str]:
    """The modules of ours that a file imports, be it in a function or for its types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                found |= {each.name for each in names}
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found |= {module, *(f"{module}.{each.name}" for each in names)}
            case ast.ImportFrom(module=module, names=names, level=1):
                package = ".".join(file.relative_to(ROOT).parent.parts)
                base = f"{package}.{module}" if module else package
                found |= {base, *(f"{base}.{each.name}" for each in names)}
    with_packages = {".".join(name.split(".")[:size]) for name in found for size in range(1, name.count(".") + 2)}
    return {name for name in with_packages if name.split(".")[0] in CODE}


def test_no_two_files_import_each_other() -> None:
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for folder in CODE
        for file in (ROOT / folder).rglob("*.py")
    }
    known = {name: {other for other in _imports(file) if other in files} - {name} for name, file in files.items()}
    pairs = {
        tuple(sorted((one, other)))
        for one, others in known.items()
        for other in others
        # a package that offers what its modules have imports them: only between files is it a circle
        if one in known[other] and not one.startswith(f"{other}.") and not other.startswith(f"{one}.")
    }
    assert not pairs


@pytest.mark.parametrize("room", ["judge", "report"])
def test_who_judges_and_reports_imports_no_torch(room: str) -> None:
    code = f"import pkgutil, sys, importlib, optsd.{room} as room\n" + (
        "[importlib.import_module(each.name) for each in pkgutil.iter_modules(room.__path__, room.__name__ + '.')]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

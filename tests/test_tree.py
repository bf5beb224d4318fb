"""What holds of the source as a whole."""

import ast
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

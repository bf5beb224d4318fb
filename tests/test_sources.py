"""Names in a module's source: found without running it, and never missed where only running it could tell."""

import subprocess
import sys
from pathlib import Path

import pytest

from optsd import sources
from optsd.errors import BadInput, NotFound

BINDINGS = (
    "def draw(): ...", "async def draw(): ...", "class draw: ...", "draw = 1", "draw: int = 1",
    "a, (draw, *b) = 1, (2, 3)",
    "import draw", "import x as draw", "from x import draw", "from x import y as draw",
    "if 1:\n    draw = 1", "try:\n    import x\nexcept ImportError:\n    draw = None", "for draw in (): ...",
    "with open('x') as draw: ...", "(draw := 1)", "def f():\n    global draw\n    draw = 1",
    "while 0:\n    class draw: ...",
    "match 1:\n    case draw: ...", "match [1]:\n    case [*draw]: ...", "match {}:\n    case {**draw}: ...",
)  # fmt: skip
DYNAMIC = (
    "from x import *", "globals()['dr' + 'aw'] = 1", "def __getattr__(name): ...", "exec('dr' + 'aw = 1')",
    "import sys; setattr(sys.modules[__name__], 'dr' + 'aw', 1)",
)  # fmt: skip


def module(folder: Path, text: str, name: str = "theirs/drawing.py") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("text", [*BINDINGS, *DYNAMIC])
def test_a_name_that_is_there_or_may_be_is_found_and_nothing_is_run(tmp_path: Path, text: str) -> None:
    sources.check("theirs.drawing:draw", module(tmp_path, f"{text}\nraise SystemExit"), "--subject mine")
    assert "theirs" not in sys.modules


@pytest.mark.parametrize(
    "text", ["def drawing(): ...", "draw()", "x.draw = 1", "def f():\n    draw = 1", "class A:\n    draw = 1", "'draw'"]
)
def test_a_name_that_is_not_there_is_said_with_those_that_are(tmp_path: Path, text: str) -> None:
    folder = module(tmp_path, f"{text}\nOther = 1")
    with pytest.raises(NotFound, match=r"mine: theirs\.drawing has no draw \(.*drawing\.py\); name one of .*Other"):
        sources.check("theirs.drawing:draw", folder, "--subject mine")


def test_names_in_a_class_are_looked_at_where_it_inherits_nothing(tmp_path: Path) -> None:
    folder = module(tmp_path, "class A:\n    def draw(self): ...\n\nclass B(A): ...\n\n@x\nclass C: ...")
    for target in ("A.draw", "B.draw", "C.draw", "B.anything"):
        sources.check(f"theirs.drawing:{target}", folder, "x")
    with pytest.raises(NotFound, match=r"theirs\.drawing:A has no paint"):
        sources.check("theirs.drawing:A.paint", folder, "x")


def test_modules_are_found_as_python_finds_them(tmp_path: Path) -> None:
    module(tmp_path, "from .inner import thing", "whole/__init__.py")
    module(tmp_path, "def draw(): ...", "whole/inner.py")
    module(tmp_path, "def draw(): ...", "single.py")
    for target in ("whole:inner.draw", "whole:thing", "whole.inner:draw", "single:draw", "os.path:join", "math:sqrt"):
        sources.check(target, tmp_path, "x")
    sources.check("numpy:array", tmp_path, "x")
    for target, said in (
        ("whole.outer:draw", r"no module 'whole\.outer'"),
        ("single.inner:draw", r"no module 'single\.inner'"),
        ("nosuchmodule:draw", "no module 'nosuchmodule'"),
        ("single:paint", "single has no paint"),
    ):
        with pytest.raises(NotFound, match=said):
            sources.check(target, tmp_path, "x")


def test_a_source_that_is_no_python_is_said_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"x: .*drawing\.py, line 2, is no Python \(.*\); mend it"):
        sources.check("theirs.drawing:draw", module(tmp_path, "a = 1\ndef draw(:"), "x")


@pytest.mark.parametrize("name", ["json", "dataclasses", "enum", "asyncio"])
def test_every_public_name_of_real_modules_is_found(name: str, tmp_path: Path) -> None:
    """Against Python itself: whatever a module has when it was run."""
    code = f"import {name}; print(*(each for each in vars({name}) if each.isidentifier() and each[0] != '_'))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(names) > 5
    for each in names:
        sources.check(f"{name}:{each}", tmp_path, "x")


def test_a_folder_that_another_package_of_its_name_hides_is_said_to_be_hidden(tmp_path: Path, monkeypatch) -> None:
    """As a project's `bench/` beside an editable checkout of this one."""
    (tmp_path / "elsewhere" / "theirs").mkdir(parents=True)
    (tmp_path / "elsewhere" / "theirs" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    __import__("theirs")
    try:
        with pytest.raises(NotFound, match=r"hidden by another 'theirs', in .*elsewhere.theirs; install .* without -e"):
            sources.check("theirs.drawing:draw", module(tmp_path, "def draw(): ..."), "--subject mine")
    finally:
        del sys.modules["theirs"]

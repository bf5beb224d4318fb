"""Techniques of other packages: known by name, combined with ours, and refused by the names of both packages."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from optsd import outside, variants
from optsd.errors import BadInput
from optsd.judge.expectations import GUIDE_TOLERANCES, Baselines, Row, Run
from optsd.judge.reading import parse_baselines
from optsd.optimizations.kvcache import KVCache
from optsd.outside import breach
from optsd.patching import Stage
from optsd.records import Workload, dumps

THEIRS = """
from dataclasses import dataclass
from optsd.errors import BadInput
from optsd.patching import Patch, Stage

@dataclass(frozen=True)
class Mine:
    every: int = 2
    exact: bool = True
    stage: Stage = Stage.REUSE
    slot: str = "mine"
    @property
    def name(self):
        return "mine" if self.every == 2 else f"mine:{self.every}"
    @classmethod
    def from_text(cls, text):
        return cls(int(text))
    def check(self, pipe): ...
    def apply(self, pipe):
        return Patch(self.name, ("unet",))

@dataclass(frozen=True)
class Plain(Mine):
    name: str = "plain"
    from_text = property()

class Nothing: ...
class Failing:
    def __init__(self): raise RuntimeError("no licence")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pretend that packages are installed: (package, name, value) each."""
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "__init__.py").write_text("")
    (tmp_path / "their_package" / "technique.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)

    def entries(*rows: tuple[str, str, str]) -> Path:
        found = []
        for package, name, value in rows:
            entry = EntryPoint(name, f"their_package.technique:{value}", outside.GROUP)
            vars(entry)["dist"] = SimpleNamespace(name=package, version="1.2")
            found.append(entry)
        monkeypatch.setattr(outside, "entry_points", lambda group: found)
        outside.techniques.cache_clear()
        return tmp_path / "their_package"

    yield entries
    outside.techniques.cache_clear()
    for name in [name for name in sys.modules if name.startswith("their_package")]:
        del sys.modules[name]


def test_it_is_a_variant_like_ours(install) -> None:
    install(("theirs", "mine", "Mine"))
    assert variants.canonical("mine+int8") == "int8+mine"
    assert [step.name for step in variants.parse("int8+mine:3").steps] == ["int8", "mine:3"]
    assert variants.chosen(["mine,int8+mine"], []) == ("mine", "int8+mine")
    assert [step.slot for step in variants.against_eager("mine").steps] == ["attention", "mine"]
    assert variants.is_variant("mine")
    assert not variants.is_ours("int8+mine")
    with pytest.raises(BadInput, match="unknown variant 'other'; choose from combined, .*int4-torchao, mine, or join"):
        variants.canonical("other")


def test_nothing_is_imported_to_know_its_name(install) -> None:
    install(("theirs", "mine", "Mine"))
    variants.canonical("mine+int8")
    assert "their_package" not in sys.modules


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        (
            [("theirs", "int8", "Mine")],
            "int8+flash",
            "'int8' is in optsd .* and in theirs 1.2; uninstall one, or ask its",
        ),
        ([("a", "mine", "Mine"), ("b", "mine", "Plain")], "mine", "'mine' is in a 1.2 and in b 1.2; uninstall one"),
        ([("theirs", "Mine!", "Mine")], "Mine!", "theirs 1.2 calls a technique 'Mine!'; a name has small letters"),
        ([("theirs", "other", "Mine")], "other", "'other' of theirs 1.2 is none of optsd .*: it calls itself 'mine'"),
        (
            [("theirs", "nothing", "Nothing")],
            "nothing",
            "of theirs 1.2 is none of optsd .*: it lacks name, exact, stage",
        ),
        ([("theirs", "gone", "Gone")], "gone", "of theirs 1.2 cannot be used with optsd .* \\(AttributeError: "),
        ([("theirs", "fail", "Failing")], "fail", "cannot be used with optsd .* \\(RuntimeError: no licence\\)"),
        ([("theirs", "plain", "Plain")], "plain:3", "plain takes no parameter|cannot be used with optsd"),
    ],
)
def test_what_is_wrong_names_both_packages(install, rows, name: str, message: str) -> None:
    install(*rows)
    with pytest.raises(BadInput, match=message):
        variants.parse(name)


def test_names_that_are_not_used_clash_with_nothing(install) -> None:
    install(("theirs", "int8", "Mine"))
    assert variants.parse("flash").name == "flash"


def test_a_package_that_lies_on_the_path_twice_is_one(install) -> None:
    install(("theirs", "mine", "Mine"), ("theirs", "mine", "Mine"))
    assert variants.parse("mine").name == "mine"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"exact": 1}, "its exact is 1, not True or False"),
        ({"stage": 4}, "its stage is 4, no optsd.patching.Stage"),
        ({"slot": ""}, "its slot is '', no name"),
        ({"apply": 3}, "its apply cannot be called"),
        ({"__hash__": None}, "it cannot be hashed or made without arguments"),
        ({"__eq__": lambda self, other: True, "__hash__": lambda self: id(self)}, "two of it are not equal"),
    ],
)
def test_a_breach_is_named(changes: dict, problem: str) -> None:
    whole = {"name": "mine", "exact": True, "stage": Stage.REUSE, "slot": "mine", "check": print, "apply": print}
    whole |= {"__repr__": lambda self: "Mine()", "__eq__": lambda self, other: True, "__hash__": lambda self: 1}
    assert breach(type("Mine", (), whole | changes)(), "mine").startswith(problem)
    assert bool(breach(type("Mine", (), whole | changes)(), "mine")) == bool(problem)


def test_ours_keep_the_protocol() -> None:
    assert breach(KVCache(), "kvcache") == ""


def test_pictures_are_of_the_source_that_made_them(install) -> None:
    package = install(("theirs", "mine", "Mine"))
    (step,) = variants.parse("mine").steps
    before = outside.source_of(step)
    assert len(before) == 64
    assert outside.source_of(KVCache()) == ""
    (package / "helper.py").write_text("number = 1")
    assert outside.source_of(step) != before


def test_recorded_figures_are_read_where_nothing_of_theirs_is_installed() -> None:
    work = Workload("shapes", "cpu", "float32", 2, 5.0, 64, 64, 1, prompts="0123456789ab")
    rows = tuple(Row(name, "weight_bytes", 100.0) for name in ("int8+mine", "theirs", "sdpa"))
    run = Run(work, "", 0, {}, {}, {}, 0.0, {}, rows)
    data = Baselines("it.json", "machine", dict(GUIDE_TOLERANCES), (run,)).to_json()
    assert data["runs"][0]["others"] == ["int8+mine", "theirs"]
    found = parse_baselines(Path("it.json"), dumps(data))
    assert found.run(work) is not None
    assert {row.variant for row in found.runs[0].rows} == {"int8+mine", "theirs", "sdpa"}
    del data["runs"][0]["others"]
    with pytest.raises(BadInput, match="unknown variant 'int8\\+mine'"):
        parse_baselines(Path("it.json"), dumps(data))
    data["runs"][0]["others"] = "theirs"
    with pytest.raises(BadInput, match="runs row 1 others: it is no list of names"):
        parse_baselines(Path("it.json"), dumps(data))

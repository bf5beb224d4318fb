"""No code from the folders that options name is run, however the command is written and wherever it is given."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd import pytest_plugin

ROOT = Path(__file__).parents[2]
FOLDERS = ("--model", "--coco", "--metric-weights", "--image-store", "--output", "--expected")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder whose conftest.py, if it is run, says so."""
    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "conftest.py").write_text("from pathlib import Path\nPath(__file__).with_name('sprung').touch()\n")
    (folder / "test_trap.py").write_text("import conftest\n")
    return folder


@pytest.fixture
def entry_point(tmp_path: Path) -> Path:
    """What an installed project has beside its package: pytest finds the plugin through it."""
    metadata = tmp_path / "site" / "optsd_here-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: optsd-here\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[pytest11]\noptsd.pytest_plugin = optsd.pytest_plugin\n")
    return metadata.parent


def run(where: Path, *words: str | Path, path: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(path)))}
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_no_folder_that_an_option_names_is_taken_for_tests(trap: Path) -> None:
    words = [word for option in FOLDERS for word in (option, trap)]
    result = run(ROOT, "bench/test_size.py", *words, "--collect-only", "-q")
    assert result.returncode == 0, result.stderr
    assert "bench/test_size.py::test_size[int8+flash]" in result.stdout
    assert "test_trap" not in result.stdout
    assert not (trap / "sprung").exists()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (".", ("--model", "TRAP", "bench/test_size.py")),
        (".", ("bench/test_size.py", "--model=TRAP")),
        (".", ("-m", "size", "--model", "TRAP")),  # no path but the model's: pytest looks for its configuration there
        ("docs", ("../bench/test_size.py::test_size", "--model", "TRAP")),
        ("TRAP", (ROOT / "bench" / "test_size.py", "--model", ".")),
    ],
)
def test_no_code_of_a_model_is_run(where: str, words: tuple[str | Path, ...], trap: Path, entry_point: Path) -> None:
    folder = trap if where == "TRAP" else ROOT / where
    words = tuple(str(word).replace("TRAP", str(trap)) for word in words)
    result = run(folder, *words, "--collect-only", "-q", path=entry_point)
    assert "test_size.py::test_size[int8+flash]" in result.stdout
    assert result.returncode == 0
    assert not (trap / "sprung").exists()


def test_workers_run_no_code_of_a_model(trap: Path) -> None:
    """xdist hands the options to its workers."""
    result = run(trap, ROOT / "bench" / "test_size.py", "-n", "1", "--model", "../trap", "-k", "nothing")
    assert result.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert not (trap / "sprung").exists()


def test_options_in_the_environment_are_read_alike(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", f"--model '{trap}'")
    assert run(ROOT, "bench/test_size.py", "--collect-only").returncode == 0
    assert not (trap / "sprung").exists()


def test_other_projects_are_left_alone(tmp_path: Path, entry_point: Path) -> None:
    option = "parser.addoption('--model', action='store_true')"
    (tmp_path / "conftest.py").write_text(f"def pytest_addoption(parser): {option}")
    (tmp_path / "test_it.py").write_text("def test_it(pytestconfig): assert pytestconfig.getoption('--model') is True")
    result = run(tmp_path, "--model", "test_it.py", path=entry_point)
    assert "1 passed" in result.stdout
    assert result.returncode == 0


def test_a_checkout_has_its_benches_elsewhere(tmp_path: Path, entry_point: Path) -> None:
    result = run(tmp_path, "--pyargs", "optsd.bench", path=entry_point)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: optsd.bench is not in a checkout of OptSD; run there: pytest bench" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "is_asked"),
    [
        (["--pyargs", "optsd.bench"], True),
        (["optsd.bench.test_speed", "--pyargs", "-q"], True),
        (["--pyargs", "optsd.bench.test_speed::test_speed[int8]"], True),
        (["optsd.bench"], False),
        (["--pyargs", "optsd.benches"], False),
        (["--pyargs", "my.optsd.bench"], False),
        (["--pyargs", "tests", "-k", "bench"], False),
    ],
)
def test_who_asks_for_the_benches(words: list[str], is_asked: bool) -> None:
    assert pytest_plugin.asked(words) is is_asked


def test_the_options_are_those_that_take_a_value() -> None:
    class Parser:
        def __init__(self) -> None:
            self.names: set[str] = set()

        def getgroup(self, *_: str) -> "Parser":
            return self

        def addoption(self, name: str, action: str = "store", **_: object) -> None:
            if action in ("store", "append"):
                self.names.add(name)

    parser = Parser()
    for name in pytest_plugin.PLUGINS:
        module = importlib.import_module(f"conftest_plugins.{name}")
        if hasattr(module, "pytest_addoption"):
            module.pytest_addoption(parser)
    assert parser.names == pytest_plugin.TAKE_A_VALUE


WORDS = st.lists(st.sampled_from(["--model", "--claims", "-m", "bench", "a b", "--size=64", "-v", "--steps"]))


@given(WORDS)
def test_joining_keeps_every_word_in_its_order(words: list[str]) -> None:
    made = pytest_plugin.joined(words)
    parts = [part for word in made for part in (word.split("=", 1) if word not in words else [word])]
    assert parts == words
    assert pytest_plugin.joined(made) == made


def test_joining() -> None:
    words = ["bench", "--claims", "--model", "a b", "--size=64", "-k", "x", "--steps", "--seed", "3", "--output"]
    expected = ["bench", "--claims", "--model=a b", "--size=64", "-k", "x", "--steps", "--seed=3", "--output"]
    assert pytest_plugin.joined(words) == expected

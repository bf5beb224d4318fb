"""Every sign of ours in terminals that lack it, in real processes: nothing fails, and it still means the same."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.records import Measurement, Results, Verdict, Workload
from optsd.terminals import survive

ROOT = Path(__file__).parents[1]
NARROW = {
    "no locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "old Windows": {"PYTHONIOENCODING": "cp437"},
}
SIGNS = "× ÷ ± − · ≈ ≠ → … ─ │ ✓ ✗ ▲ ² “” é ᵀ"
WORKLOAD = Workload("shapes", "cpu", "float32", 20, 5.0, 64, 64, 4)


def run(command: list, environment: dict, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd, env={**kept, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    """A run whose report has every sign that a table can have."""
    folder = tmp_path_factory.mktemp("café-×")
    rows = (
        *(Measurement(name, "speedup", "×", 1.0 + place, 0.9, 2.2) for place, name in enumerate(("baseline", "int8"))),
        Measurement("int8", "fid", "", None, note=f"needs {SIGNS}"),
        Measurement("baseline", "fid", "", 3.0),
        Measurement("int8", "ssim", "", 0.9),
    )
    said = ("missed", "reproduced", "exceeded", "not comparable", "not measured")
    verdicts = tuple(Verdict("int8", "speedup", status, 1.0, 2.0, "±10 %", "claims", SIGNS) for status in said)
    results = Results({}, WORKLOAD, rows, verdicts, command=f"pytest bench {SIGNS}", complete=True)
    (folder / "results.json").write_text(results.to_json(), encoding="utf-8")
    return folder / "results.json"


@pytest.mark.parametrize("environment", NARROW.values(), ids=NARROW)
@pytest.mark.parametrize("arguments", [["report", "--table-only"], ["compare"], ["compare", "--json"]], ids=" ".join)
def test_what_a_command_prints(run_file, arguments, environment):
    files = [run_file, run_file] if "compare" in arguments else [run_file]
    done = run(["-m", "optsd.cli", *arguments, *files], environment)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0
    assert b"int8" in done.stdout


def test_without_the_signs_a_table_means_the_same(run_file):
    text = run(["-m", "optsd.cli", "report", "--table-only", run_file], NARROW["no locale"]).stdout.decode("ascii")
    assert "-(1)" in text  # not "-1", which would be a figure
    assert "(2) needs x / +/- - * ~ != -> ... - | + x ^ ^2" in text
    assert "x 1 missed" in text
    assert "+ 1 reproduced" in text
    assert "!= 1 not comparable" in text
    assert "-----" in text
    rows = [row for row in text.splitlines() if row.startswith(("baseline ", "int8 "))]
    assert len(rows) == 2
    assert len({len(row) for row in rows}) == 1  # the columns stand


@pytest.mark.parametrize("environment", NARROW.values(), ids=NARROW)
def test_an_error_that_names_such_a_file(environment):
    done = run(["-m", "optsd.cli", "report", "café-×…/results.json"], environment)
    assert done.returncode == 2
    assert done.stderr.startswith(b"optsd: cannot read caf")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["estimate", "generate", "doctor"])
def test_help(command):
    done = run(["-m", "optsd.cli", command, "--help"], NARROW["no locale"])
    assert (done.returncode, done.stderr) == (0, b"")


BENCH = """
from conftest_plugins.options import WORKLOAD
from optsd.measure import environment
from optsd.records import Workload

pytest_plugins = ["conftest_plugins.options", "conftest_plugins.results", "conftest_plugins.verdicts"]

def pytest_configure(config):
    environment.machine = lambda *_: {"cpu": {"name": "×"}}
    config.stash[WORKLOAD] = Workload("shapes", "cpu", "float32", 20, 5.0, 64, 64, 4)
"""
TEST = """
def test_speed(recorder):
    recorder.measure("baseline", "speedup", 1.0, (0.9, 1.1))
    recorder.measure("int8", "speedup", 2.0, (1.9, 2.1))
    recorder.measure("int8", "compile_s", None, note="needs × ÷ ± − · ≈ ≠ → … ─ │ ✓ ✗ ▲")

def test_wrong(recorder):
    raise ValueError("× ✗ …")
"""


def test_a_whole_run_ends_with_its_table_and_its_own_status(tmp_path):
    (tmp_path / "conftest.py").write_text(BENCH, encoding="utf-8")
    (tmp_path / "test_signs.py").write_text(TEST, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  claims\n  estimate\n")
    done = run(["-m", "pytest", "-p", "no:cacheprovider", "test_signs.py"], NARROW["no locale"], tmp_path)
    printed = done.stdout.decode("ascii")
    assert (done.returncode, "Traceback" in done.stderr.decode()) == (1, False), printed
    assert "1 failed, 1 passed" in printed
    assert "Fastest" in printed
    assert "UnicodeEncodeError" not in printed
    assert next((tmp_path / "reports").rglob("index.html")).stat().st_size > 10_000


@given(st.text(), st.sampled_from(["ascii", "latin-1", "utf-8", "cp437"]))
def test_any_text_can_be_written(text, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    survive(stream)
    stream.write(text)
    stream.flush()
    assert len(raw.getvalue()) >= len(text)


def test_a_stream_that_says_what_it_wants_is_left_alone():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    survive(stream, io.StringIO())
    assert stream.errors == "replace"

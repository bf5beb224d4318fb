"""`pytest bench --against REF`, seen through pytest itself: two made-up builds, timed for real."""

import sys
from pathlib import Path

import made_up_build
import numpy  # noqa: F401 - pytester forgets what a run imported, and NumPy cannot be imported twice
import pytest

import optsd.optimizations.attention  # likewise, with torch: `--variant=flash` imports it
import optsd.report  # noqa: F401 - likewise: imported anew it would not be the one that is replaced
from optsd.records import Results

BENCH = Path(__file__).parents[2] / "bench" / "test_against.py"
PLUGINS = ("options", "results", "progress", "pipelines", "verdicts", "against")
CONFTEST = """
from conftest_plugins.options import DEVICE, MODEL, WORKLOAD
from optsd.records import Workload

def pytest_configure(config):
    config.addinivalue_line("markers", "against: x")
    config.stash[WORKLOAD] = Workload("shapes", "cpu", "float32", 2, 5.0, 64, 64, 1)
    config.stash[DEVICE], config.stash[MODEL] = "cpu", "shapes"
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A repository of somebody's whose `main` has one build and whose working tree another."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr("optsd.measure.environment.machine", lambda device="cpu": {"cpu": {}, "versions": {}})
    monkeypatch.setattr("optsd.report.write", lambda results, folder: None)
    monkeypatch.setattr("optsd.report.print_table", lambda results, console: None)
    made_up_build.repository(pytester.path, seconds=0.01)
    pytester.makeconftest(CONFTEST)
    (pytester.path / "test_against.py").write_text(BENCH.read_text())

    def run(*arguments, ref="main", **build):
        if build:
            made_up_build.write(pytester.path, **build)
        words = [word for plugin in PLUGINS for word in ("-p", f"conftest_plugins.{plugin}")]
        options = (f"--against={ref}", "--variant=flash", "-p", "no:cacheprovider", "test_against.py")
        return pytester.runpytest_inprocess(*words, *options, *arguments, no_reraise_ctrlc=True)

    run.results = lambda: Results.read(pytester.path / "reports" / "latest" / "results.json")
    return run


def test_a_build_that_is_slower_fails_and_says_by_how_much(project):
    result = project("--time-budget=60", seconds=0.02)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["slower * flash: +*% in time [[]*], * rounds, * s"])
    result.stdout.fnmatch_lines(["AGAINST FAILED: baseline speedup_against slower, flash speedup_against slower"])
    found = {row.variant: row for row in project.results().verdicts}
    assert found["flash"].status == found["baseline"].status == "slower"
    assert 0.3 < project.results().get("flash", "speedup_against").value < 0.7


def test_a_build_that_is_faster_passes(project):
    result = project("--time-budget=60", seconds=0.004)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["faster * flash: -*% in time *", "AGAINST PASSED: 2 faster"])


def test_in_a_pipe_each_variant_says_what_was_found_when_it_has_ended(project):
    header = "against main: until it is clear, in at most 60 s of timing for all variants; the same is ±5 %"
    told = [f"{name}: faster, -*% in time *, * rounds, * s*" for name in ("baseline", "flash")]
    project("--time-budget=60", seconds=0.004).stdout.fnmatch_lines(
        [header, "test_against.py .", told[0], "test_against.py .", told[1], "=* against main =*"]
    )
    quiet = project("--time-budget=60", "-q", seconds=0.004)
    quiet.stdout.no_fnmatch_line("flash: faster, *")


def test_what_could_not_be_decided_has_not_passed(project):
    result = project("--time-budget=60", "--rounds=3", seconds=0.01)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["insufficient data * flash: *, 3 rounds, * s; more --time-budget would tell more"])
    result.stdout.fnmatch_lines(["--against judged nothing: give it more time*"])


def test_a_variant_that_one_of_them_lacks_is_skipped_with_the_reason(project):
    broken = "from optsd.errors import Unsupported; raise Unsupported('no flash here; use sdpa')"
    result = project(before=broken, seconds=0.01)
    assert result.ret == 1
    assert "this build: no flash here" in project.results().failures[0]["reason"]
    result.stdout.fnmatch_lines(["AGAINST FAILED: nothing could be judged: no variant ran in both builds"])


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("import os; os._exit(3)", "the process of this build died (exit code 3*); free memory, or see what it says"),
        ("return Pipe()", "this build cannot be driven by this build (*); compare with a newer one"),
        ("raise ValueError('no room')", "this build failed: no room; run it by itself to see more"),
    ],
)
def test_a_build_that_fails_is_one_line(project, before, message):
    result = project(before=before)
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"*{message}"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*another exception*")
    result.stdout.no_fnmatch_line("*builds.py:*")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against=nosuch"], "--against nosuch: no such commit, branch or tag here; fetch it*"),
        (["--gate"], "--against and --gate are two questions; ask them in two runs"),
        (["--device=estimate:a100"], "--against times two builds, an estimate runs nothing*"),
        (["--against-tolerance=0"], "--against-tolerance 0: give a percentage, such as 5"),
        (["--time-budget=-1"], "--time-budget -1: give seconds above zero"),
    ],
)
def test_wrong_usage_is_one_line_before_anything_runs(project, arguments, message):
    result = project(*arguments)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: {message}"])

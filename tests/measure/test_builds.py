"""Another build in a process of its own: which code it runs, and what is said where it does not."""

import zipfile
from pathlib import Path

import made_up_build
import pytest

from optsd.errors import BadInput, OptsdError, Unsupported
from optsd.measure.builds import Build, Worker, check_build, other_build, this_build
from optsd.records import Workload

WORK = Workload("shapes", "cpu", "float32", 2, 5.0, 64, 64, 1)


@pytest.fixture
def worker(tmp_path):
    started = []

    def start(patience_s: float = 60.0, **build) -> Worker:
        folder = made_up_build.write(tmp_path / f"build-{len(started)}", **build)
        started.append(Worker(Build("main (1a2b3c4d)", folder), patience_s))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_each_worker_runs_its_own_code(worker):
    fast, slow = worker(seconds=0.002), worker(seconds=0.02)
    for each in (fast, slow):
        each.make("shapes", "flash", "cpu", WORK)
    assert min(slow.seconds() for _ in range(3)) >= 0.02
    assert 0.002 <= min(fast.seconds() for _ in range(5)) < 0.02


def test_a_ref_is_checked_out_and_removed_again(tmp_path):
    root = made_up_build.repository(tmp_path / "own", seconds=0.5)
    made_up_build.write(root, seconds=0.001)  # not committed: this build, not that of main
    with other_build("main", root) as build:
        assert build.name == f"main ({made_up_build.git(root, 'rev-parse', 'HEAD')[:8]})"
        assert "seconds = 0.5" in (build.folder / "optsd" / "models.py").read_text()
        assert len(made_up_build.git(root, "worktree", "list").splitlines()) == 2
        assert this_build(root / "optsd").folder == root
    assert not build.folder.exists()
    assert len(made_up_build.git(root, "worktree", "list").splitlines()) == 1


def test_a_wheel_is_unpacked(tmp_path):
    made_up_build.write(tmp_path / "tree")
    with zipfile.ZipFile(tmp_path / "optsd-1-py3-none-any.whl", "w") as wheel:
        for file in (tmp_path / "tree").rglob("*.py"):
            wheel.write(file, file.relative_to(tmp_path / "tree"))
    check_build("optsd-1-py3-none-any.whl", tmp_path)
    with other_build("optsd-1-py3-none-any.whl", tmp_path) as build:
        started = Worker(build, 60.0)
        started.make("shapes", "flash", "cpu", WORK)
        assert started.seconds() > 0
        started.close()


@pytest.mark.parametrize("given", ["nosuch", "--help", "HEAD~7", "main:optsd/__init__.py"])
def test_a_ref_that_is_not_there(tmp_path, given):
    root = made_up_build.repository(tmp_path / "own")
    with pytest.raises(BadInput, match="no such commit, branch or tag here; fetch it"):
        check_build(given, root)


def test_outside_a_repository_and_no_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(BadInput, match="is in no git repository; run it in a checkout, or name a wheel"):
        check_build("main", tmp_path)
    with pytest.raises(BadInput, match="is no wheel that is there"):
        check_build("nosuch.whl", tmp_path)


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        ({"without": "optsd/measure/seeds.py"}, OptsdError, "cannot be driven by this build .*seeds.*; compare"),
        ({"before": "import os; os._exit(3)"}, OptsdError, r"process of main \(1a2b3c4d\) died \(exit code 3"),
        ({"before": "raise ValueError('no room')"}, OptsdError, r"main \(1a2b3c4d\) failed: no room"),
        ({"before": "from optsd.errors import Unsupported; raise Unsupported('no flash; use a GPU')"},
         Unsupported, r"main \(1a2b3c4d\): no flash; use a GPU"),
        ({"before": "return Pipe()"}, OptsdError, "cannot be driven by this build"),
    ],
)  # fmt: skip
def test_what_a_build_cannot_do_is_one_line(worker, build, kind, message):
    with pytest.raises(kind, match=message) as raised:
        worker(**build).make("shapes", "flash", "cpu", WORK)
    assert "\n" not in str(raised.value)


def test_a_build_that_hangs_is_ended(worker):
    hanging = worker(before="import time; time.sleep(60)")
    hanging.patience_s = 0.3
    with pytest.raises(OptsdError, match="has not answered for 0.3 s"):
        hanging.make("shapes", "flash", "cpu", WORK)
    assert hanging._process.poll() is not None


def test_a_worker_that_does_not_start_says_why(tmp_path):
    made_up_build.write(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('broken')")  # a module of the build in place of Python's own
    with pytest.raises(OptsdError, match=r"died \(exit code 1: broken\)"):
        Worker(Build("main", Path(tmp_path)), 60.0)

"""Where a long run is, seen in a terminal: pytest keeps what tests write, and this must come through."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")
ROOT = Path(__file__).parents[2]
PLUGINS = (
    "conftest_plugins.options",
    "conftest_plugins.results",
    "conftest_plugins.progress",
    "conftest_plugins.verdicts",
)


def in_a_terminal(folder: Path, *words: str) -> str:
    ours, theirs = pty.openpty()
    plugins = [word for name in PLUGINS for word in ("-p", name)]
    command = [sys.executable, "-m", "pytest", *plugins, "-p", "no:cacheprovider", *words]
    done = subprocess.Popen(
        command,
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TERM": "xterm"},
    )
    os.close(theirs)
    said = b""
    try:
        while more := os.read(ours, 4096):
            said += more
    except OSError:  # Linux's way to say that nobody writes there any more
        pass
    finally:
        os.close(ours)
    assert done.wait(60) == 0, said.decode()
    return said.decode()


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_what_a_bench_does_is_seen_while_it_does_it(tmp_path: Path, capture: str) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_it(progress):\n    print('the test' + 's own')\n    progress('int8: round ' + str(3))\n"
    )
    said = in_a_terminal(tmp_path, f"--capture={capture}")
    assert "int8: round 3" in said
    assert ("the tests own" in said) == (capture == "no")

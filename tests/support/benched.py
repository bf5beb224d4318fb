"""`python -m pytest`, forked from a Python that has imported torch and diffusers: imports cost more than most runs."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["torchvision", "optsd.models.pipelines", "scipy.linalg", "matplotlib.pyplot"])


def run_pytest(
    *words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 600
) -> "subprocess.CompletedProcess[str]":
    """What `subprocess.run([sys.executable, "-m", "pytest", *words])` gives, its output as text."""
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder, name) for name in ("out", "err")]
        arguments = (list(map(str, words)), str(cwd), dict(os.environ if env is None else env), told)
        process = _forks.Process(target=_pytest, args=arguments)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(map(str, words)), timeout)
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in told)
        return subprocess.CompletedProcess(list(map(str, words)), process.exitcode, out, err)


def _pytest(words: list[str], cwd: str, environment: dict[str, str], told: list[Path]) -> None:
    for number, file in enumerate(told, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    first = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*first, *(place for place in sys.path if not Path(place).is_relative_to(ROOT / "tests"))]
    sys.argv = ["pytest", *words]
    runpy.run_module("pytest", run_name="__main__", alter_sys=True)

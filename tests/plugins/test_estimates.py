"""`--device estimate`, seen through pytest itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from optsd.records import Results

ROOT = Path(__file__).parents[2]


def bench(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "bench", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def test_an_estimate_runs_nothing_and_says_what_could_be(tmp_path: Path) -> None:
    result = bench("--device=estimate:a100", "--variant=flash,compile", "--preset=guide", f"--output={tmp_path}")
    assert result.returncode == 0, result.stdout[-2000:]
    assert "2 passed, 1 skipped" in result.stdout
    found = Results.read(tmp_path / "results.json")
    assert found.workload.device == "estimate:a100"
    assert found.workload.dtype == "float16"
    assert found.get("flash", "latency_s").value < found.get("baseline", "latency_s").value
    assert found.get("flash", "latency_s").note.startswith("estimate, at best")
    assert found.failures[0]["reason"].startswith("compile cannot be estimated")
    assert {"flash", "int8"} <= {row["variant"] for row in found.bounds}  # what the guide claims, on this GPU
    assert "Nothing was run: these figures are estimates" in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_guides_claims_without_a_gpu(tmp_path: Path) -> None:
    result = bench("--device=estimate", "--model=sd15", "--variant=int8", "--claims", f"--output={tmp_path}")
    assert result.returncode == 1
    assert "UNATTAINABLE int8 memory_reduction: at most 0.16: baseline 6.20 GiB" in result.stdout
    found = Results.read(tmp_path / "results.json")
    assert {row["status"] for row in found.bounds if row["metric"] == "speedup"} == {"possible"}
    assert "What could be true at best?" in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device=estimate:z80"], "no data sheet for device 'z80'; choose one of a100"),
        (["--device=estimate", "--model=nosuch"], "no model 'nosuch'; use shapes, shapes-dit, sd15"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(options: list[str], message: str) -> None:
    result = bench(*options)
    assert result.returncode == 4
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr

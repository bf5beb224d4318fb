"""`--device estimate`, seen through pytest itself."""

import subprocess
from pathlib import Path

import pytest
from benched import run_pytest

from optsd.records import Results


def bench(*options: str) -> subprocess.CompletedProcess:
    return run_pytest("bench", "-p", "no:cacheprovider", *options)


@pytest.mark.slow
def test_an_estimate_runs_nothing_and_judges_the_guides_claims(tmp_path: Path) -> None:
    options = ("--device=estimate:a100", "--model=sd15", "--variant=int8,compile", "--claims")
    result = bench(*options, f"--output={tmp_path}")
    assert result.returncode == 1, result.stdout[-2000:]
    assert "2 passed, 1 skipped" in result.stdout
    assert "UNATTAINABLE int8 memory_reduction: at most 0.16: baseline 6.20 GiB" in result.stdout
    found = Results.read(tmp_path / "results.json")
    assert (found.workload.device, found.workload.dtype) == ("estimate:a100", "float16")
    assert found.get("int8", "weight_bytes").value < found.get("baseline", "weight_bytes").value
    assert found.get("int8", "latency_s").note.startswith("estimate, at best")
    assert found.failures[0]["reason"].startswith("compile cannot be estimated")
    assert {row["status"] for row in found.bounds if row["metric"] == "speedup"} == {"possible"}
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "What could be true at best?" in page
    assert "Nothing was run: these figures are estimates" in page


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

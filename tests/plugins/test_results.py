"""What a killed run leaves: every figure; where that takes long, those of a moment ago."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest_plugins import results
from conftest_plugins.options import OUTPUT, WORKLOAD
from conftest_plugins.results import LONG_S, TIMES_ITS_OWN, Recorder
from optsd.records import Results, Workload


@pytest.mark.parametrize("takes_s", [LONG_S / 2, 1.0])
def test_writing_costs_a_run_little_of_its_time(tmp_path: Path, monkeypatch, takes_s: float) -> None:
    now, written = 0.0, []

    def write(file: Path, text: str) -> None:
        nonlocal now
        now += takes_s
        written.append(len(Results.from_json(text, "it").measurements))

    monkeypatch.setattr(results, "write_atomically", write)
    monkeypatch.setattr(results.time, "monotonic", lambda: now)
    stash = {OUTPUT: tmp_path / "out", WORKLOAD: Workload("shapes", "cpu", "float32", 1, 1.0, 64, 64, 1)}
    config = SimpleNamespace(rootpath=tmp_path, stash=stash, invocation_params=SimpleNamespace(args=["bench"]))
    recorder = Recorder(config)  # type: ignore[arg-type]
    for number in range(4):
        recorder.measure(f"variant {number}", "latency_s", 1.0)
    if takes_s <= LONG_S:
        assert written == [1, 2, 3, 4]
        return
    assert written == [1]
    now += TIMES_ITS_OWN * takes_s
    recorder.measure("later", "latency_s", 1.0)
    assert written == [1, 5], "nothing is lost that had to wait"

"""`make gpu`: its stages resume, a failure costs the others nothing, and the page says what holds."""

import json
import sys
from pathlib import Path

import pytest

from bench import gpu
from bench.gpu import Stage
from optsd.errors import OptsdError
from optsd.records import Measurement, Results, Workload

GUIDE = Workload("sd15-random", "cuda", "float16", 50, 7.5, 512, 512, 4)


def _stage(folder: Path, code: str = "") -> Stage:
    seen = folder / "seen"
    return Stage("one", "what", (sys.executable, "-c", f"open({str(seen)!r}, 'a').write('x'); {code or 'print(7)'}"))


def test_what_has_passed_is_not_run_again_for_the_same_commit(tmp_path: Path) -> None:
    first = gpu.run(_stage(tmp_path), tmp_path, "abc", again=False)
    assert (first["status"], first["last"]) == (0, "7")
    assert gpu.run(_stage(tmp_path), tmp_path, "abc", again=False) == first
    assert (tmp_path / "seen").read_text() == "x"
    gpu.run(_stage(tmp_path), tmp_path, "abc", again=True)
    gpu.run(_stage(tmp_path), tmp_path, "def", again=False)
    assert (tmp_path / "seen").read_text() == "xxx"


def test_what_failed_or_hung_is_run_again(tmp_path: Path, monkeypatch) -> None:
    failed = gpu.run(_stage(tmp_path, "raise SystemExit('no such kernel')"), tmp_path, "abc", again=False)
    assert (failed["status"], failed["last"]) == (1, "no such kernel")
    monkeypatch.setattr(gpu, "MOST_S", 0.5)
    assert gpu.run(_stage(tmp_path, "import time; time.sleep(60)"), tmp_path, "abc", again=False)["status"] == 124
    assert gpu.run(_stage(tmp_path), tmp_path, "abc", again=False)["status"] == 0


@pytest.mark.parametrize("rehearsal", [True, False])
def test_every_variant_and_file_that_a_stage_names_is_there(rehearsal: bool) -> None:
    from optsd.variants import chosen

    found = gpu.stages(Path("reports/x"), rehearsal)
    assert len({stage.name for stage in found}) == len(found)
    for stage in found:
        words = list(stage.command)
        for named in (words[place + 1] for place, word in enumerate(words) if word == "--variant"):
            assert len(chosen([named], [])) == len(named.split(","))
        for file in (word for word in words if word.endswith(".py") or word in ("bench", "tests")):
            assert (gpu.ROOT / file).exists()


def test_the_page_says_which_claims_hold(tmp_path: Path) -> None:
    units = {"speedup": "×", "memory_reduction": "fraction"}

    def row(variant, name, value):
        return Measurement(variant, name, units[name], value)

    rows = (row("int8", "speedup", 1.41), row("flash", "speedup", 0.9), row("int8", "memory_reduction", 0.1))
    failure = {"variant": "graph", "stage": "test_speed", "reason": "out | of memory"}
    results = Results(machine={"gpus": [{"name": "NVIDIA X"}]}, workload=GUIDE, measurements=rows, failures=(failure,))
    done = [{"stage": "tests", "status": 1, "seconds": 2.0, "last": "1 failed | 2"}]
    text = gpu.page(results.machine, done, results, "cuda")
    assert text.startswith("# NVIDIA X\n")
    assert "| [tests](stages/tests.txt) | FAILED | 2 | 1 failed \\| 2 |" in text
    assert "\n2 of 6 hold here.\n" in text
    assert "| int8 | speedup | 1.39× | 1.41× | reproduced |" in text
    assert "| flash | speedup | 1.19× | 0.900× | missed |" in text
    assert "fid" not in text.lower()
    assert "graph, test_speed: out | of memory" in text
    assert "nothing can be said" in gpu.page(results.machine, done, None, "cuda")


def test_a_run_of_several_stages(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("GPU", "interpret")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "describe", lambda device: {"cpu": {"name": "Test"}, "git": {"commit": "abc"}})
    bad = Stage("bad", "fails", (sys.executable, "-c", "raise SystemExit(3)"))
    monkeypatch.setattr(gpu, "stages", lambda folder, rehearsal: (bad, _stage(tmp_path)))
    assert gpu.main([]) == 1
    said = capsys.readouterr().out
    assert "1/2 bad: fails … FAILED" in said
    assert "2/2 one: what … passed" in said
    assert gpu.main(["--only", "one"]) == 0
    assert (tmp_path / "seen").read_text() == "x"
    assert json.loads((tmp_path / "reports/rehearsal/machine.json").read_text())["cpu"] == {"name": "Test"}
    assert gpu.main(["--again", "two"]) == 2
    assert "make gpu: there is no stage 'two'; choose from bad, one" in capsys.readouterr().err


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys) -> None:
    def none(device):
        raise OptsdError("no GPU can be used here", "see optsd doctor")

    monkeypatch.setattr(gpu, "describe", none)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "make gpu: no GPU can be used here; see optsd doctor\n"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["== 9 passed, 3 skipped in 24.39s ==", "See https://elsewhere/leaks"], "9 passed, 3 skipped in 24.39s"),
        (
            ["x", "= 1 failed, 2 passed, 1 warning in 61.10s (0:01:01) ="],
            "1 failed, 2 passed, 1 warning in 61.10s (0:01:01)",
        ),
        (["open_clip  installed"], "open_clip  installed"),
        ([], ""),
    ],
)
def test_the_page_says_what_a_stage_said_last(lines, told):
    assert gpu.last(lines) == told

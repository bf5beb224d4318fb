"""`optsd history`: the course of every figure, as a person reads it."""

import json
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from optsd.cli import main
from optsd.records import Workload

WORKLOAD = Workload("shapes", "cpu", "float32", 20, 5.0, 64, 64, 4)


def _write(folder: Path, speedups: list[float], commits: list[str]) -> None:
    rows = [
        {
            "created": f"2026-11-{day:02}T00:00:00+00:00",
            "commit": commit,
            "changed_files": 0,
            "versions": {},
            "workload": asdict(WORKLOAD),
            "readings": {"int8 speedup": [speedup, None, None], "int8 weight_bytes": [13631488.0, None, None]},
            "regressed": [],
        }
        for day, (speedup, commit) in enumerate(zip(speedups, commits, strict=True), 1)
    ]
    file = folder / "expected/history/a-machine.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


STEP = [1.40, 1.41, 1.42, 1.39, 1.40, 1.41, 1.43, 1.38, 1.20, 1.21, 1.19, 1.22, 1.18, 1.20, 1.21, 1.20]


def _repository(folder: Path) -> list[str]:
    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *own, *words], cwd=folder, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    for number in range(5):
        git("commit", "-q", "--allow-empty", "-m", str(number))
    oldest, *_, newest = reversed(git("log", "--format=%H").split())
    return [oldest] * 8 + [newest] * 8


def test_a_change_says_between_which_commits_and_how_to_find_it(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    commits = _repository(tmp_path)
    _write(tmp_path, STEP, commits)
    assert main(["history"]) == 0
    said = capsys.readouterr().out.splitlines()
    good, bad = commits[0][:9], commits[-1][:9]
    assert said[:2] == [
        "a-machine: shapes, cpu float32, 20 steps, guidance 5, 64×64, batch 4, seed 42",
        "16 sessions from 2026-11-01 to 2026-11-16",
    ]
    assert re.split(r" {2,}", said[2]) == ["int8", "speedup", "▇▇▇▆▇▇█▆▁▁▁▂▁▁▁▁", "1.40× → 1.20×"]
    assert said[3].endswith("13.0\N{NO-BREAK SPACE}MiB")
    assert said[4] == f"int8 speedup: 14.6% worse from 2026-11-09 on, between {good} and {bad} (4 commits)"
    assert said[5:7] == [
        f"  git bisect start {bad} {good}",
        f"  git bisect run pytest bench --against {good} --variant int8",
    ]
    assert main(["history", "--changes", "--metric", "weight_bytes"]) == 0
    assert capsys.readouterr().out == "nothing has changed\n"


def test_the_same_as_data(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, STEP, ["a" * 40] * 8 + [""] * 8)
    assert main(["history", "--json", "--changes"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["machine"], row["variant"], row["metric"], row["values"]) == ("a-machine", "int8", "speedup", STEP)
    assert [(each["at"], each["good"], each["is_worse"]) for each in row["changes"]] == [(8, "a" * 40, True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "there is no expected/history/*.jsonl; run gates"), ("{}\n", "line 1, is no session")],
)
def test_without_a_history_it_is_one_line(tmp_path: Path, monkeypatch, capsys, text, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        _write(tmp_path, [], [])
        (tmp_path / "expected/history/a-machine.jsonl").write_text(text)
    assert main(["history"]) == 2
    assert message in capsys.readouterr().err

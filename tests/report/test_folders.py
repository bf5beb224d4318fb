"""A folder for each run, and what leads to the newest."""

import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from optsd.errors import BadInput
from optsd.report import command
from optsd.report.folders import bytes_of, make_latest, new_run, newest, runs_in

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=timezone.utc)


def test_a_name_says_when_and_is_no_other_runs(tmp_path):
    first = new_run(tmp_path, NOON)
    assert first.name == f"2026-01-02_12-00-00-{os.getpid()}"
    first.mkdir()
    second = new_run(tmp_path, NOON)
    assert second.name == f"{first.name}-2"
    second.mkdir()
    (tmp_path / "cpu-2-cores").mkdir()
    (tmp_path / "latest").symlink_to(second.name)
    assert runs_in(tmp_path) == [first, second]
    assert runs_in(tmp_path / "none") == []


def test_two_processes_that_begin_at_once_have_two_folders(tmp_path):
    code = (
        "import sys; from pathlib import Path; from datetime import datetime, timezone\n"
        "from optsd.report.folders import *\n"
        f"folder = new_run(Path(sys.argv[1]), datetime.fromtimestamp({NOON.timestamp()}, timezone.utc))\n"
        "make_latest(folder); (folder / 'results.json').write_text(folder.name)"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, tmp_path]) for _ in range(4)]
    assert [process.wait() for process in started] == [0] * 4
    assert [(folder / "results.json").read_text() for folder in runs_in(tmp_path)] == [
        f.name for f in runs_in(tmp_path)
    ]
    assert len(runs_in(tmp_path)) == 4
    assert (tmp_path / "latest").resolve() in runs_in(tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_latest_follows_and_a_folder_of_that_name_is_kept(tmp_path):
    old = tmp_path / "latest"
    old.mkdir()
    (old / "results.json").write_text("old")
    make_latest(new_run(tmp_path, NOON))
    assert old.is_symlink()
    assert sorted((folder / "results.json").is_file() for folder in runs_in(tmp_path)) == [False, True]
    second = new_run(tmp_path)
    make_latest(second)
    assert old.resolve() == second


def test_where_links_cannot_be_made_the_newest_is_found(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("privilege not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folders = [new_run(tmp_path, NOON.replace(hour=hour)) for hour in (3, 9, 5)]
    for folder in folders:
        make_latest(folder)
        (folder / "results.json").touch()
    assert newest(tmp_path) == folders[1]
    (folders[1] / "results.json").unlink()
    assert newest(tmp_path) == folders[2]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(folder.name for folder in folders)


def test_optsd_report_takes_the_newest(tmp_path, monkeypatch, results, capsys):
    folder = new_run(tmp_path / "reports")
    make_latest(folder)
    (folder / "results.json").write_text(results.to_json(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert command.main(["--table-only"]) == 0
    assert "int8+flash" in capsys.readouterr().out
    monkeypatch.chdir(folder)
    with pytest.raises(BadInput, match=r"cannot read reports/latest/results.json"):
        command.main(["--table-only"])


def test_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    assert bytes_of([tmp_path]) == 1000

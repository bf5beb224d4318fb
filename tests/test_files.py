import os
from pathlib import Path

import pytest

from optsd.files import home, write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch) -> None:
    file = tmp_path / "results.json"
    write_atomically(file, "old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_home_is_where_the_user_says(monkeypatch) -> None:
    monkeypatch.setenv("OPTSD_HOME", "~/elsewhere")
    assert home() == Path.home() / "elsewhere"
    monkeypatch.delenv("OPTSD_HOME")
    assert home() == Path.home() / ".cache" / "optsd"

"""Readings outlive the process that made them, and nothing else does."""

from pathlib import Path

import pytest

from optsd.errors import BadInput
from optsd.tune.journal import Journal

OF = {"model": "shapes"}


def refuse():
    raise AssertionError("it was measured again")


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "of a run" / "journal.jsonl"
    first = Journal(file, OF)
    assert first.reading(["ratio", "sdpa", 0], lambda: 0.5) == 0.5
    assert first.reading(["scores", "sdpa", 0], lambda: {"ssim": [(1.0, 1.0)]}) == {"ssim": [[1.0, 1.0]]}, (
        "as read again"
    )
    assert first.added == 2
    first.close()
    again = Journal(file, OF)
    assert again.reading(["ratio", "sdpa", 0], refuse) == 0.5
    assert again.get(["ratio", "sdpa", 1]) is None
    again.close()


def test_a_reading_that_failed_is_not_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", OF)
    with pytest.raises(ZeroDivisionError):
        journal.reading(["ratio", "sdpa", 0], lambda: 1 / 0)
    assert journal.reading(["ratio", "sdpa", 0], lambda: 2.0) == 2.0
    journal.close()


def test_half_a_line_and_a_damaged_one_are_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file, OF)
    for number in range(3):
        journal.reading(["ratio", "sdpa", number], lambda number=number: float(number))
    journal.close()
    lines = file.read_text().splitlines()
    whole = file.read_text()
    for cut in range(len(lines[0]) + 1, len(whole)):  # killed while it wrote
        file.write_text(whole[:cut])
        left = Journal(file, OF)
        kept = [number for number in range(3) if left.get(["ratio", "sdpa", number]) is not None]
        assert kept == list(range(whole[:cut].count("\n") - 1))
        left.reading(["ratio", "sdpa", 9], lambda: 9.0)
        left.close()
        assert Journal(file, OF).get(["ratio", "sdpa", 9]) == 9.0
    file.write_text("\n".join([lines[0], "{nonsense", *lines[2:]]) + "\n")
    damaged = Journal(file, OF)
    assert damaged.get(["ratio", "sdpa", 0]) is None
    assert damaged.get(["ratio", "sdpa", 1]) == 1.0
    damaged.close()


def test_readings_of_another_model_machine_or_version_are_never_mixed(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl", OF).close()
    with pytest.raises(BadInput, match="readings of another search; name another --output"):
        Journal(tmp_path / "journal.jsonl", {"model": "sd15"})


def test_one_search_at_a_time(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal.jsonl", OF)
    with pytest.raises(BadInput, match="another search writes"):
        Journal(tmp_path / "journal.jsonl", OF)
    first.close()
    Journal(tmp_path / "journal.jsonl", OF).close()

"""What gates have read, and where it changed."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.judge.history import FEWEST_AROUND, append, change_points, courses, read
from optsd.judge.recording import as_baselines
from optsd.judge.regressions import confirmed, judge_regressions
from optsd.judge.statistics import ratio_interval
from optsd.records import Measurement, Results, Verdict, Workload

WORKLOAD = Workload("shapes", "cpu", "float32", 20, 5.0, 64, 64, 4)
MACHINE = {"cpu": {"name": "A CPU", "cores": 2}, "versions": {"torch": "2.15.0"}}


def _session(speedup: float, spread: float = 0.01, rounds: int = 12, day: int = 1, **machine) -> Results:
    rng = np.random.default_rng(day)
    theirs, ours = np.ones(rounds), np.exp(rng.normal(0, spread, rounds)) / speedup
    value, low, high = ratio_interval([*theirs], [*ours])
    rows = (
        Measurement("baseline", "speedup", "×", 1.0, 0.99, 1.01, tuple(np.ones(rounds))),
        Measurement("int8", "speedup", "×", value, low, high, tuple(theirs / ours)),
        Measurement("int8", "weight_bytes", "B", 13e6),
    )
    return Results({**MACHINE, **machine}, WORKLOAD, rows, created=f"2026-11-{day:02}T00:00:00+00:00")


def test_a_session_is_a_line_and_is_read_again(tmp_path: Path) -> None:
    alarm = Verdict("int8", "speedup", "regressed", 1.2, 1.4, "±10 %", "it")
    for day in (1, 2):
        file = append(tmp_path, _session(1.4, day=day), [alarm], {"commit": f"{day}" * 40, "changed_files": day - 1})
    first, second = read(file)
    assert len(file.read_text().splitlines()) == 2
    assert (first.place, second.place) == ("1" * 9, "2" * 9 + "+")
    assert set(first.readings) == {"int8 speedup", "int8 weight_bytes"}, "the baseline against itself is no figure"
    assert first.regressed == ("int8 speedup",)
    assert [course.values[1] for course in courses([first, second]) if course.metric == "weight_bytes"] == [13e6]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: [],
        lambda row: {**row, "readings": {"int8 speedup": [None, 1, 2]}},
        lambda row: {**row, "readings": {"int8 speedup": [True, 1, 2]}},
        lambda row: {**row, "readings": {"int8 speedup": [1.0]}},
        lambda row: {**row, "readings": {"int8 speedup": ["1", 1, 2]}},
        lambda row: {**row, "more": 1},
        lambda row: {key: row[key] for key in row if key != "commit"},
        lambda row: {**row, "workload": {"model": "shapes"}},
    ],
)
def test_a_line_that_is_no_session_is_named(tmp_path: Path, spoil) -> None:
    file = append(tmp_path, _session(1.4), [], {})
    good = file.read_text()
    file.write_text(good + json.dumps(spoil(json.loads(good))) + "\n")
    with pytest.raises(BadInput, match=r"line 2, is no session"):
        read(file)
    file.write_text(good + good[:50])
    with pytest.raises(BadInput, match=r"line 2, is no session"):
        append(tmp_path, _session(1.4), [], {})
    assert file.read_text() == good + good[:50], "a file that cannot be read is left as it is"


def test_a_step_is_found_where_it_is_and_between_which_commits(tmp_path: Path) -> None:
    for day in range(1, 17):
        versions = {"torch": "2.15.0" if day < 9 else "2.16.0"}
        results = _session(1.4 if day < 9 else 1.2, 0.05, day=day, versions=versions)
        file = append(tmp_path, results, [], {"commit": f"{day:040}"})
    course = next(each for each in courses(read(file)) if each.metric == "speedup")
    (change,) = course.changes
    assert (change.at, change.good.commit, change.bad.commit) == (8, f"{8:040}", f"{9:040}")
    assert change.before == pytest.approx(1.4, rel=0.05)
    assert change.after == pytest.approx(1.2, rel=0.05)
    assert course.is_worse(change)
    assert change.versions == ["torch 2.15.0 → 2.16.0"]


def test_two_steps_are_two_changes_and_one_late_session_is_none() -> None:
    rng = np.random.default_rng(0)
    levels = np.repeat([1.0, 1.3, 1.0], 12)
    assert change_points(levels * np.exp(rng.normal(0, 0.02, 36))) == [12, 24]
    alone = np.exp(rng.normal(0, 0.02, 36))
    alone[20] *= 11
    assert change_points(alone) == []


def test_what_does_not_change_is_seldom_called_changed() -> None:
    """1 % a split: of 200 courses of 30 sessions in which nothing happened at most six; two are expected."""
    rng = np.random.default_rng(3)
    noise = rng.standard_t(2, (200, 30))  # now and then a session is far off
    assert sum(bool(change_points(row)) for row in noise) <= 6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 10), max_size=20), st.floats(0.5, 2))
def test_changes_lie_inside_and_do_not_depend_on_the_unit(values: list[float], factor: float) -> None:
    found = change_points(values)
    edges = [0, *found, len(values)]
    assert all(high - low >= FEWEST_AROUND for low, high in pairwise(edges)) or not found
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    if len(set(values)) == len(values):
        assert change_points([*(factor * order)]) == found, "ranks decide"
    assert change_points([1.0] * len(values)) == []


RECORDED = as_baselines(_session(1.4, rounds=30), "it.json")


@pytest.mark.parametrize(
    ("second", "status"),
    [
        (_session(1.1, day=3), "regressed"),  # it too
        (_session(1.4, day=3), "insufficient data"),  # it clears the alarm
        (_session(1.5, day=3), "insufficient data"),
        (_session(1.1, 0.3, 6, day=3), "regressed"),  # too noisy to tell, and as slow
        (_session(1.38, 0.3, 6, day=5), "insufficient data"),  # too noisy to tell, and not
        (replace(_session(1.4, day=3), measurements=()), "regressed"),  # it failed, which clears nothing
    ],
)
def test_an_alarm_stands_where_a_second_session_has_it_too(second: Results, status: str) -> None:
    rows = judge_regressions(RECORDED, _session(1.1, day=2))
    after = {(row.variant, row.metric): row for row in confirmed(rows, RECORDED, second)}
    alarm = after["int8", "speedup"]
    assert alarm.status == status
    assert ("not confirmed: " in alarm.note) == (status != "regressed")
    assert "; a second session: " in alarm.note
    assert after["int8", "weight_bytes"] in rows, "what has no noise needs no second look"


def test_a_figure_without_noise_is_red_at_once() -> None:
    larger = _session(1.4, day=2)
    larger = replace(larger, measurements=(*larger.measurements[:2], Measurement("int8", "weight_bytes", "B", 26e6)))
    rows = judge_regressions(RECORDED, larger)
    assert {row.metric: row.status for row in confirmed(rows, RECORDED, _session(1.4, day=3))} == {
        "speedup": "ok",
        "weight_bytes": "regressed",
    }

"""The page of a run that goes on: what is done, by whom, and when it ends."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from optsd.report.course import PAGE, SECONDS_BETWEEN, STALE_S, WORKERS, Course, Standing, page, remove


@dataclass(frozen=True)
class Step:
    work: str
    filling: str
    total: int
    count: int
    seconds: float | None = None
    node: str = ""


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def _course(folder: Path, worker: str, clock: Clock, **more) -> Course:
    return Course(folder, worker, **{"variants": 2, "pictures": 8, **more}, clock=clock)


def _standing(*courses: Course) -> Standing:
    states = [{"fillings": each._fillings, "workers": each._workers} for each in courses]
    return Standing.of(states, 2, 8, courses[0].clock())


def test_two_workers_of_one_filling_are_counted_once(tmp_path: Path) -> None:
    clock = Clock()
    one, other = (_course(tmp_path, name, clock) for name in ("gw0", "gw1"))
    one.told(Step("drawing", "baseline", 8, 2))  # two lay there
    one.told(Step("drawing", "baseline", 8, 2, seconds=60))
    other.told(Step("drawing", "baseline", 8, 4))  # it sees what the first has made
    other.told(Step("drawing", "baseline", 8, 2, seconds=30))
    (work,) = _standing(one, other).works
    assert (work.done, work.total) == (6, 16)
    assert work.a_minute == pytest.approx(2 + 4)
    assert work.minutes_left == pytest.approx(10 / 6)
    assert _standing(other, one).works == (work,)


def test_a_worker_that_was_killed_adds_nothing_to_the_rate(tmp_path: Path) -> None:
    clock = Clock()
    course = _course(tmp_path, "", clock)
    course.told(Step("drawing", "baseline", 8, 0))
    course.told(Step("drawing", "baseline", 8, 4, seconds=60, node="a"))
    clock.now += STALE_S + 1
    assert _standing(course).minutes_left == float("inf")
    assert "nobody works on it" in page(_standing(course))
    course.told(Step("drawing", "baseline", 8, 4, seconds=60, node="b"))
    standing = _standing(course)
    assert standing.minutes_left == pytest.approx(2)
    assert [worker.is_stale for worker in standing.workers] == [True, False]
    assert "killed?" in page(standing)


def test_what_all_lay_in_the_store_is_done(tmp_path: Path) -> None:
    course = _course(tmp_path, "", Clock())
    for variant in ("baseline", "int8"):
        course.told(Step("drawing", variant, 8, 8))
    assert _standing(course).minutes_left == 0
    assert "none had anything to make: all lay in the store" in page(_standing(course))


def test_the_real_pictures_are_counted_beside_the_variants(tmp_path: Path) -> None:
    course = _course(tmp_path, "", Clock())
    course.told(Step("features", "photographs", 100, 40))
    course.told(Step("features", "baseline", 8, 8))
    (work,) = _standing(course).works
    assert (work.done, work.total) == (48, 100 + 2 * 8)


def test_a_run_that_has_just_begun_says_so(tmp_path: Path) -> None:
    course = _course(tmp_path, "", Clock())
    course.told(Step("drawing", "baseline", 8, 0))
    text = page(_standing(course))
    assert "just begun" in text
    assert "none has ended anything yet" in text
    assert "This run goes on" in text


def test_the_page_is_written_while_it_runs_and_goes_with_its_end(tmp_path: Path) -> None:
    clock = Clock()
    course = _course(tmp_path, "gw0", clock)
    course.told(Step("drawing", "baseline", 8, 0))
    first = (tmp_path / PAGE).read_text()
    course.told(Step("drawing", "baseline", 8, 4, seconds=60, node="<b>a</b>"))
    assert (tmp_path / PAGE).read_text() == first, "not for every batch"
    clock.now += SECONDS_BETWEEN
    (tmp_path / WORKERS / "half.json").write_text('{"fill')
    course.told(Step("features", "baseline", 8, 0))
    text = (tmp_path / PAGE).read_text()
    assert "4 of 16" in text
    assert "&lt;b&gt;a" in text
    assert "<b>a" not in text
    (tmp_path / "results.json").write_text("{}")
    remove(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]

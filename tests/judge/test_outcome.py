"""The last lines of a run: each question's own answer, and never `PASSED` where the run failed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.judge.outcome import QUESTIONS, Outcome
from optsd.judge.verdicts import ABSENT, FAILING, PASSING
from optsd.records import Verdict


def verdict(status: str, variant: str = "int8", metric: str = "objects_right") -> Verdict:
    return Verdict(variant, metric, status, 0.9, 0.95, "", f"--quality: {metric}", "because")


def last(outcome: Outcome, *asked: str, complete: bool = True) -> list[str]:
    return [line for line, _ in outcome.at_last(asked, complete)]


def test_each_question_has_a_line_of_its_own_verdicts():
    outcome = Outcome()
    outcome.answer("--gate", (verdict("ok"), verdict("not comparable"), verdict("insufficient data")))
    outcome.answer("--quality", (verdict("kept"), verdict("lost", "int4"), verdict("kept", "flash")))
    assert last(outcome, "--gate", "--quality") == [
        "GATE PASSED: 1 ok, 1 insufficient data",
        "QUALITY FAILED: int4 objects_right lost; 2 kept",
    ]
    assert outcome.fails


def test_a_build_that_is_slower_has_not_passed():
    outcome = Outcome()
    outcome.answer("--against", (verdict("slower", metric="speedup_against"), verdict("same", "flash")))
    assert last(outcome, "--against") == ["AGAINST FAILED: int8 speedup_against slower; 1 same"]


def test_three_are_named_and_the_others_counted():
    outcome = Outcome()
    outcome.answer("--gate", tuple(verdict("regressed", f"deepcache:{number}") for number in range(5)))
    (line,) = last(outcome, "--gate")
    assert line.endswith("deepcache:2 objects_right regressed, 2 more")


def test_what_could_not_be_judged_says_why_and_what_to_do():
    outcome = Outcome()
    outcome.answer("--gate", (verdict("not comparable"),))
    outcome.answer("--against", (verdict("insufficient data"),), "give it more time")
    assert last(outcome, "--gate", "--against") == [
        "GATE FAILED: nothing could be judged: not comparable, because; record again with --expected-update",
        "AGAINST FAILED: nothing could be judged: give it more time",
    ]
    outcome = Outcome(lines=["half a file; restore it"])
    assert last(outcome, "--gate") == ["GATE FAILED: half a file; restore it"]


@pytest.mark.parametrize("failing", [{"broken": True}, {"failed": [verdict("differs", metric="images")]}])
def test_a_run_that_failed_otherwise_says_so_below_an_answer_that_passed(failing):
    outcome = Outcome(**failing)
    outcome.answer("--quality", (verdict("kept"),))
    assert last(outcome, "--quality") == ["QUALITY PASSED: 1 kept", "THE RUN FAILED, whatever was judged: see above"]
    assert last(outcome) == []


STATUSES = st.sampled_from(sorted(FAILING | ABSENT | PASSING | {"not comparable", "insufficient data"}))


@given(
    st.dictionaries(st.sampled_from(sorted(QUESTIONS)), st.lists(STATUSES, max_size=4), min_size=1),
    st.booleans(),
    st.booleans(),
)
def test_all_lines_are_good_news_only_where_the_run_passes(asked, broken, complete):
    outcome = Outcome(broken=broken)
    for option, statuses in asked.items():
        outcome.answer(option, tuple(map(verdict, statuses)))
    bad = [bad for _, bad in outcome.at_last(asked, complete)]
    assert any(bad) == (outcome.fails or not complete)

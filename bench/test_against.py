"""Is this build slower than another one? Both in turn, in processes of their own; asked for with `--against REF`."""

import math
import time

import pytest

from conftest_plugins.against import Rivals, failing_in_one_line
from conftest_plugins.options import DEVICE, MODEL
from conftest_plugins.progress import Say
from conftest_plugins.results import Recorder
from optsd.judge.sequential import answer, decide
from optsd.measure.turns import in_turn
from optsd.records import Verdict, Workload


@pytest.mark.against
def test_against(
    variant: str,
    workload: Workload,
    rivals: Rivals,
    recorder: Recorder,
    progress: Say,
    pytestconfig: pytest.Config,
    machine_to_itself,
) -> None:
    """Rounds of one batch each until the answer is clear, or this variant's share of the time is used up."""
    stash, other, tolerance = pytestconfig.stash, rivals.theirs.build.name, rivals.tolerance
    budget = rivals.budget
    try:
        with failing_in_one_line():
            for worker in (rivals.ours, rivals.theirs):
                progress(f"{variant}: {worker.build.name} loads {workload.model}")
                worker.make(stash[MODEL], variant, stash[DEVICE], workload)
            start = time.monotonic()
            turns = in_turn(
                rivals.theirs.seconds,
                rivals.ours.seconds,
                lambda ratios: decide(ratios, tolerance) != "insufficient data",
                budget.share_s(),
                most=pytestconfig.getoption("--rounds"),
                say=lambda number: progress(f"{variant}: against {other}, round {number}"),
            )
    finally:
        budget.shares -= 1
    took = time.monotonic() - start
    budget.left_s = max(0.0, budget.left_s - took)
    found = answer(turns.ratios, tolerance)
    note = f"{found}, {took:.0f} s"
    if found.status == "insufficient data":
        note += "; more --time-budget would tell more"
    speedups = tuple(1 / ratio for ratio in turns.ratios)
    value, low = 1 / (1 + found.change), 0.0 if math.isinf(found.high) else 1 / (1 + found.high)
    high = None if found.low <= -1 else 1 / (1 + found.low)
    interval = (low, high) if high is not None else None
    recorder.measure(variant, "speedup_against", value, interval, speedups, f"against {other}")
    recorder.verdict(
        Verdict(variant, "speedup_against", found.status, value, 1.0, f"±{100 * tolerance:g} %", other, note)
    )
    assert found.status != "slower", f"slower than {other}: {note}"

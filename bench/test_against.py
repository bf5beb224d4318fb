"""Is this build slower than another one? Both in turn, in processes of their own; asked for with `--against REF`."""

import math
from typing import TYPE_CHECKING

import pytest

from optsd.judge.sequential import answer
from optsd.records import Verdict, Workload

if TYPE_CHECKING:
    from conftest_plugins.against import Rivals
    from conftest_plugins.progress import Say
    from conftest_plugins.results import Recorder


@pytest.mark.against
def test_against(
    variant: str,
    workload: Workload,
    rivals: "Rivals",
    recorder: "Recorder",
    progress: "Say",
    pytestconfig: pytest.Config,
    machine_to_itself,
) -> None:
    """Rounds of one batch each until the answer is clear, or this variant's share of the time is used up."""
    other, tolerance = rivals.theirs.build.name, rivals.tolerance
    turns, took = rivals.in_turn(variant, workload, pytestconfig.getoption("--rounds"), progress)
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

"""What is timed beside other programs lives in a process of its own, as it would at its user's.

In one process with others, the memory that they had freed made the baseline faster, whose large tensors no longer came
from fresh pages.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from optsd.errors import BadInput, Unsupported
from optsd.judge.statistics import median_interval, ratio_interval

Answer = TypeVar("Answer")
Clock = Callable[[int], float]
"""Seconds in the round of that number, from 1."""


@contextmanager
def apart(make: Callable[..., Any], *arguments: Any) -> Iterator[Executor]:
    """A process that holds what `make(*arguments)` has made there. Skips, with the reason, what cannot run here."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            process.submit(_make, make, *arguments).result()
        except (BadInput, Unsupported) as error:
            pytest.skip(str(error))
        yield process


def ask(process: Executor, question: Callable[..., Answer], *arguments: Any) -> Answer:
    """What `question(made, *arguments)` gives, in the process where that was made."""
    return process.submit(_answer, question, *arguments).result()


def in_turn(benchmark: Any, rounds: int, first: Clock, second: Clock, unit: str, beside: str) -> str:
    """Time both in each round; the figures go to the benchmark's `extra_info`. Gives them in words.

    `unit` is that of the second's seconds, `beside` what the first is called.
    """
    before: list[float] = []
    after: list[float] = []
    benchmark.pedantic(
        lambda: after.append(second(len(after) + 1)),
        setup=lambda: before.append(first(len(before) + 1)),
        rounds=rounds,
    )
    took, speedup = median_interval(after), ratio_interval(before, after)
    readings = {"baseline": before, "other": after}
    benchmark.extra_info.update(readings=readings, seconds=took, speedup=speedup)
    return (
        f"{took.value:.3g} {unit} [{took.low:.3g}, {took.high:.3g}], "
        f"{speedup.value:.2f}x {beside} [{speedup.low:.2f}, {speedup.high:.2f}]"
    )


# What follows runs in those processes.

_made: Any


def _make(make: Callable[..., Any], *arguments: Any) -> None:
    global _made
    _made = make(*arguments)


def _answer(question: Callable[..., Answer], *arguments: Any) -> Answer:
    return question(_made, *arguments)

"""Where a long run is: on one line of the terminal that is written over; in a pipe a line for each variant."""

import time
from collections.abc import Generator
from contextlib import nullcontext
from typing import Protocol

import pytest

from .options import variant_of
from .results import RECORDER

_SECONDS_BETWEEN_WRITES = 0.2


class Say(Protocol):
    def __call__(self, text: str) -> None: ...


@pytest.fixture(scope="session")
def progress(pytestconfig: pytest.Config) -> Say:
    """Call it with what is being done now, as often as you like."""
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not reporter.isatty or hasattr(pytestconfig, "workerinput"):
        return lambda text: None
    capturing = pytestconfig.pluginmanager.get_plugin("capturemanager")  # of what a test writes, this too
    last = 0.0

    def say(text: str) -> None:
        nonlocal last
        if text and time.monotonic() - last < _SECONDS_BETWEEN_WRITES:
            return
        last = time.monotonic()
        # Back to the line's start, clear it, write, and back again: pytest's own next word takes its place.
        with capturing.global_and_fixture_disabled() if capturing else nullcontext():
            reporter.write(f"\r\x1b[K{text[: reporter._tw.fullwidth - 1]}\r", flush=True)

    return say


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """In a pipe: what was found of a variant, when its last bench has ended."""
    done = yield
    variant, config = variant_of(item), item.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    is_last = variant is not None and (nextitem is None or variant_of(nextitem) != variant)
    if is_last and reporter is not None and not reporter.isatty and config.get_verbosity() >= 0:
        from optsd.report.tables import one_line

        recorder = config.stash[RECORDER]
        if found := "" if recorder.empty else one_line(recorder.results(), str(variant)):
            reporter.ensure_newline()
            reporter.write(f"{variant}: {found}", flush=True)  # what pytest writes next begins a line
    return done

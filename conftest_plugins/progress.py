"""Where a long run is, on one line of the terminal that is written over; nothing where output is piped."""

import time
from typing import Protocol

import pytest

_SECONDS_BETWEEN_WRITES = 0.2


class Say(Protocol):
    def __call__(self, text: str) -> None: ...


@pytest.fixture(scope="session")
def progress(pytestconfig: pytest.Config) -> Say:
    """Call it with what is being done now, as often as you like."""
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not reporter.isatty or hasattr(pytestconfig, "workerinput"):
        return lambda text: None
    last = 0.0

    def say(text: str) -> None:
        nonlocal last
        if text and time.monotonic() - last < _SECONDS_BETWEEN_WRITES:
            return
        last = time.monotonic()
        # Back to the line's start, clear it, write, and back again: pytest's own next word takes its place.
        reporter.write(f"\r\x1b[K{text[: reporter._tw.fullwidth - 1]}\r", flush=True)

    return say

"""Text for terminals and pipes that cannot show all of it: LANG=C, Latin-1, a path that is not UTF-8; and a bar."""

import codecs
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_PLAIN = {
    "×": "x", "÷": "/", "±": "+/-", "−": "-", "·": "*", "≈": "~", "≠": "!=", "→": "->", "…": "...", "─": "-", "│": "|",
    "✓": "+", "✗": "x", "▲": "^", "²": "^2", "³": "^3", "“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-",
    "▁": "_", "▂": "_", "▃": "-", "▄": "-", "▅": "=", "▆": "=", "▇": "#", "█": "#",
    "━": "-", "╸": "-", "╺": "-", "•": "*", "⠋": "*",
}  # fmt: skip
"""What this project says of its own signs where they cannot be shown; of any other letter, its escape."""


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign, end = error.object[error.start], error.start + 1
    if "\udc80" <= sign <= "\udcff":  # a byte of a path that is not text: as it was
        return bytes([ord(sign) - 0xDC00]), end
    return _PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode("ascii"), end


_OF_PYTHON = ("strict", "surrogateescape", "backslashreplace")
"""What Python gives its streams by itself: in most locales, in none, and stderr everywhere."""

codecs.register_error("optsd.plain", _plainly)


def survive(*streams: Any) -> None:
    """Let text streams (default: stdout and stderr) write what their encoding lacks in ASCII, and never fail over it.

    A stream that says itself what becomes of such text (PYTHONIOENCODING=ascii:replace) is left alone.
    """
    for stream in streams or (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _OF_PYTHON:
            stream.reconfigure(errors="optsd.plain")


@contextmanager
def progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """One bar, moved by `at(text, done)`: on the terminal only, and nothing is left of it."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=total)
        yield lambda text, done: bar.update(task, description=text, completed=done)

"""What pytest must know before it looks for tests: that the value of `--model FOLDER` is no folder of tests.

pytest takes words that it does not know yet for paths: it would look for its configuration in such a folder and run the
`conftest.py` there, before the project's own `conftest.py` tells it of the option. This plugin is loaded before that
(by `-p` in pyproject.toml, and by an entry point where pytest looks for its configuration elsewhere), and starts the
run again with each option and its value in one word, as `--model=FOLDER` is. Runs of other projects are left alone.

One thing comes before every plugin: the folder's own `pytest.ini` where FOLDER is the first path that is given. Write
`--model=FOLDER` for a folder that you do not trust.
"""

import os
import shlex
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import pytest

TAKE_A_VALUE = frozenset(
    (
        *("--model", "--variant", "--device", "--dtype", "--preset", "--steps", "--guidance", "--size", "--batch-size"),
        *("--rounds", "--images", "--seed", "--seeds", "--worst", "--output", "--coco", "--metric-weights"),
        *("--image-store", "--prompts", "--expected", "--repeat", "--claim-out"),
    )
)
"""The options of conftest_plugins/ that take a value."""

_VARIABLE = "PYTEST_ADDOPTS"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around all others: nothing is captured or imported yet
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    given, more = list(early_config.invocation_params.args), shlex.split(os.environ.get(_VARIABLE, ""))
    words, others = joined(given), joined(more)
    if (words, others) != (given, more) and _is_ours(early_config.invocation_params.dir, (*words, *others)):
        if others:
            os.environ[_VARIABLE] = shlex.join(others)
        raise SystemExit(pytest.main(words, early_config.invocation_params.plugins))
    yield


def joined(words: Sequence[str]) -> list[str]:
    """The words of a command line, each option of `TAKE_A_VALUE` in one word with its value."""
    made: list[str] = []
    waiting = ""
    for word in words:
        if waiting and not word.startswith("-"):
            made[-1] = f"{waiting}={word}"
            waiting = ""
            continue
        made.append(word)
        waiting = word if word in TAKE_A_VALUE else ""
    return made


def _is_ours(folder: Path, words: Iterable[str]) -> bool:
    """Whether pytest was started in a checkout of this project, or on a path in one."""
    paths = (folder / word.partition("::")[0] for word in words if not word.startswith("-"))
    places = [folder.resolve(), *(path.resolve() for path in paths if path.exists())]
    checkouts = (parent for place in places for parent in (place, *place.parents))
    return any((parent / "conftest_plugins" / "options.py").is_file() for parent in checkouts)

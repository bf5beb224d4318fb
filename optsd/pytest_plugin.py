"""What pytest must know early: whether a run is one of benches, which options it then has, and which words are values.

pytest finds this module by an entry point in every run of every project. It loads the plugins of the benches where the
benches are asked for (`pytest --pyargs optsd.bench`; a checkout's `conftest.py` does it there), and else does nothing.

pytest takes words that it does not know yet for paths: of `--model FOLDER` it would look for its configuration in that
folder and run the `conftest.py` there. So such a run is started again with each option and its value in one word, as
`--model=FOLDER` is. One thing comes before every plugin: the folder's own `pytest.ini` where FOLDER is the first path
that is given. Write `--model=FOLDER` for a folder that you do not trust.
"""

import importlib.util
import os
import re
import shlex
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import pytest

TAKE_A_VALUE = frozenset(
    (
        *("--model", "--variant", "--device", "--dtype", "--preset", "--steps", "--guidance", "--size", "--batch-size"),
        *("--rounds", "--images", "--seed", "--seeds", "--worst", "--output", "--coco", "--metric-weights"),
        *("--quality", "--image-store", "--ray", "--prompts", "--reference", "--expected", "--repeat", "--claim-out"),
        *("--subject", "--subject-timeout", "--against", "--against-tolerance", "--time-budget"),
    )
)
"""The options of conftest_plugins/ that take a value."""

PLUGINS = (
    *("options", "results", "progress", "pipelines", "quality", "kept", "ledgers", "estimates", "verdicts", "against"),
)
"""The modules of conftest_plugins/, each after those that it imports; in a wheel, of `optsd.conftest_plugins`."""

BENCHES = "optsd.bench"
_VARIABLE = "PYTEST_ADDOPTS"
_TAKEN = re.compile(r"option (?=.*already (?:added|used)).*?'(--[\w-]+)'")  # as pytest 8 and 9 say it


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the benches' plugins, which add their options now, where the command line asks for the benches."""
    config = pluginmanager.get_plugin("pytestconfig")
    if config is not None and asked(_words(config)):
        if importlib.util.find_spec("optsd.conftest_plugins") is None:
            raise pytest.UsageError(f"{BENCHES} is not in a checkout of OptSD; run there: pytest bench")
        for name in PLUGINS:
            pluginmanager.import_plugin(f"optsd.conftest_plugins.{name}")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around all others: nothing is captured or imported yet
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    given, more = list(early_config.invocation_params.args), shlex.split(os.environ.get(_VARIABLE, ""))
    words, others = joined(given), joined(more)
    is_asked = asked(_words(early_config))
    if (words, others) != (given, more) and (
        is_asked or _is_of_checkout(early_config.invocation_params.dir, (*words, *others))
    ):
        if others:
            os.environ[_VARIABLE] = shlex.join(others)
        raise SystemExit(pytest.main(words, early_config.invocation_params.plugins))
    try:
        yield
    except ValueError as error:
        if is_asked and (taken := _TAKEN.search(str(error))):
            raise pytest.UsageError(
                f"a conftest.py of this project has an option {taken[1]} of its own, and so have the benches; "
                "run them from another folder, or with --noconftest"
            ) from error
        raise


def asked(words: Sequence[str]) -> bool:
    """Whether these words ask for the benches as they are installed: `--pyargs optsd.bench`, or a part of them."""
    benches = (word for word in words if re.fullmatch(rf"{re.escape(BENCHES)}(\.\w+)*(::.*)?", word))
    return "--pyargs" in words and any(benches)


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


def _words(config: pytest.Config) -> list[str]:
    """The configuration's, the environment's and the command's own; `@FILE` has a word a line."""
    words = [*config.getini("addopts"), *shlex.split(os.environ.get(_VARIABLE, ""))]
    for word in map(str, config.invocation_params.args):
        file = config.invocation_params.dir / word[1:]
        if word.startswith("@") and file.is_file():
            words += file.read_text(encoding="utf-8", errors="replace").splitlines()
        else:
            words.append(word)
    return words


def _is_of_checkout(folder: Path, words: Iterable[str]) -> bool:
    """Whether pytest was started in a checkout of this project, or on a path in one."""
    paths = (folder / word.partition("::")[0] for word in words if not word.startswith("-"))
    places = [folder.resolve(), *(path.resolve() for path in paths if path.exists())]
    checkouts = (parent for place in places for parent in (place, *place.parents))
    return any((parent / "conftest_plugins" / "options.py").is_file() for parent in checkouts)

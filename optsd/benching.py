"""`optsd bench`: the benches, on any project: pytest's, with every option that it and its plugins have.

    optsd bench --model ./my-model --variant int8,int8+flash
    optsd bench --subject openvino=my_package.pipelines:draw --gate --rounds 15

`optsd bench --help` has them all. Figures of this machine are read from `expected/`, results go to `reports/`, both in
the project where the command runs. It is short for `pytest --pyargs optsd.bench`.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from optsd.errors import Unsupported


def main(arguments: list[str]) -> int:
    """Becomes pytest. Raises Unsupported where it is not installed."""
    if importlib.util.find_spec("pytest") is None:
        raise Unsupported("the benches need pytest, which is not installed", "install it: pip install 'optsd[bench]'")
    if {"-h", "--help"} & set(arguments):
        _Help().parser.parse_args(["--help"])
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *words(arguments)])


def words(arguments: list[str]) -> list[str]:
    """What pytest is called with: the benches as they are installed or, in a checkout, its own folder of them."""
    from optsd.pytest_plugin import BENCHES, joined

    if importlib.util.find_spec(BENCHES) is not None:
        return ["--pyargs", BENCHES, *joined(arguments)]
    return [str(Path(__file__).parents[1] / "bench"), *joined(arguments)]


class _Help:
    """The benches' options without all of pytest's: takes the place of the parser that pytest gives to plugins."""

    def __init__(self) -> None:
        from optsd.pytest_plugin import PLUGINS

        self.parser = argparse.ArgumentParser(
            prog="optsd bench",
            usage="optsd bench [OPTION ...]    and every option of pytest",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        package = "optsd.conftest_plugins" if importlib.util.find_spec("optsd.conftest_plugins") else "conftest_plugins"
        for name in PLUGINS:
            plugin = importlib.import_module(f"{package}.{name}")
            if hasattr(plugin, "pytest_addoption"):
                plugin.pytest_addoption(self)

    def getgroup(self, name: str, description: str) -> "_Help":
        self._group = self.parser.add_argument_group(name, description)
        return self

    def addoption(self, *names: str, **settings: Any) -> None:
        self._group.add_argument(*names, **settings)

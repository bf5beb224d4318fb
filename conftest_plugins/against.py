"""`--against REF`: another build in turn with this one, each in a process of its own. Nothing recorded is needed."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import pytest

from optsd.errors import OptsdError, Unsupported
from optsd.judge.sequential import decide
from optsd.judge.verdicts import is_of_build
from optsd.measure.builds import Worker, check_build, other_build, this_build
from optsd.measure.turns import Turns, in_turn
from optsd.records import Workload

from .options import DEVICE, MODEL, VARIANTS, estimated_device
from .progress import Say
from .results import RECORDER

TOLERANCE = 0.05
DEFAULT_BUDGET_S = 300.0
_EXCLUDES = ("--gate", "--expected-update", "--claims", "--subject")


@dataclass
class Budget:
    """Seconds of timing: each variant may use its even share of what those before it have left."""

    left_s: float
    shares: int

    def share_s(self) -> float:
        return self.left_s / max(1, self.shares)


@dataclass(frozen=True)
class Rivals:
    """Two builds, each in its process, and the place of the model that they run."""

    theirs: Worker
    ours: Worker
    tolerance: float
    budget: Budget
    model: str
    device: str

    def in_turn(self, variant: str, workload: Workload, most: int | None, say: Say) -> tuple[Turns, float]:
        """Rounds of one batch each until the answer is clear or the variant's share of the time is used up; seconds."""
        start = time.monotonic()
        try:
            with failing_in_one_line():
                for worker in (self.ours, self.theirs):
                    say(f"{variant}: {worker.build.name} loads {workload.model}")
                    worker.make(self.model, variant, self.device, workload)
                start, share_s = time.monotonic(), self.budget.share_s()
                turns = in_turn(
                    self.theirs.seconds,
                    self.ours.seconds,
                    lambda ratios: decide(ratios, self.tolerance) != "insufficient data",
                    share_s,
                    most=most,
                    say=lambda number: say(
                        f"{variant}: against {self.theirs.build.name}, round {number}, "
                        f"{time.monotonic() - start:.0f} s of at most {share_s:.0f}"
                    ),
                )
        finally:
            self.budget.shares -= 1
        took = time.monotonic() - start
        self.budget.left_s = max(0.0, self.budget.left_s - took)
        return turns, took


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("optsd against", "another build, in turn with this one")
    group.addoption(
        "--against",
        metavar="REF|WHEEL",
        help="bench nothing but each variant of this checkout against that of a git ref (main, v1.0, HEAD~1) or a "
        "wheel: both in processes of their own, in turn, in an order drawn anew each round; fails where this build is "
        "slower",
    )
    group.addoption(
        "--against-tolerance",
        type=float,
        default=100 * TOLERANCE,
        metavar="PERCENT",
        help="what counts as the same speed (default: ±%(default)g %%)",
    )
    group.addoption(
        "--time-budget",
        type=float,
        default=DEFAULT_BUDGET_S,
        metavar="SECONDS",
        help="of timing, for all variants together: rounds end sooner where the answer is clear (default: %(default)g)",
    )


@pytest.hookimpl(trylast=True)  # wrong names have been refused by then
def pytest_configure(config: pytest.Config) -> None:
    given, option = config.getoption("--against"), config.getoption
    if not 0 < option("--against-tolerance") < 100:
        raise pytest.UsageError(f"--against-tolerance {option('--against-tolerance'):g}: give a percentage, such as 5")
    if not option("--time-budget") > 0:
        raise pytest.UsageError(f"--time-budget {option('--time-budget'):g}: give seconds above zero")
    if not given:
        return
    if estimated_device(config):
        raise pytest.UsageError("--against times two builds, an estimate runs nothing; choose a --device that runs")
    if clash := next((name for name in _EXCLUDES if option(name)), "--repeat" if option("--repeat") > 1 else ""):
        raise pytest.UsageError(f"--against and {clash} are two questions; ask them in two runs")
    try:
        check_build(given, config.rootpath)
    except OptsdError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Against another build, or the benches: never both."""
    asked = bool(config.getoption("--against"))
    wanted = [item for item in items if bool(item.get_closest_marker("against")) == asked]
    if unwanted := [item for item in items if item not in wanted]:
        config.hook.pytest_deselected(items=unwanted)
    items[:] = wanted


def pytest_report_header(config: pytest.Config) -> list[str]:
    option = config.getoption
    if not option("--against"):
        return []
    most = "" if option("--rounds") is None else f", or {option('--rounds')} rounds of each variant"
    timed = f"until it is clear, in at most {option('--time-budget'):g} s of timing for all variants{most}"
    return [f"against {option('--against')}: {timed}; the same is ±{option('--against-tolerance'):g} %"]


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    """What a build says that cannot be driven, dies or hangs is about it, and not about this code: no traceback."""
    try:
        yield
    except Unsupported as error:
        pytest.skip(str(error))
    except OptsdError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture(scope="session")
def rivals(pytestconfig: pytest.Config, progress: Say) -> Iterator[Rivals]:
    """Both builds, each in its process."""
    option = pytestconfig.getoption
    with ExitStack() as stack, failing_in_one_line():
        progress(f"checking out {option('--against')}")
        build = stack.enter_context(other_build(option("--against"), pytestconfig.rootpath))
        theirs = stack.enter_context(closing(Worker(build)))
        ours = stack.enter_context(closing(Worker(this_build(pytestconfig.rootpath))))
        budget = Budget(option("--time-budget"), len(pytestconfig.stash[VARIANTS]))
        stash, tolerance = pytestconfig.stash, option("--against-tolerance") / 100
        yield Rivals(theirs, ours, tolerance, budget, stash[MODEL], stash[DEVICE])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--against"):
        return
    terminalreporter.section(f"against {config.getoption('--against')}")
    recorder = config.stash[RECORDER]
    for verdict in () if recorder.empty else recorder.judged().verdicts:
        if is_of_build(verdict):
            terminalreporter.line(f"{verdict.status:<18} {verdict.variant}: {verdict.note}")

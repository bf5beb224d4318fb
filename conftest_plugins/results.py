"""Collects what the benches measure, and at the end writes it, judges it and shows it."""

import shlex
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, is_dataclass, replace
from datetime import datetime, timezone
from typing import Any

import pytest

from optsd.errors import OptsdError
from optsd.files import without_user, write_atomically
from optsd.judge.benchmark_json import OURS
from optsd.metrics import metric
from optsd.records import Measurement, Results, Technique, Verdict
from optsd.report import folders
from optsd.terminals import survive

from .options import DEVICE, OUTPUT, WORKLOAD

LONG_S, TIMES_ITS_OWN = 0.1, 20
"""Writing results.json for longer than this is followed by so many times as long without."""
MANY_BYTES = 2**30
"""Of runs that are kept: above this the end of a run says so."""

RECORDER = pytest.StashKey["Recorder"]()
JUDGE = pytest.StashKey[Callable[[Results, int], tuple[Results, int]]]()
"""Makes, of a run's results and pytest's exit status, the judged results and the status that they mean."""


class Recorder:
    """What has been found out so far, in results.json, so that a killed run leaves it.

    Every addition is written; where that takes long (the rows of 30,000 pictures a variant take seconds), as often as
    costs a run a twentieth of its time. A session writes it at its end in any case.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._results: Results | None = None
        self._next_write = 0.0

    def measure(
        self,
        variant: str,
        name: str,
        value: float | None,
        interval: tuple[float, float] | None = None,
        samples: tuple[float, ...] = (),
        note: str = "",
    ) -> Measurement:
        """Add a figure; its unit comes from the table of metrics."""
        low, high = interval or (None, None)
        found = Measurement(variant, name, metric(name).unit, value, low, high, tuple(samples), note)
        self.measurement(found)
        return found

    def measurement(self, found: Measurement) -> None:
        self._extend(measurements=(found,))

    def verdict(self, found: Verdict) -> None:
        self._extend(verdicts=(found,))

    def technique(self, found: Technique) -> None:
        self._extend(techniques=(found,))

    def image(self, found: dict) -> None:
        self._extend(images=(found,))

    def failure(self, variant: str, stage: str, reason: str) -> None:
        self._extend(failures=({"variant": variant, "stage": stage, "reason": reason},))

    def results(self, complete: bool = False) -> Results:
        if self._results is None:
            from optsd.measure.environment import machine

            self._results = Results(
                machine=machine(self._config.stash.get(DEVICE, "cpu")),
                workload=self._config.stash[WORKLOAD],
                command=without_user(shlex.join(["pytest", *self._config.invocation_params.args])),
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            )
        return replace(self._results, complete=complete)

    def judged(self) -> Results:
        """What `pytest_sessionfinish` has made of it: with verdicts, and whether the run ended by itself."""
        return self.results(self._results is not None and self._results.complete)

    def merge(self, other: Results) -> None:
        """Add what another worker has found, and on which machine: it knows which GPU ran."""
        if self.empty and other.machine:
            self._results = replace(self.results(), machine=other.machine)
        fields = ("measurements", "verdicts", "techniques", "images", "failures")
        self._extend(**{name: getattr(other, name) for name in fields})

    @property
    def empty(self) -> bool:
        return self._results is None

    def _extend(self, **rows: tuple) -> None:
        now = self.results()
        rows = {name: tuple(map(_without_user, more)) for name, more in rows.items()}
        self._results = replace(now, **{name: getattr(now, name) + more for name, more in rows.items()})
        if not hasattr(self._config, "workerinput"):
            folder = self._config.stash[OUTPUT]
            if not (folder / "results.json").exists() and folder.parent == self._config.rootpath / "reports":
                folders.make_latest(folder)
            if (began := time.monotonic()) >= self._next_write:
                write_atomically(folder / "results.json", self._results.to_json())
                took = time.monotonic() - began
                self._next_write = time.monotonic() + TIMES_ITS_OWN * took if took > LONG_S else 0.0


def _without_user(value: Any) -> Any:
    """A row, or a part of one, with every text as `without_user` gives it: reasons and notes name files."""
    if isinstance(value, str):
        return without_user(value)
    if isinstance(value, dict):
        return {key: _without_user(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_without_user, value)) if any(isinstance(e, str | dict | list) for e in value) else value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: _without_user(each) for name, each in vars(value).items()})
    return value


def pytest_configure(config: pytest.Config) -> None:
    """A terminal that lacks a sign must not cost a run its table."""
    survive()
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        survive(reporter._tw._file)
    config.stash[RECORDER] = Recorder(config)
    # pytest-benchmark's table has the seconds without what they mean; whoever asks for it in detail gets it.
    config.option.benchmark_quiet = not getattr(config.option, "benchmark_verbose", False)


@pytest.fixture(scope="session")
def recorder(pytestconfig: pytest.Config) -> Recorder:
    return pytestconfig.stash[RECORDER]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
    """Let the report know of tests of a variant that failed or were skipped, with the reason."""
    report = yield
    callspec = getattr(item, "callspec", None)
    variant = callspec and callspec.params.get("variant")
    if variant and call.excinfo and (report.failed or report.skipped):
        stage = getattr(item, "originalname", item.name)
        item.config.stash[RECORDER].failure(variant, stage, _reason(call.excinfo.value))
    return report


def _reason(error: BaseException) -> str:
    return str(getattr(error, "msg", None) or error).strip().split("\n")[0] or type(error).__name__


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """xdist: a worker has ended; take over what it found."""
    text = getattr(node, "workeroutput", {}).get("optsd")
    if text:
        results = Results.from_json(text, f"worker {node.gateway.id}")
        node.config.stash.setdefault(WORKLOAD, results.workload)
        node.config.stash[RECORDER].merge(results)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    recorder = config.stash[RECORDER]
    if recorder.empty:
        return
    results = recorder.results(complete=exitstatus != pytest.ExitCode.INTERRUPTED)
    if hasattr(config, "workerinput"):
        config.workeroutput["optsd"] = results.to_json()  # type: ignore[attr-defined]
        return
    from optsd import report

    status = int(exitstatus)
    if judge := config.stash.get(JUDGE, None):
        results, status = judge(results, status)
    results = _without_user(results)
    folder = config.stash[OUTPUT]
    config.stash[RECORDER]._results = results
    try:
        write_atomically(folder / "results.json", results.to_json())
        report.write(results, folder)
    except (OptsdError, OSError) as error:
        print(f"no report: {error}", file=sys.stderr)
    session.exitstatus = status


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    recorder = config.stash[RECORDER]
    if recorder.empty:
        return
    from rich.console import Console

    from optsd.report import print_table

    results = recorder.judged()
    terminalreporter.section("results")
    writer = terminalreporter._tw
    print_table(results, Console(file=writer._file, width=min(writer.fullwidth, 120), force_terminal=writer.hasmarkup))
    folder = config.stash[OUTPUT]
    written = [name for name in ("index.html", "results.json", "contact-sheet.png") if (folder / name).is_file()]
    terminalreporter.line(f"written to {folder}: {', '.join(written)}")
    runs = folders.runs_in(folder.parent)
    if folder in runs and (size := folders.bytes_of(runs)) > MANY_BYTES:
        terminalreporter.line(f"{folder.parent} holds {len(runs)} runs, {size / 2**30:.1f} GiB: none is ever removed")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict) -> None:
    """What `optsd compare` must know of a --benchmark-json: figures of two workloads or machines are not compared."""
    recorder = config.stash[RECORDER]
    if not recorder.empty:
        results = recorder.results()
        output_json[OURS] = {"machine": results.machine, "workload": asdict(results.workload)}

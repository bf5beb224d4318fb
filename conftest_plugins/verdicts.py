"""Judges a run when it has ended: the claims, the machine's recorded figures, repeated runs; the exit status.

0: nothing failed. 1: a test failed, or a verdict that was asked for did, or baselines were written. 4: wrong usage.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optsd.claims import files, template
from optsd.errors import BadInput, OptsdError
from optsd.estimate import published
from optsd.files import check_writable
from optsd.judge import history
from optsd.judge.action_benchmark import write as write_action_benchmark
from optsd.judge.chosen import OPTIONS, Chosen, choose
from optsd.judge.claims import judge_claims
from optsd.judge.expectations import Baselines, Claims, machine_name
from optsd.judge.outcome import QUESTIONS, Outcome
from optsd.judge.reading import read_all_claims, read_baselines
from optsd.judge.recording import baseline_file, update
from optsd.judge.regressions import confirmed, is_alarm, judge_regressions
from optsd.judge.repeat import judge_repeats
from optsd.judge.statistics import FEWEST_ROUNDS
from optsd.judge.verdicts import is_of_build
from optsd.measure.environment import Watch
from optsd.records import Results, Verdict

from . import kept, ledgers
from .estimates import beside_bounds
from .options import DEVICE, OUTPUT, SUBJECTS, VARIANTS, WATCH, chosen_preset, estimated_device, resolve
from .results import JUDGE, RECORDER

CLAIMS = pytest.StashKey[Claims]()
_CHOSEN = pytest.StashKey[Chosen]()
_OUTCOME = pytest.StashKey[Outcome]()

NOT_FOR_REPEATS = ("--repeat", "--output", "--claim-out", "--junitxml", "--junit-xml", "--benchmark-json")
"""Options of the first run that would overwrite its files, or begin anew; they take a value."""
CONFIRMATION = "confirmation"
"""The folder of an alarm's second session, in which no third one is asked for."""
NEED_ROUNDS = ("--gate", "--expected-update")
JUDGED_ONCE = ("--claims", "--gate", "--expected-update")

_FINE = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


class _ClaimsOption(argparse.Action):
    """`--claims`, `--claims guide`, `--claims=FILE`: an optional value, which a test path after it is not."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        is_path = values != self.const and not str(values).endswith(".json") and Path(str(values)).exists()
        namespace.claims = self.const if is_path or "::" in str(values) else values
        namespace.claims_left = [values] if namespace.claims != values else []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("optsd verdicts", "what is expected, and what fails a run")
    group.addoption(
        "--claims",
        nargs="?",
        const=files.GUIDE,
        action=_ClaimsOption,
        metavar="NAME[,NAME]|FILE",
        help="fail where a claim is missed or not measured: of the guide, or of the sources that are named (optsd "
        "claims list has them), whose workload the run then takes where no other option decides",
    )
    group.addoption("--claim-out", metavar="FILE", help="write this run's figures as claims that others can check")
    group.addoption(
        "--gate",
        action="store_true",
        help="fail where this machine has regressed against its recorded figures, or has none",
    )
    group.addoption("--expected", default="expected", help="where claims/ and baselines/ are (default: %(default)s)")
    group.addoption(
        "--expected-update",
        action="store_true",
        help="record this run as the machine's figures in baselines/; the run fails, so that no gate updates itself",
    )
    group.addoption(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="run everything N times and say which figures agree; images must be identical",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Read what is expected now: a mistake there must not cost a run. First of all, because claims decide options."""
    option = config.getoption
    if option("--repeat") < 1:
        raise pytest.UsageError(f"--repeat {option('--repeat')} is too small; give 1 or more")
    config.stash[_OUTCOME] = Outcome()
    config.stash[JUDGE] = lambda results, status: (judge(config, results), exit_status(config, status))
    folder = config.rootpath / option("--expected")
    if left := getattr(config.option, "claims_left", None):  # `--claims bench`: the path was taken for a name
        named = config.args_source is pytest.Config.ArgsSource.ARGS
        config.args[:] = [*(config.args if named else ()), *left]
    asked = [name for name in NEED_ROUNDS if option(name)]
    try:
        if len(asked) > 1:
            raise BadInput("--gate and --expected-update are two questions", "record first, then ask the gate")
        if asked and not estimated_device(config) and (rounds := chosen_preset(config).rounds) < FEWEST_ROUNDS:
            raise BadInput(f"{asked[0]} decides nothing in {rounds} rounds", f"give --rounds {FEWEST_ROUNDS} or more")
        _read_claims(config, folder)
        if option("--gate") or option("--expected-update"):
            for file in sorted((folder / "baselines").glob("*.json")):
                read_baselines(file)
    except OptsdError as error:
        raise pytest.UsageError(str(error)) from None


def _read_claims(config: pytest.Config, folder: Path) -> None:
    """The claims that are asked for, else the guide's where they are; other sources' decide what the user has not."""
    asked, guide = config.getoption("--claims"), folder / "claims" / f"{files.GUIDE}.json"
    if (folder / "claims.json").is_file() and not guide.is_file():
        guide = folder / "claims.json"  # of schema 1
    if asked in (None, files.GUIDE):
        if asked or guide.is_file():
            config.stash[_CHOSEN] = choose(read_all_claims(guide), {})
    else:
        groups = [
            group for file in files.find(asked, files.or_shipped(folder / "claims")) for group in read_all_claims(file)
        ]
        given = _given(config)
        named = config.getoption("--variant", None)
        chosen = choose(groups, given, [name for each in named for name in each.split(",")] if named else None)
        for name, value in chosen.options.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        if named is None and hasattr(config.option, "variant"):
            config.option.variant = list(chosen.variants)
        config.stash[_CHOSEN] = chosen
    if _CHOSEN in config.stash:
        config.stash[CLAIMS] = config.stash[_CHOSEN].claims


def _given(config: pytest.Config) -> dict[str, Any]:
    """The options that the user has set, whatever their defaults are."""
    words = [*map(str, config.invocation_params.args), *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    names = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    return {name: config.getoption(f"--{name.replace('_', '-')}") for name in OPTIONS if name in names}


def pytest_report_header(config: pytest.Config) -> list[str]:
    if config.getoption("--claims") in (None, files.GUIDE) or _CHOSEN not in config.stash:
        return []
    return [f"claims: {config.stash[_CHOSEN]}"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "claim" in metafunc.fixturenames:
        config = metafunc.config
        rows = config.stash[CLAIMS].claims if CLAIMS in config.stash else ()
        chosen = [row for row in rows if row.variant in config.stash[VARIANTS]]
        names = [f"{row.variant}-{row.metric}-{number}" for number, row in enumerate(chosen, 1)]
        metafunc.parametrize("claim", chosen, ids=names)


@pytest.fixture
def claims(pytestconfig: pytest.Config) -> Claims:
    """Those that this run is judged by."""
    return pytestconfig.stash[CLAIMS]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Claims are asserted when everything has been measured, and only where that was asked for."""
    claims = [item for item in items if item.get_closest_marker("claims")]
    others = [item for item in items if not item.get_closest_marker("claims")]
    if claims and not config.getoption("--claims"):
        config.hook.pytest_deselected(items=claims)
        claims = []
    items[:] = others + claims


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    config = session.config
    if config.option.collectonly:
        return
    if session.items and not hasattr(config, "workerinput"):
        _check_files(config)
        if config.getoption("--gate"):
            _refuse_without_record(config)
    config.stash[WATCH] = Watch()


def _check_files(config: pytest.Config) -> None:
    """What is written at the end can be written: found out now."""
    out, expected = config.getoption("--claim-out"), config.getoption("--expected")
    try:
        if out and (config.rootpath / out).is_dir():
            raise BadInput(f"--claim-out {out} is a folder", "name a file")
        if out:
            check_writable((config.rootpath / out).parent, "--claim-out")
        if config.getoption("--expected-update"):
            check_writable(config.rootpath / expected, "--expected")
        # pytest-benchmark opens it at the end, makes no folder for it, and takes what others write down with it.
        json = config.getoption("benchmark_json", None)
        if json and not hasattr(json, "write"):  # before 5.3 it has opened it by now
            check_writable(Path(json).parent, "--benchmark-json")  # which makes it
    except BadInput as error:
        raise pytest.UsageError(str(error)) from None


def _refuse_without_record(config: pytest.Config) -> None:
    """What a gate compares with must be there before hours are spent on the other half."""
    from optsd.measure.environment import machine

    workload, folder = resolve(config), config.rootpath / config.getoption("--expected") / "baselines"
    file = folder / f"{machine_name(machine(config.stash.get(DEVICE, 'cpu')), workload.device)}.json"
    if not file.is_file():
        raise pytest.UsageError(f"--gate: this machine has no {file}; record it with --expected-update")
    if read_baselines(file).run(workload) is None:
        raise pytest.UsageError(f"--gate: {file} has no run of this workload; record it with --expected-update")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A gate whose benches were all skipped, or not there, has not passed."""
    config = session.config
    asked = [option for option in (*JUDGED_ONCE, "--against") if config.getoption(option, None)]
    if not asked or config.option.collectonly or hasattr(config, "workerinput") or not config.stash[RECORDER].empty:
        return
    if session.exitstatus not in (*_FINE, pytest.ExitCode.TESTS_FAILED):  # refused or cut off, and that is said
        return
    config.stash[_OUTCOME].lines.append(f"{asked[0]} judged nothing: this run measured nothing; run pytest bench")
    if session.exitstatus in _FINE:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def judge(config: pytest.Config, results: Results) -> Results:
    """The results with the machine's load meanwhile and every verdict; repeats the run first if it was asked for."""
    outcome, folder = config.stash[_OUTCOME], config.stash[OUTPUT]
    if WATCH in config.stash:
        results = replace(
            results, machine={**results.machine, "load": config.stash[WATCH].read(config.stash.get(DEVICE, "cpu"))}
        )
    chosen = config.stash[VARIANTS]
    verdicts = list(results.verdicts)
    if config.getoption("--against", None):
        found = tuple(filter(is_of_build, verdicts))
        more = "give it more time with --time-budget, or fewer variants"
        outcome.answer("--against", found, more if found else "no variant ran in both builds")
    if CLAIMS in config.stash:
        claims, others = config.stash[CLAIMS], config.stash[_CHOSEN].others
        elsewhere = [row for group in others for row in judge_claims(group, results)]
        judged = replace(results, verdicts=(*judge_claims(claims, results, chosen), *elsewhere))
        try:
            results = beside_bounds(config, claims, judged)
        except Exception as error:  # noqa: BLE001 - whatever it is, hours of measuring must not be lost to it
            results = judged
            outcome.lines.append(f"no bounds beside the claims: {error!r}")
        verdicts += _noted(config, "--claims", results.verdicts)
        if not results.bounds:
            results = replace(results, bounds=_kept_bounds(config, (claims, *others)))
    if config.getoption("--quality", None):
        verdicts += _noted(config, "--quality", kept.judged(config, results))
    try:
        file = baseline_file(config.rootpath / config.getoption("--expected") / "baselines", results)
        baselines = read_baselines(file) if file.exists() else None
        # Without a file there is nothing to say, unless a gate was asked for.
        if baselines or config.getoption("--gate"):
            rows = ledgers.with_places(config, judge_regressions(baselines, results, chosen), results)
            if config.getoption("--gate") and baselines:
                rows = _in_history(config, rows, baselines, results)
            if not config.getoption("--gate"):  # what was never recorded is news to a gate alone
                rows = tuple(row for row in rows if row.status != "no baseline")
            verdicts += _noted(config, "--gate", rows)
            _offer_tightening(outcome, rows)
        if not results.complete and (config.getoption("--repeat") > 1 or config.getoption("--expected-update")):
            raise BadInput("the run was cut off: nothing was repeated or recorded", "let it end")
        if config.getoption("--repeat") > 1:
            repeats = _repeat(config, results, folder)
            # Whatever the figures do, the same seed must give the same picture.
            outcome.failed += [row for row in repeats if row.metric == "images" and row.status == "differs"]
            verdicts += repeats
        if config.getoption("--claim-out"):
            files.write(template.of_results(results), config.rootpath / config.getoption("--claim-out"))
            outcome.lines.append(f"claims written to {config.getoption('--claim-out')}")
        if config.getoption("--expected-update"):
            written: Baselines = update(file, results)
            ledgers.record(config, results)
            outcome.recorded = sum(len(run.rows) for run in written.runs if run.workload == results.workload)
            outcome.lines.append(f"recorded {outcome.recorded} figures in {file}")
    except OptsdError as error:
        outcome.broken = True
        outcome.lines.append(str(error))
    results = replace(results, verdicts=tuple(verdicts))
    write_action_benchmark(results, folder)
    return results


def _in_history(
    config: pytest.Config, rows: tuple[Verdict, ...], baselines: Baselines, results: Results
) -> tuple[Verdict, ...]:
    """The verdicts with their alarms as a second session leaves them; both sessions are added to the history."""
    from optsd.measure.environment import git_state

    folder, git = config.rootpath / config.getoption("--expected") / "history", git_state(config.rootpath) or {}
    if not results.complete or results.workload.is_estimate:  # a ledger has no noise, and git has its history
        return rows
    if config.stash[OUTPUT].name == CONFIRMATION:  # --gate may stand in a file of options, where it is not left out
        return rows
    history.append(folder, results, rows, git)
    if not any(map(is_alarm, rows)):
        return rows
    named = dict.fromkeys(row.variant for row in rows if is_alarm(row))
    variants = [name for name in named if name not in config.stash[SUBJECTS]] or ["baseline"]
    print(f"\n{', '.join(named)}: an alarm; a second session tells whether it stands", file=sys.stderr)
    try:
        second = _again(config, config.stash[OUTPUT] / CONFIRMATION, "-m=speed", f"--variant={','.join(variants)}")
    except OptsdError as error:  # what does not come about clears nothing
        config.stash[_OUTCOME].lines.append(f"no second session: {error}")
        return rows
    confirmation = judge_regressions(baselines, second, named)
    history.append(folder, second, confirmation, git)
    return confirmed(rows, baselines, second)


def _kept_bounds(config: pytest.Config, groups: Iterable[Claims]) -> tuple[dict[str, Any], ...]:
    """What the data sheets say of claims that this run cannot judge: as `optsd claims field` has kept it."""
    kept = published.read(config.rootpath / config.getoption("--expected") / "bounds.json")
    about = [claim for group in groups for claim in group.claims if claim.label in kept]
    return tuple(
        {
            "variant": claim.variant, "metric": claim.metric, "claimed": bound.claimed, "bound": bound.limit,
            "measured": None, "status": bound.status, "source": claim.source,
            "arithmetic": "; ".join(filter(None, (bound.arithmetic, bound.assumption))),
        }
        for claim in about
        if (bound := kept[claim.label])
    )  # fmt: skip


def exit_status(config: pytest.Config, status: int) -> int:
    """pytest's own status, or 1 where a verdict fails the run that pytest thinks well of."""
    outcome = config.stash[_OUTCOME]
    outcome.broken = outcome.broken or status not in _FINE
    return pytest.ExitCode.TESTS_FAILED if status in _FINE and outcome.fails else status


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcome = config.stash[_OUTCOME]
    failed = [row for row in outcome.failed if row not in outcome.answers.get("--against", ())]  # has its own section
    if not failed and not outcome.lines:
        return
    terminalreporter.section("verdicts")
    for verdict in failed:
        terminalreporter.line(f"{verdict.status.upper()} {verdict.variant} {verdict.metric}: {verdict.note}")
    for line in outcome.lines:
        terminalreporter.line(line)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The answer is the last thing on the screen, below pytest's own last line."""
    reporter, recorder = config.pluginmanager.get_plugin("terminalreporter"), config.stash.get(RECORDER, None)
    if reporter is None or recorder is None or recorder.empty or hasattr(config, "workerinput"):
        return
    outcome, results = config.stash[_OUTCOME], recorder.judged()
    if not results.complete:
        count = len({row.variant for row in results.measurements})
        reporter.write_line(f"INCOMPLETE: interrupted; there are figures of {count} variants", yellow=True, bold=True)
    asked = [option for option in QUESTIONS if config.getoption(option, None)]
    for line, bad in outcome.at_last(asked, results.complete):
        reporter.write_line(line, red=bad, green=not bad, bold=True)
    if outcome.recorded:
        then = "look at the difference, commit it, then --gate; status 1 on purpose"
        reporter.write_line(f"RECORDED {outcome.recorded} figures: {then}", yellow=True, bold=True)


def _noted(config: pytest.Config, option: str, verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    """Remember what fails the run, if the option asks for it."""
    if config.getoption(option):
        config.stash[_OUTCOME].answer(option, verdicts)
    return verdicts


def _offer_tightening(outcome: Outcome, verdicts: Iterable[Verdict]) -> None:
    for verdict in verdicts:
        if verdict.status == "improved":
            outcome.lines.append(f"improved: {verdict.variant} {verdict.metric}, {verdict.note}")


def _repeat(config: pytest.Config, results: Results, folder: Path) -> tuple[Verdict, ...]:
    """Run the same command again, in fresh processes, and compare what they found."""
    folders = [folder, *(folder / f"repeat-{number}" for number in range(2, config.getoption("--repeat") + 1))]
    return judge_repeats([results, *(_again(config, each) for each in folders[1:])], folders)


def _again(config: pytest.Config, folder: Path, *other: str) -> Results:
    """What the same command finds in a fresh process, with some `other` options. It writes into `folder`."""
    (folder / "results.json").unlink(missing_ok=True)  # of an earlier run: it must not be taken for this one's
    replaced = {word.partition("=")[0] for word in other}
    command = [*_arguments(config, replaced), *other, f"--output={folder}", "--repeat=1"]
    done = subprocess.run([sys.executable, "-m", "pytest", *command], cwd=config.invocation_params.dir)
    if not (folder / "results.json").is_file():
        raise BadInput(
            f"another run left no results in {folder} (exit status {done.returncode})", "see its output above"
        )
    return Results.read(folder / "results.json")


def _arguments(config: pytest.Config, replaced: Collection[str] = ()) -> list[str]:
    """This run's own arguments, without those that belong to it alone, and those that are `replaced`."""
    kept: list[str] = []
    before = ""
    given = iter(map(str, config.invocation_params.args))
    for word in given:
        name, equals, _ = word.partition("=")
        if name in NOT_FOR_REPEATS or name in replaced:
            if not equals:
                next(given, None)
        elif name == "--claims" and config.getoption("--claims") != files.GUIDE:
            kept.append(word)  # these decide the workload
        elif name not in JUDGED_ONCE and not (word == files.GUIDE and before == "--claims"):
            kept.append(word)
        before = word
    return kept

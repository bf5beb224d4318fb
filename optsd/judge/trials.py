"""Puts the gate itself to the test: builds that are slower on purpose, on a busy machine, many times over.

    python -m optsd.judge.trials measure trials.jsonl --runs 41 --busy
    python -m optsd.judge.trials table trials.jsonl

Each run times, in interleaved rounds, the baseline and one variant as it is and with a real delay inside every
denoising step that makes it 5, 12 and 30 % slower as a whole. The first run is recorded as a machine's file would be;
every later run is judged against it, once for each delay. `measure` adds runs to the file, so that it can be stopped
and begun again. Of this package only `measure` imports torch.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from optsd.errors import BadInput
from optsd.judge.recording import as_baselines
from optsd.judge.regressions import judge_regressions
from optsd.judge.sequential import decide
from optsd.judge.statistics import change_interval, median_interval, paired_ratios, ratio_interval
from optsd.measure.environment import Watch, machine
from optsd.measure.turns import in_turn
from optsd.records import Measurement, Results, Workload
from optsd.terminals import survive

DELAYS = {"identical": 0.0, "5 % slower": 0.05, "12 % slower": 0.12, "30 % slower": 0.30}
CASES = (
    *(("identical", tolerance) for tolerance in (0.10, 0.05, 0.025)),
    ("5 % slower", 0.025),
    ("12 % slower", 0.05),
    ("30 % slower", 0.10),
)
"""Of the rule of `--against`: a build, and the tolerance that it is judged by."""
STEPS = 2
STATUSES = ("regressed", "insufficient data", "ok", "improved")


class DelayedStep:
    """Stands in for a UNet's `forward` and waits after every call, in proportion to the time that the call took.

    In proportion, because a kernel that is 30 % slower is so on a busy machine too. `delay` 0.3 makes the whole
    pipeline 30 % slower when the UNet takes the share `unet_share` of its time.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self.delay, self.unet_share, self.seconds = 0.0, 1.0, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = self._forward(*arguments, **named)
        took = time.perf_counter() - start
        self.seconds += took
        if self.delay:
            # Spun, not slept: a sleep on a busy machine is longer than it was asked to be.
            end = time.perf_counter() + took * self.delay / self.unet_share
            while time.perf_counter() < end:
                pass
        return result


def time_run(baseline: Callable[[], object], variant: Callable[[], object], step: DelayedStep, rounds: int) -> dict:
    """One run: for the baseline itself and for each build, its seconds and the baseline's of the moment before."""
    calls = {"baseline": (baseline, 0.0), **{name: (variant, delay) for name, delay in DELAYS.items()}}
    seconds: dict[str, dict[str, list[float]]] = {name: {"baseline": [], "ours": []} for name in calls}
    watch, shuffled = Watch(), random.Random(0)
    for _ in range(rounds):
        # No build may always come after the same other one.
        for name, (call, delay) in shuffled.sample(list(calls.items()), len(calls)):
            step.delay = delay
            for which, timed in (("baseline", baseline), ("ours", call)):
                start = time.perf_counter()
                timed()
                seconds[name][which].append(time.perf_counter() - start)
    return {"seconds": seconds, "load": watch.read(), "machine": machine()}


def as_results(run: dict, build: str) -> Results:
    """A run as the suite would have written it, had it benched this build of the variant `flash`."""
    rows = []
    for variant, name in (("baseline", "baseline"), ("flash", build)):
        theirs, ours = run["seconds"][name]["baseline"], run["seconds"][name]["ours"]
        rows.append(Measurement(variant, "latency_s", "s", *median_interval(ours), tuple(ours)))
        rows.append(Measurement(variant, "speedup", "×", *ratio_interval(theirs, ours), paired_ratios(theirs, ours)))
    workload = Workload("shapes", "cpu", "float32", STEPS, 1.0, 64, 64, 1)
    return Results(machine={**run["machine"], "load": run["load"]}, workload=workload, measurements=tuple(rows))


def judge_trials(runs: Sequence[dict]) -> dict[str, list[dict[str, str]]]:
    """For each build the statuses of its rows, a trial each: every run but the first, judged against the first."""
    recorded = as_baselines(as_results(runs[0], "identical"), "the first run")
    return {
        build: [
            {f"{row.variant} {row.metric}": row.status for row in judge_regressions(recorded, as_results(run, build))}
            for run in runs[1:]
        ]
        for build in DELAYS
    }


def table(runs: Sequence[dict]) -> str:
    """The trials as a Markdown table: how often the gate called each build what."""
    trials = judge_trials(runs)
    shares = sorted(run["load"]["others_cpu_share"] for run in runs)
    rounds = len(runs[1]["seconds"]["baseline"]["ours"])
    lines = [
        f"{len(runs) - 1} trials of {rounds} interleaved rounds each. Other processes used {shares[0]:.0%} to "
        f"{shares[-1]:.0%} of the CPU (median {shares[len(shares) // 2]:.0%}).",
        "",
        "| build | the gate fails | " + " | ".join(f"speedup: {status}" for status in STATUSES) + " | measured |",
        "| --- |" + " ---: |" * (len(STATUSES) + 2),
    ]
    for build, found in trials.items():
        failed = sum("regressed" in rows.values() for rows in found)
        counts = Counter(rows["flash speedup"] for rows in found)
        slower = sorted(_slower(run, build) for run in runs[1:])
        measured = f"{slower[len(slower) // 2]:+.1%} ({slower[0]:+.1%} to {slower[-1]:+.1%})"
        cells = [f"{failed} of {len(found)}", *(str(counts[status]) for status in STATUSES), measured]
        lines.append(f"| {build} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _slower(run: dict, build: str) -> float:
    """How much slower the delayed build seemed than the same build without delay, in the same run."""
    ratios = [
        paired_ratios(run["seconds"][name]["ours"], run["seconds"][name]["baseline"]) for name in ("identical", build)
    ]
    return change_interval(*ratios).value - 1


def measure(file: Path, runs: int, rounds: int, busy: bool, limit_s: float) -> None:
    """Add runs to the file until it has so many, or until the time is up."""
    start = time.monotonic()
    done = len(read(file)) if file.exists() else 0
    baseline, variant, step = _pipelines()
    for call in (baseline, variant, variant):
        call()
    with _load(limit_s + 60) if busy else _nothing():
        longest = 0.0
        while done < runs and time.monotonic() - start + longest < limit_s:
            began = time.monotonic()
            _calibrate(variant, step)
            # What all later runs are judged by deserves more rounds.
            found = time_run(baseline, variant, step, rounds if done else 2 * rounds)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(found) + "\n")
            longest = max(longest, time.monotonic() - began)
            done += 1
            print(f"run {done} of {runs}: {time.monotonic() - began:.1f} s, load {found['load']}", flush=True)


def against(file: Path, trials: int, busy: bool, budget_s: float, limit_s: float) -> None:
    """Add trials of the rule of `--against` to the file: each case once a trial, round by round until it is decided."""
    start, longest = time.monotonic(), 0.0
    done = len(read_against(file)) if file.exists() else 0
    _, variant, step = _pipelines()
    for _ in range(3):
        variant()

    def clock(delay: float) -> Callable[[], float]:
        def timed() -> float:
            step.delay = delay
            began = time.perf_counter()
            variant()
            return time.perf_counter() - began

        return timed

    with _load(limit_s + 60) if busy else _nothing():
        while done < trials * len(CASES) and time.monotonic() - start + longest < limit_s:
            name, tolerance = CASES[done % len(CASES)]
            _calibrate(variant, step)
            watch, began = Watch(), time.monotonic()
            turns = in_turn(
                clock(0.0),
                clock(DELAYS[name]),
                lambda ratios, tolerance=tolerance: decide(ratios, tolerance) != "insufficient data",  # type: ignore[misc]
                budget_s,
            )
            took = time.monotonic() - began
            status = decide(turns.ratios, tolerance)
            found = {"build": name, "tolerance": tolerance, "status": status, "took_s": took, "load": watch.read()}
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({**found, "ratios": turns.ratios}) + "\n")
            longest, done = max(longest, took), done + 1
            print(f"{done} of {trials * len(CASES)}: {name}, ±{tolerance:.1%}: {status}, {took:.0f} s", flush=True)


def against_table(found: Sequence[dict]) -> str:
    """Of each case how often the rule said what, in how many rounds and seconds (median, longest)."""
    lines = [
        "| build | tolerance | slower | same | faster | insufficient data | rounds | seconds |",
        "| --- |" + " ---: |" * 7,
    ]
    for name, tolerance in CASES:
        rows = [row for row in found if (row["build"], row["tolerance"]) == (name, tolerance)]
        if not rows:
            continue
        counts = Counter(row["status"] for row in rows)
        cells = [f"{counts[status]} of {len(rows)}" for status in ("slower", "same", "faster", "insufficient data")]
        for sizes in (sorted(len(row["ratios"]) for row in rows), sorted(round(row["took_s"]) for row in rows)):
            cells.append(f"{sizes[len(sizes) // 2]} (at most {sizes[-1]})")
        lines.append(f"| {name} | ±{tolerance:.1%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read(file: Path) -> list[dict]:
    """The runs in a file. Raises BadInput where it is none of `measure`."""
    return _lines(file, "measure", "seconds", "load", "machine")


def _lines(file: Path, command: str, *parts: str) -> list[dict]:
    try:
        runs = [json.loads(line) for line in file.read_text(encoding="utf-8-sig").splitlines()]
        if not all(set(parts) <= set(run) for run in runs):
            raise ValueError("a line is no run")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(
            f"{file} has no trials ({error})", f"make it with: python -m optsd.judge.trials {command} FILE"
        ) from error
    return runs


def read_against(file: Path) -> list[dict]:
    """The trials in a file. Raises BadInput where it is none of `against`."""
    return _lines(file, "against", "build", "tolerance", "status", "took_s", "ratios")


def _pipelines() -> tuple[Callable[[], object], Callable[[], object], DelayedStep]:
    """The baseline's call, the variant's, and the delay inside the variant. Untrained weights will do."""
    import tempfile

    import torch

    from optsd.anatomy import denoiser
    from optsd.measure.seeds import generators
    from optsd.models.shapes import networks
    from optsd.variants import against_eager

    def make(name: str) -> Any:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            tokens = networks.tokenizer(Path(folder))
            pipe = networks.pipeline(
                unet=networks.unet().eval(),
                vae=networks.autoencoder().eval(),
                text_encoder=networks.text_encoder(tokens).eval(),
                tokenizer=tokens,
            )
        pipe.set_progress_bar_config(disable=True)
        against_eager(name).apply(pipe)
        return pipe

    def call(pipe: Any) -> Callable[[], object]:
        caption = "a small red circle on a beige background"
        return lambda: pipe(
            caption, num_inference_steps=STEPS, guidance_scale=1.0, generator=generators(42, 0, 1), output_type="np"
        )

    eager, flash = make("baseline"), make("flash")
    step = DelayedStep(denoiser(flash).forward)
    denoiser(flash).forward = step
    return call(eager), call(flash), step


def _calibrate(variant: Callable[[], object], step: DelayedStep) -> None:
    """Measure the UNet's share of a call."""
    step.delay, step.seconds = 0.0, 0.0
    start = time.perf_counter()
    for _ in range(5):
        variant()
    step.unet_share = step.seconds / (time.perf_counter() - start)


_BURN = """
import random, time
generator, end = random.Random(1), time.monotonic() + {seconds}
while time.monotonic() < end:  # 0.7 s at work, 0.7 s idle, on average
    rest = time.monotonic() + generator.expovariate(1 / 0.7)
    while time.monotonic() < rest:
        pass
    time.sleep(generator.expovariate(1 / 0.7))
"""
_START = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]]).pid)"


@contextmanager
def _load(seconds: float) -> Iterator[None]:
    """Another process that computes in bursts of random length, as a busy machine's others do.

    It is a child of a process that has ended, so that the watch takes it for what it plays: somebody else's.
    """
    command = [sys.executable, "-c", _START, _BURN.format(seconds=seconds)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stream = started.stdout
    number = int(stream.readline()) if stream else 0
    started.wait()
    try:
        yield
    finally:
        psutil.Process(number).terminate()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def main(arguments: list[str]) -> int:
    """Measure trials, or print their table."""
    survive()
    parser = argparse.ArgumentParser(prog="python -m optsd.judge.trials", description="Is the gate to be trusted?")
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="add runs to FILE")
    measuring.add_argument("file", type=Path)
    measuring.add_argument("--runs", type=int, default=41, help="how many in all (default: %(default)s)")
    measuring.add_argument("--rounds", type=int, default=12, help="of each run (default: %(default)s)")
    measuring.add_argument("--busy", action="store_true", help="let another process compute in random bursts")
    measuring.add_argument("--limit", type=float, default=3600.0, help="seconds; begin no run that would take longer")
    printing = commands.add_parser("table", help="print the table of FILE")
    printing.add_argument("file", type=Path)
    asking = commands.add_parser("against", help="add trials of the rule of --against to FILE")
    asking.add_argument("file", type=Path)
    asking.add_argument("--trials", type=int, default=40, help="of each case, in all (default: %(default)s)")
    asking.add_argument("--busy", action="store_true", help="let another process compute in random bursts")
    asking.add_argument("--budget", type=float, default=300.0, help="seconds of one trial (default: %(default)g)")
    asking.add_argument("--limit", type=float, default=3600.0, help="seconds; begin none that would take longer")
    printing = commands.add_parser("against-table", help="print the table of such a FILE")
    printing.add_argument("file", type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.command == "measure":
        measure(chosen.file, chosen.runs, chosen.rounds, chosen.busy, chosen.limit)
    elif chosen.command == "against":
        against(chosen.file, chosen.trials, chosen.busy, chosen.budget, chosen.limit)
    elif chosen.command == "against-table":
        print(against_table(read_against(chosen.file)))
    else:
        print(table(read(chosen.file)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

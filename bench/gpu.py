"""Everything that a machine with a GPU can tell of this project, in stages that keep their results: `make gpu`.

A stage is a command of this project. It writes its log beside its result; one that has passed is not run again for the
same commit, so a run that was cut off goes on where it was (`make gpu ARGS="--again layers"`: that one anew). A stage
that fails costs the others nothing. Ends with one page: which of the guide's speed and memory claims hold here.

`GPU=interpret make gpu` is the rehearsal, on any CPU: the same commands with tiny shapes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optsd.errors import OptsdError
from optsd.files import write_atomically
from optsd.judge.claims import judge_claims
from optsd.judge.expectations import machine_name
from optsd.judge.reading import read_all_claims
from optsd.judge.recording import baseline_file, update
from optsd.metrics import metric
from optsd.records import Results, Verdict, dumps
from optsd.report.tables import figure
from optsd.variants import GUIDE_VARIANTS

ROOT = Path(__file__).parents[1]
COMBINATIONS = (
    *("graph", "flash+graph", "int8+flash+graph", "int4+flash+graph"),
    *("deepcache:3", "deepcache:3+flash+graph"),
)
PEERS = ("sdpa", "compile", "flash+compile", "int8-torchao", "int8-torchao+compile", "int8-bnb", "int4-bnb")
PROFILED = ("baseline", "flash", "int8", "int8+flash", "int4+flash", "int8+flash+graph")
KERNEL_TESTS = ("tests/quantization/test_triton.py", "tests/quantization/test_between.py")
MOST_S = 1800  # of a stage that hangs


@dataclass(frozen=True)
class Stage:
    """A command of this project, and what its result is good for."""

    name: str
    what: str
    command: tuple[str, ...]


def stages(folder: Path, rehearsal: bool) -> tuple[Stage, ...]:
    """All of them, in the order in which a failure costs least."""
    python = sys.executable
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    model = ("--model", "shapes", "--device", "cpu") if rehearsal else ("--model", "sd15-random", "--device", "cuda")
    # The guide's workload; a speed is a ratio of rounds in turn, of which three say enough for a first look.
    work = (
        ("--preset", "smoke", "--size", "64", "--rounds", "2") if rehearsal else ("--preset", "guide", "--rounds", "3")
    )
    few = ("-k", "(640-640 and int8) or quantizing") if rehearsal else ()
    call = ("--size", "64") if rehearsal else ("--size", "512")
    variants = (*GUIDE_VARIANTS, *COMBINATIONS)
    peers, profiled = PEERS, PROFILED
    if rehearsal:
        variants, peers, profiled = ("int8", "flash", "graph"), PEERS[:1], PROFILED[:2]

    def bench(name: str, variants: Sequence[str]) -> tuple[str, ...]:
        output = ("--output", str(folder / name), f"--benchmark-json={folder / f'{name}.json'}")
        asked = ("-m", "speed or memory or size", "--variant", ",".join(variants))
        return (*pytest, "bench", *asked, *model, *work, *output)

    def parts(name: str, file: str, *more: str) -> tuple[str, ...]:
        return (
            *pytest,
            f"bench/{file}.py",
            "-m",
            file[5:],
            *model,
            *more,
            f"--benchmark-json={folder / f'{name}.json'}",
        )

    joules = ("-m", "energy", "--variant", "flash,int8+flash", "--output", str(folder / "energy"))
    energy = (*pytest, "bench", *joules, *model, *work)
    gpu_tests = (*pytest, "tests", "-m", "gpu", f"--junitxml={folder / 'tests.xml'}")
    return (
        Stage("doctor", "what the machine can run", (python, "-m", "optsd.cli", "doctor")),
        Stage("kernels", "Triton's kernels against exact integers", (*pytest, *KERNEL_TESTS, "-m", "gpu or not gpu")),
        Stage("tests", "kernels, graphs, memory and judges on the GPU", gpu_tests),
        Stage("layers", "SD v1.5's layers one by one, in each kernel", parts("layers", "test_layers", *few)),
        Stage("guide", "the guide's variants, and graph", bench("guide", variants)),
        Stage("energy", "joules a picture", energy),
        Stage("peers", "the field's own, beside ours", bench("peers", peers)),
        Stage(
            "profile",
            "where the time of one step goes",
            parts("profile", "test_unet", *call, "--variant", ",".join(profiled), "-k", "ours"),
        ),
    )


def run(stage: Stage, folder: Path, commit: str, again: bool) -> dict[str, Any]:
    """Run it, unless it has passed at this commit: its status, seconds and log. The log is written while it runs."""
    record = folder / "stages" / f"{stage.name}.json"
    if record.exists() and not again:
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept["status"] == 0 and kept["commit"] == commit:
            return kept
    record.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    log = record.with_suffix(".txt")
    with log.open("w", encoding="utf-8") as stream:
        try:
            status = subprocess.run(
                stage.command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=MOST_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    found = {
        "stage": stage.name,
        "what": stage.what,
        "commit": commit,
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "last": last(lines),
    }
    write_atomically(record, dumps(found))
    return found


def last(lines: Sequence[str]) -> str:
    """What pytest sums up, wherever others' words at the exit follow it; else the last line."""
    summed = filter(re.compile(r"\d+ (?:passed|failed|skipped|errors?)\b.* in [\d.]+s").search, reversed(lines))
    return next(summed, lines[-1] if lines else "").strip("= ")


def page(machine: dict[str, Any], done: Sequence[dict[str, Any]], results: Results | None, device: str) -> str:
    """One page in Markdown: what ran, which claims hold, what each variant did."""
    of = (machine.get("gpus") or [{}])[0] if device == "cuda" else machine.get("cpu") or {}
    versions = machine.get("versions") or {}
    known = [f"{name} {versions[name]}" for name in ("torch", "cuda", "triton", "diffusers") if name in versions]
    lines = [f"# {of.get('name') or 'This machine'}", "", ", ".join(known), ""]
    lines += _table(("stage", "", "seconds", "the last that it said"), [_stage_cells(row) for row in done])
    lines += ["", "## The guide's claims of speed and memory", ""]
    if results is None:
        return "\n".join([*lines, "The stage `guide` has no result: nothing can be said.", ""])
    rows = claims(results)
    held = sum(row.status in ("reproduced", "exceeded") for row in rows)
    judged = held + sum(row.status == "missed" for row in rows)
    lines += [f"{held} of {judged} hold here." if judged else "None could be judged here.", ""]
    lines += _table(("variant", "metric", "claimed", "measured", ""), [_claim_cells(row) for row in rows])
    lines += ["", "## What was measured", "", "[All of it](guide/index.html), [as data](guide/results.json).", ""]
    shown = ("latency_s", "speedup", "peak_memory_bytes")
    figures = [[variant, *(_figure(results, variant, name) for name in shown)] for variant in results.variants]
    lines += _table(("variant", *(metric(name).label for name in shown)), figures)
    lines += [f"\n{row.get('variant')}, {row.get('stage')}: {row.get('reason')}" for row in results.failures]
    return "\n".join([*lines, ""])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    written = [f"| {' | '.join(row)} |" for row in cells]
    return [written[0], "| --- " * len(head) + "|", *written[1:]]


def _stage_cells(row: dict[str, Any]) -> list[str]:
    outcome = {0: "passed", 124: "timed out"}.get(row["status"], "FAILED")
    return [f"[{row['stage']}](stages/{row['stage']}.txt)", outcome, f"{row['seconds']:g}", row["last"]]


def _claim_cells(row: Verdict) -> list[str]:
    about = metric(row.metric)
    values = ["–" if value is None else figure(value, about.unit) for value in (row.expected, row.measured)]
    return [row.variant, about.label, *values, f"{row.status}: {row.note}" if row.note else row.status]


def _figure(results: Results, variant: str, name: str) -> str:
    found = results.get(variant, name)
    return "–" if found is None or found.value is None else figure(found.value, found.unit)


def claims(results: Results) -> list[Verdict]:
    """The verdicts on what the guide says of speed and memory."""
    groups = read_all_claims(ROOT / "expected" / "claims" / "guide.json")
    rows = [row for group in groups for row in judge_claims(group, results)]
    return [row for row in rows if metric(row.metric).kind == "performance"]


def describe(device: str) -> dict[str, Any]:
    """The machine, told by a process that is gone when the stages begin: the GPU is theirs alone."""
    code = (
        "import json, sys, torch; from optsd.models import resolve_device; resolve_device(sys.argv[1]);"
        "from optsd.measure.environment import machine; print(json.dumps(machine(sys.argv[1])))"
    )
    told = subprocess.run([sys.executable, "-c", code, device], cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:
        reason = (told.stderr.strip() or "no reason given").splitlines()[-1].rpartition("Error: ")[2]
        raise OptsdError(f"no GPU can be used here ({reason})", "see optsd doctor; to rehearse: GPU=interpret make gpu")
    return json.loads(told.stdout)


def main(arguments: list[str]) -> int:
    """The exit status: 1 where a stage failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="make gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--again", action="append", default=[], metavar="STAGE", help="run it though it has passed")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="this one, and the page")
    given = parser.parse_args(arguments)
    rehearsal = os.environ.get("GPU") == "interpret"
    device = "cpu" if rehearsal else "cuda"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if rehearsal:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        machine = describe(device)
        folder = ROOT / "reports" / ("rehearsal" if rehearsal else machine_name(machine, device))
        known = [stage.name for stage in stages(folder, rehearsal)]
        if unknown := [name for name in (*given.again, *given.only) if name not in known]:
            raise OptsdError(f"there is no stage {unknown[0]!r}", f"choose from {', '.join(known)}")
    except OptsdError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    git = machine.get("git") or {}
    commit = f"{git.get('commit', '')}{'+changes' if git.get('changed_files') else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "machine.json", dumps(machine))
    done = []
    chosen = [stage for stage in stages(folder, rehearsal) if not given.only or stage.name in given.only]
    for number, stage in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)} {stage.name}: {stage.what} … ", end="", flush=True)
        found = run(stage, folder, commit, stage.name in given.again)
        done.append(found)
        print(f"{'passed' if found['status'] == 0 else 'FAILED'} ({found['seconds']:g} s) {found['last']}", flush=True)
    results = None
    if (folder / "guide" / "results.json").exists():
        results = Results.read(folder / "guide" / "results.json")
        if results.complete and not rehearsal:
            file = baseline_file(ROOT / "expected" / "baselines", results)
            update(file, results)
            print(f"recorded in {file.relative_to(ROOT)}")
    write_atomically(folder / "README.md", page(machine, done, results, device))
    print(f"{folder.relative_to(ROOT) / 'README.md'}: which of the guide's claims hold here")
    return int(any(row["status"] for row in done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

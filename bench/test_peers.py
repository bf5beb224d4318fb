"""Whole pictures: our variants, the field's and OpenVINO, each in turn with OpenVINO's INT8, in one session.

    pytest bench/test_peers.py -m peers --model sd15-random --size 512 --steps 20
    pytest bench/test_peers.py -m peers --model sd15-random --size 256 --steps 20 --variant int8+flash -k ours

A round is a picture of OpenVINO's INT8 pipeline, then one of the other, of the same prompt and noise, which are new in
each round; `speedup` is their ratio with its interval. Without OpenVINO and nncf (the `peers` extra), and on a GPU, the
first is the eager baseline. Every subject lives in a process of its own (`bench/apart.py`) and draws a picture to warm
up. `stages` has the median seconds of each part of a picture. Its clocks run in the pictures that are timed: on a CPU
they cost nothing, on a GPU each call of a network then waits for the one before. A round is a batch where --batch-size
says so; seconds remain those of one picture. Numbers are of the type of --dtype, or of the one that a test names;
OpenVINO is given float32 and computes in bfloat16 where the CPU has it, as its `proof` says.
"""

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pytest

from bench.apart import Clock, apart, ask, in_turn
from conftest_plugins.options import SUBJECTS, VARIANTS
from optsd.records import Workload

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("machine_to_itself")]

OURS = ("int8+flash", "int8:all+flash", "int8+sage")
PLAIN = ("baseline", "sdpa", "Compiled")
THEIRS = (*((name, "") for name in (*PLAIN, "CompiledInt8")), *((name, "bfloat16") for name in PLAIN))
"""Variants and engines, and the type of their numbers where it is not the run's."""
STAGES = {"text_encoder_s": "text", "unet_step_s": "denoiser", "vae_decode_s": "decoder"}
Picture = dict[str, float]
"""Seconds of one picture by stage, the rest of it among them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ours" in metafunc.fixturenames:
        config = metafunc.config
        _, *chosen = config.stash[VARIANTS]  # the first is the baseline, which is one of the peers
        asked = [name for name in chosen if name not in config.stash[SUBJECTS]]
        metafunc.parametrize("ours", asked if config.getoption("--variant") else OURS)


@pytest.fixture(scope="module")
def work(placed: Workload, pytestconfig: pytest.Config) -> Workload:
    """One picture, whatever the preset's batch is."""
    return replace(placed, batch_size=pytestconfig.getoption("--batch-size") or 1)


@pytest.fixture(scope="module")
def reference(work: Workload, device: str) -> Iterator[tuple[str, Executor]]:
    """What all others are timed beside, and its name. Made once: OpenVINO converts and calibrates for minutes."""
    if work.device == "cpu" and all(importlib.util.find_spec(name) for name in ("openvino", "nncf")):
        with apart(engine, work, device, "OpenVINOInt8") as process:
            yield "OpenVINO's INT8", process
    else:
        with apart(variant, work, device, "baseline") as process:
            yield "the eager baseline", process


def test_openvino(reference: tuple[str, Executor], work: Workload, device: str, enough_rounds: int, benchmark) -> None:
    """Seconds of a picture by OpenVINO, without INT8."""
    with apart(engine, work, device, "OpenVINO") as process:
        compare(process, reference, benchmark, enough_rounds)


@pytest.mark.parametrize(("theirs", "dtype"), THEIRS, ids=["-".join(filter(None, each)) for each in THEIRS])
def test_theirs(
    theirs: str,
    dtype: str,
    reference: tuple[str, Executor],
    work: Workload,
    device: str,
    enough_rounds: int,
    benchmark,
) -> None:
    """Seconds of a picture as others draw it with torch."""
    if dtype == work.dtype:
        pytest.skip(f"{dtype} is this run's type, of which there is a test already")
    make = engine if theirs.startswith("Compiled") else variant
    with apart(make, replace(work, dtype=dtype or work.dtype), device, theirs) as process:
        compare(process, reference, benchmark, enough_rounds)


def test_ours(
    ours: str, reference: tuple[str, Executor], work: Workload, device: str, enough_rounds: int, benchmark
) -> None:
    """Seconds of a picture of a variant."""
    with apart(variant, work, device, ours) as process:
        compare(process, reference, benchmark, enough_rounds)


def compare(process: Executor, reference: tuple[str, Executor], benchmark, rounds: int) -> None:
    """Time both in turn, by stage; the figures go to the benchmark's `extra_info`."""
    name, other = reference
    seen: dict[Executor, list[Picture]] = {other: [], process: []}

    def clock(drawing: Executor) -> Clock:
        def seconds(number: int) -> float:
            seen[drawing].append(ask(drawing, draw, number))
            return sum(seen[drawing][-1].values())

        return seconds

    told = in_turn(benchmark, rounds, clock(other), clock(process), unit="s a picture", beside=name)
    stages, reference_stages = medians(seen[process]), medians(seen[other])
    benchmark.extra_info.update(stages=stages, reference=name, reference_stages=reference_stages)
    benchmark.extra_info.update(ask(process, evidence))
    print(f"{told}; " + ", ".join(f"{stage} {took:.3g}" for stage, took in stages.items()))


def medians(pictures: list[Picture]) -> Picture:
    return {stage: median(each[stage] for each in pictures) for stage in pictures[0]}


# What follows runs in the processes of the subjects.


@dataclass(frozen=True)
class Subject:
    """A pipeline that draws, and what it says of how it does so."""

    name: str
    pipe: Any
    workload: Workload
    proof: Callable[[], dict[str, Any]]


def engine(workload: Workload, device: str, name: str) -> Subject:
    """A pipeline of `optsd.measure.engines` that has drawn once."""
    from optsd.measure import engines

    is_openvino = name.startswith("OpenVINO")
    work = replace(workload, dtype="float32" if is_openvino else workload.dtype)  # what its graphs are made of
    made = getattr(engines, name)(work)
    return warm(Subject(name, made.pipe, work, made.proof))


def variant(workload: Workload, device: str, name: str) -> Subject:
    """A variant's pipeline that has drawn once."""
    from optsd import models
    from optsd.measure.seeds import fix_seeds

    fix_seeds()
    pipe, patch = models.build(workload.model, name, device, workload.dtype)
    return warm(Subject(name, pipe, workload, lambda: patch.proof))


def warm(subject: Subject) -> Subject:
    draw(subject, 0)
    return subject


def draw(subject: Subject, number: int) -> Picture:
    """Draw the timing prompts' batch of that number. Raises OptsdError where it is no picture, NaN for example."""
    from optsd.measure.pictures import check_pictures
    from optsd.measure.run import batch_of, run_batch, timing_prompts
    from optsd.measure.time import seconds, stage_times

    work, pictures = subject.workload, None
    size = work.batch_size
    prompts, first = batch_of(timing_prompts(work.model, size * (number + 1)), size, number)

    def run() -> None:
        nonlocal pictures
        pictures = run_batch(subject.pipe, work, prompts, first, output_type="np")

    with stage_times(subject.pipe) as stages:
        whole = seconds(run, subject.pipe.device) / size
    check_pictures(pictures, subject.name)
    parts = {STAGES[stage]: sum(readings) / size for stage, readings in stages.items()}
    return {**parts, "rest": whole - sum(parts.values())}


def evidence(subject: Subject) -> dict[str, Any]:
    return {"dtype": subject.workload.dtype, "proof": subject.proof()}

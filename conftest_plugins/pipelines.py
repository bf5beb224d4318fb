"""The pipelines that the benches share: the baseline's for the whole session, a variant's while it is benched."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from optsd.errors import OptsdError, Unsupported
from optsd.judge.statistics import FEWEST_ROUNDS
from optsd.measure.pictures import check_pictures
from optsd.records import Technique, Workload
from optsd.subjects import Folder

from .options import DEVICE, MODEL, OUTPUT, SUBJECTS, WATCH, WORKLOAD, chosen_preset, estimated_device
from .progress import Say

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import StableDiffusionPipeline

    from optsd.measure.guest import Drawn, Guest
    from optsd.measure.memory import PeakMemory
    from optsd.patching import Patch
    from optsd.quality.witness import Witness

FOLDER_TELLS = "{} is a folder of pictures: it has no speed, memory or size"
SIZES = ("weight_bytes", "unet_weight_bytes", "disk_bytes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """A model that is nowhere to be had is said in one line, before each bench in turn waits for it."""
    config = session.config
    runs = any("workload" in getattr(item, "fixturenames", ()) for item in session.items)
    if not runs or config.option.collectonly or estimated_device(config):  # an estimate takes no weights
        return
    from optsd import models
    from optsd.data.downloads import check_hub

    try:
        if hub_id := models.check(config.getoption("--model")).hub_id:
            check_hub(hub_id)
    except OptsdError as error:
        raise pytest.UsageError(str(error)) from None


class Bench(Protocol):
    """What is benched: a variant that was built, or somebody's callable in its process."""

    variant: str
    workload: Workload

    def warm_up(self) -> None:
        """Draw once, unmeasured. Raises OptsdError where what it draws is no picture."""

    def draw(self) -> None:
        """Draw, unless it is warm. Raises OptsdError where what it draws is no picture."""

    def seconds(self, doing: str, batch: int) -> float:
        """The time of the timing prompts' batch of this number; that of the warm-up is 0. `doing` is shown meanwhile.

        A witness sees its pictures when the clock has stopped.
        """

    def stage_seconds(self) -> dict[str, list[float]]:
        """Of one batch, the readings of each stage that can be told apart, by the metric's name."""

    def sizes(self) -> dict[str, int | None]:
        """Bytes by the names in `SIZES`; None where it does not tell."""

    def evidence(self) -> Technique:
        """What was changed, and what ran."""


@dataclass
class Built:
    """A variant on a pipeline of its own."""

    variant: str
    pipe: "StableDiffusionPipeline"
    patch: "Patch"
    workload: Workload
    prompts: list[str]
    say: Say
    witness: "Witness"
    look: Callable[[], None] = lambda: None  # called while it draws
    warm: bool = False

    def run(self, doing: str = "", output_type: str = "pil", batch: int = 0) -> Any:
        """The pictures of one batch of the timing prompts. `doing` is shown while it runs."""
        from optsd.measure.run import batch_of, run_batch

        def on_step(step: int) -> None:
            self.say(f"{self.variant}: {doing}, step {step} of {self.workload.steps}")
            self.look()

        prompts, first = batch_of(self.prompts, self.workload.batch_size, batch)
        return run_batch(self.pipe, self.workload, prompts, first, on_step, output_type)

    def seconds(self, doing: str, batch: int) -> float:
        from optsd.measure.run import batch_of
        from optsd.measure.time import seconds

        pictures: list[Any] = []
        took = seconds(lambda: pictures.extend(self.run(doing, batch=batch)), self.pipe.device)
        self.witness.saw_timed(self.variant, *batch_of(self.prompts, self.workload.batch_size, batch), pictures)
        return took

    def stage_seconds(self) -> dict[str, list[float]]:
        from optsd.measure.time import stage_times

        with stage_times(self.pipe) as stages:
            self.run("timing the stages")
        return stages

    def sizes(self) -> dict[str, int | None]:
        from optsd.anatomy import denoiser
        from optsd.measure.size import disk_bytes, module_bytes, weight_bytes

        return dict(
            zip(SIZES, (weight_bytes(self.pipe), module_bytes(denoiser(self.pipe)), disk_bytes(self.pipe)), strict=True)
        )

    def evidence(self) -> Technique:
        """Raises OptsdError where nothing was changed."""
        from optsd.variants import parse

        if not self.patch.touched:
            raise OptsdError(f"{self.variant} touched nothing", "leave it out: what changes nothing measures nothing")
        return Technique(self.variant, parse(self.variant).exact, self.patch.touched, self.proof())

    def proof(self) -> dict[str, Any]:
        """The technique's own counters so far, and the kernels that a profile of one step shows."""
        from optsd.anatomy import denoiser
        from optsd.measure.run import batch_of, run_batch
        from optsd.optimizations.kernels import kernels_seen

        counted = self.patch.proof  # first: the profiled step counts too
        one_step = replace(self.workload, steps=1)
        prompts, _ = batch_of(self.prompts, self.workload.batch_size, 0)
        seen = kernels_seen(denoiser(self.pipe), lambda: run_batch(self.pipe, one_step, prompts))
        return counted | {"kernels_in_a_profile": seen, "scheduler": type(self.pipe.scheduler).__name__}

    def warm_up(self) -> None:
        """Run once, unmeasured: kernels are chosen, memory is taken, code is compiled.

        Raises OptsdError where what it draws is no picture.
        """
        if not self.warm:
            check_pictures(self.run("warming up", "np"), self.variant)
            self.warm = True

    def draw(self) -> None:
        """Draw one picture in one step, unless the variant is warm. Raises OptsdError where it is no picture."""
        from optsd.measure.run import run_batch

        if not self.warm:
            self.say(f"{self.variant}: drawing")
            one = replace(self.workload, steps=1, batch_size=1)
            check_pictures(run_batch(self.pipe, one, self.prompts[:1], output_type="np"), self.variant)


@dataclass
class Visiting:
    """Somebody's callable, in a process of its own."""

    variant: str
    guest: "Guest"
    workload: Workload
    prompts: list[str]
    say: Say
    witness: "Witness"
    warm: bool = field(default=False)

    def run(self, doing: str, batch: int = 0) -> "Drawn":
        from optsd.measure.run import batch_of
        from optsd.measure.seeds import noise_seeds

        self.say(f"{self.variant}: {doing}")
        prompts, first = batch_of(self.prompts, self.workload.batch_size, batch)
        drawn = self.guest.draw(prompts, noise_seeds(self.workload.seed, first, len(prompts)))
        self.witness.saw_timed(self.variant, prompts, first, drawn.pictures)
        return drawn

    def seconds(self, doing: str, batch: int) -> float:
        return self.run(doing, batch).seconds

    def warm_up(self) -> None:
        if not self.warm:
            check_pictures(self.run("warming up").pictures / 255.0, self.variant)
            self.warm = True

    def draw(self) -> None:
        self.warm_up()

    def stage_seconds(self) -> dict[str, list[float]]:
        return {}

    def sizes(self) -> dict[str, int | None]:
        weights, _ = self.guest.tells()
        return {name: weights if name == "weight_bytes" else None for name in SIZES}

    def evidence(self) -> Technique:
        return Technique(self.variant, None, (), self.guest.tells()[1])


@pytest.fixture(scope="session")
def witness() -> "Witness":
    """Sees what is timed and what is judged."""
    from optsd.quality.witness import Witness

    return Witness()


@pytest.fixture(scope="session")
def timed_prompts(workload: Workload, rounds: int, request: pytest.FixtureRequest) -> list[str]:
    """For the warm-up and each round a batch of its own: the judged prompts, where this run judges."""
    from optsd.measure.run import timing_prompts

    if any(item.get_closest_marker("quality") for item in request.session.items):
        quality = request.getfixturevalue("quality")
        if not isinstance(quality, OptsdError):
            return quality.setting.texts
    return timing_prompts(workload.model, workload.batch_size * (rounds + 1))


@pytest.fixture(scope="session")
def build(
    pytestconfig: pytest.Config, workload: Workload, timed_prompts: list[str], witness: "Witness", progress: Say
) -> Callable[[str], Built]:
    """Build a variant of the chosen model."""
    from optsd import models
    from optsd.measure.seeds import fix_seeds

    stash = pytestconfig.stash

    def make(variant: str) -> Built:
        fix_seeds()
        progress(f"{variant}: loading {workload.model}")
        pipe, patch = models.build(stash[MODEL], variant, stash[DEVICE], workload.dtype)
        look = partial(stash[WATCH].look, stash[DEVICE])
        return Built(variant, pipe, patch, workload, timed_prompts, progress, witness, look)

    return make


@pytest.fixture(scope="session")
def baseline(build: Callable[[str], Built]) -> Built:
    """What every variant is compared with, in this session: eager attention, no other technique."""
    return build("baseline")


@pytest.fixture(scope="session")
def invite(pytestconfig: pytest.Config, placed: Workload, progress: Say) -> Callable[[str], "Guest"]:
    """Start a subject's process. One that hung or died is not started again: it would cost the run as long once more.

    Skips for a folder of pictures, which has no process.
    """
    from optsd.measure.guest import Guest

    broken: dict[str, OptsdError] = {}

    def start(name: str) -> "Guest":
        subject = pytestconfig.stash[SUBJECTS][name]
        if isinstance(subject, Folder):
            pytest.skip(FOLDER_TELLS.format(name))
        if name in broken:
            raise broken[name]
        progress(f"{name}: loading")
        try:
            timeout = pytestconfig.getoption("--subject-timeout")
            return Guest(subject, placed, timeout, broken, pytestconfig.stash[DEVICE])
        except OptsdError as error:
            broken[name] = error
            raise

    return start


@pytest.fixture(scope="session")
def built(
    variant: str, baseline: Built, build: Callable[[str], Built], pytestconfig: pytest.Config, request
) -> Iterator[Bench]:
    """What is under test, gone before the next one comes. Skips, with the reason, where it cannot run."""
    if variant == "baseline":
        yield baseline
        return
    if variant in pytestconfig.stash[SUBJECTS]:
        visitor = request.getfixturevalue("invite")(variant)
        yield Visiting(variant, visitor, baseline.workload, baseline.prompts, baseline.say, baseline.witness)
        visitor.close()
        return
    try:
        made = build(variant)
    except Unsupported as error:
        pytest.skip(str(error))
    yield made
    vars(made).update(pipe=None, patch=None)  # pytest still holds `made` itself
    free_memory()


@pytest.fixture
def peak(
    pytestconfig: pytest.Config, workload: Workload, invite: Callable[[str], "Guest"]
) -> Callable[[str], "PeakMemory"]:
    """Run one batch of a variant or subject in a fresh process, and read its peak memory. Raises Unsupported."""
    from optsd.measure import memory
    from optsd.measure.run import timing_prompts
    from optsd.measure.seeds import noise_seeds

    stash = pytestconfig.stash

    def of(variant: str) -> "PeakMemory":
        if variant not in stash[SUBJECTS]:
            return memory.peak_memory(stash[MODEL], variant, stash[DEVICE], workload.dtype, workload)
        visitor = invite(variant)
        try:
            count = workload.batch_size
            visitor.draw(timing_prompts(workload.model, count), noise_seeds(workload.seed, 0, count))
            found = visitor.peak()
        finally:
            visitor.close()
        if found is None:
            raise Unsupported(f"{variant} uses a GPU without torch, which counts memory here", "see its own tools")
        return found

    return of


@pytest.fixture
def machine_to_itself(pytestconfig: pytest.Config) -> None:
    """Skip what is meaningless while other workers load the machine, or while every line of Python is followed."""
    if hasattr(pytestconfig, "workerinput"):
        pytest.skip("time and memory need the machine to themselves: run this without -n")
    if pytestconfig.pluginmanager.hasplugin("_cov"):
        pytest.skip("time and memory are not measured while coverage is: run this without --cov")


@pytest.fixture(scope="session")
def output(pytestconfig: pytest.Config) -> "Path":
    """This run's folder."""
    return pytestconfig.stash[OUTPUT]


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config) -> int:
    return chosen_preset(pytestconfig).rounds


@pytest.fixture(scope="session")
def enough_rounds(rounds: int) -> int:
    """At least so many that an interval of them promises something."""
    return max(rounds, FEWEST_ROUNDS)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """As torch calls it, with the number of the GPU."""
    return pytestconfig.stash[DEVICE]


@pytest.fixture(scope="session")
def workload(pytestconfig: pytest.Config) -> Workload:
    return pytestconfig.stash[WORKLOAD]


@pytest.fixture(scope="session")
def placed(pytestconfig: pytest.Config, workload: Workload) -> Workload:
    """For other processes, which load the model: with its place instead of the name that records have."""
    return replace(workload, model=pytestconfig.stash[MODEL])


def free_memory() -> None:
    """Give back what pipelines held that nothing refers to any more; a patch and its pipeline refer to each other."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""The pipelines that the benches share: the baseline's for the whole session, a variant's while it is benched."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from conftest_plugins.options import DEVICE, MODEL, WORKLOAD, chosen_preset
from conftest_plugins.progress import Say
from optsd.errors import Unsupported
from optsd.measure.pictures import check_pictures
from optsd.records import Workload

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from optsd.patching import Patch


@dataclass
class Built:
    """A variant on a pipeline of its own."""

    variant: str
    pipe: "StableDiffusionPipeline"
    patch: "Patch"
    workload: Workload
    prompts: list[str]
    say: Say
    warm: bool = False

    def run(self, doing: str = "", output_type: str = "pil") -> Any:
        """The pictures of one batch of the timing prompts. `doing` is shown while it runs."""
        from optsd.measure.run import run_batch

        def on_step(step: int) -> None:
            self.say(f"{self.variant}: {doing}, step {step} of {self.workload.steps}")

        return run_batch(self.pipe, self.workload, self.prompts, on_step=on_step, output_type=output_type)

    def proof(self) -> dict[str, Any]:
        """The technique's own counters so far, and the kernels that a profile of one step shows."""
        from optsd.anatomy import denoiser
        from optsd.measure.run import run_batch
        from optsd.optimizations.kernels import kernels_seen

        counted = self.patch.proof  # first: the profiled step counts too
        one_step = replace(self.workload, steps=1)
        seen = kernels_seen(denoiser(self.pipe), lambda: run_batch(self.pipe, one_step, self.prompts))
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


@pytest.fixture(scope="session")
def build(pytestconfig: pytest.Config, workload: Workload, progress: Say) -> Callable[[str], Built]:
    """Build a variant of the chosen model."""
    from optsd import models
    from optsd.measure.run import timing_prompts
    from optsd.measure.seeds import fix_seeds

    stash = pytestconfig.stash

    def make(variant: str) -> Built:
        fix_seeds()
        progress(f"{variant}: loading {workload.model}")
        pipe, patch = models.build(stash[MODEL], variant, stash[DEVICE], workload.dtype)
        return Built(variant, pipe, patch, workload, timing_prompts(workload.model, workload.batch_size), progress)

    return make


@pytest.fixture(scope="session")
def baseline(build: Callable[[str], Built]) -> Built:
    """What every variant is compared with, in this session: eager attention, no other technique."""
    return build("baseline")


@pytest.fixture(scope="session")
def built(variant: str, baseline: Built, build: Callable[[str], Built]) -> Iterator[Built]:
    """The variant under test; freed before the next one is built. Skips, with the reason, where it cannot run."""
    if variant == "baseline":
        yield baseline
        return
    try:
        made = build(variant)
    except Unsupported as error:
        pytest.skip(str(error))
    yield made
    vars(made).update(pipe=None, patch=None)  # pytest still holds `made` itself
    free_memory()


@pytest.fixture
def machine_to_itself(pytestconfig: pytest.Config) -> None:
    """Skip what is meaningless while other workers load the machine."""
    if hasattr(pytestconfig, "workerinput"):
        pytest.skip("time and memory need the machine to themselves: run this without -n")


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config) -> int:
    return chosen_preset(pytestconfig).rounds


@pytest.fixture(scope="session")
def workload(pytestconfig: pytest.Config) -> Workload:
    return pytestconfig.stash[WORKLOAD]


def free_memory() -> None:
    """Give back what pipelines held that nothing refers to any more; a patch and its pipeline refer to each other."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Quality for one model and workload: prompts, reference and networks that fit it, and one call a variant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from optsd.data import downloads, prompts, reference_files, sets
from optsd.data.prompts import Prompt
from optsd.errors import BadInput
from optsd.models import shapes
from optsd.models.published import RANDOM
from optsd.quality import objects, reference
from optsd.quality.features import Networks, NoNetworks, StandardNetworks, shapes_networks
from optsd.quality.generate import generate
from optsd.quality.measure import Judge
from optsd.quality.pictures import Pictures
from optsd.quality.reference import Reference
from optsd.quality.store import Store
from optsd.records import Measurement, Workload

FEWEST_IMAGES = 2


@dataclass(frozen=True)
class Setting:
    """What a model is judged by: prompts, real pictures (or why there are none), and networks."""

    prompts: tuple[Prompt, ...]
    reference: Reference | BadInput
    networks: Networks
    counts_objects: bool

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.prompts]


def setting(
    workload: Workload,
    count: int,
    coco: Path | None = None,
    weights: Path | None = None,
    store: Store | None = None,
    chosen_set: str = "standard",
    own_prompts: Sequence[Prompt] = (),
    own_reference: Path | None = None,
    device: str = "cpu",
) -> Setting:
    """The first `count` prompts of a set (`optsd.data.sets`) and what belongs to them.

    The shipped models have their own; any other model gets a set's, from the folder `coco` (as COCO's archives unpack),
    and the standard networks, from `weights` or the caches. `own_prompts` and a folder of pictures take the place of
    what a set has. The networks judge on `device`. Raises NotFound or BadInput where there are no prompts.
    """
    if own_prompts or own_reference:
        return _of_ones_own(workload, count, coco, weights, store, chosen_set, own_prompts, own_reference, device)
    own = sets.find(chosen_set)
    if not FEWEST_IMAGES <= count <= own.count:
        raise BadInput(f"{count} images for the quality metrics", f"give {FEWEST_IMAGES} to {own.count:,}")
    if workload.model in shapes.PIPELINES:
        made, pictures = prompts.shapes()
        return Setting(made[:count], Reference(pictures), shapes_networks(device), counts_objects=True)
    folder = coco or downloads.coco_folder()
    chosen = tuple(own.prompts(folder))
    if workload.model in RANDOM:
        return Setting(chosen[:count], _RANDOM, NoNetworks(_RANDOM), counts_objects=False)
    real: Reference | BadInput
    try:
        if not own.photographs:
            raise BadInput(f"the prompts of {own.name} have no photographs", "take --prompts coco2017 for fid and kid")
        # All of the set's photographs, however few images are drawn: a larger reference makes a steadier FID.
        names = [prompt.file_name for prompt in chosen]
        real = reference.read(folder / own.photographs, names, workload.width, workload.height, store)
    except BadInput as error:
        real = error
    return Setting(chosen[:count], real, StandardNetworks(weights, device), counts_objects=False)


def _of_ones_own(
    workload: Workload,
    count: int,
    coco: Path | None,
    weights: Path | None,
    store: Store | None,
    chosen_set: str,
    own_prompts: Sequence[Prompt],
    own_reference: Path | None,
    device: str,
) -> Setting:
    """Prompts of a file are not what a set's photographs were described by: without a folder there is no reference."""
    if own_prompts:
        if not FEWEST_IMAGES <= count <= len(own_prompts):
            raise BadInput(f"{count} images of one's own prompts", f"give {FEWEST_IMAGES} to {len(own_prompts):,}")
        chosen = tuple(own_prompts[:count])
        networks: Networks = StandardNetworks(weights, device)
        if workload.model in shapes.PIPELINES:
            networks = shapes_networks(device)
        elif workload.model in RANDOM:
            networks = NoNetworks(_RANDOM)
        base = Setting(
            chosen, _NO_REFERENCE, networks, counts_objects=workload.model in shapes.PIPELINES and _in_grammar(chosen)
        )
    else:
        base = setting(workload, count, coco, weights, store, chosen_set, device=device)
    if own_reference is None or workload.model in RANDOM:
        return base
    try:
        files = reference_files.names(own_reference)
        return replace(base, reference=reference.read(own_reference, files, workload.width, workload.height, store))
    except BadInput as error:
        return replace(base, reference=error)


def _in_grammar(chosen: Sequence[Prompt]) -> bool:
    """Whether the shipped model's judge can tell which objects each prompt asks for."""
    try:
        return all(objects.parse(prompt.text) for prompt in chosen)
    except BadInput:
        return False


_RANDOM = BadInput("random weights: quality means nothing", "measure it with a model that has its own")
_NO_REFERENCE = BadInput("prompts of one's own have no photographs", "give a folder of pictures with --reference")


@dataclass(frozen=True)
class Session:
    """The images and figures of all variants of one model. `weights` is the model's `generate.fingerprint`."""

    workload: Workload
    setting: Setting
    weights: str
    store: Store
    build_baseline: Callable[[], Any]
    seeds: int = 1
    say: Callable[[str], None] = lambda text: None
    device: str = ""  # where `build` puts it, with the number of the GPU

    def images(self, variant: str, build: Callable[[], Any]) -> Pictures:
        """Seeds × prompts pictures. `build` gives the patched pipeline; it is called if images are missing."""
        return self.drawn(variant, build, self.weights)

    def drawn(self, variant: str, build: Callable[[], Any], weights: str) -> Pictures:
        """The same of a model with these weights."""
        return generate(
            variant, self.workload, self.setting.texts, weights, self.store, build, self.seeds, self.say, self.device
        )

    def measure(self, variant: str, build: Callable[[], Any]) -> list[Measurement]:
        """Every quality metric of a variant, the baseline included."""
        images = self.judge.baseline if variant == "baseline" else self.images(variant, build)
        return self.judge.measure(variant, images)

    @cached_property
    def judge(self) -> Judge:
        baseline = self.images("baseline", self.build_baseline)
        own = self.setting
        return Judge(baseline, own.texts, own.reference, own.networks, own.counts_objects, self.store, self.say)

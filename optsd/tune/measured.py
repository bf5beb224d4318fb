"""The readings of a search: rounds beside the baseline, pictures and their scores, peaks. Each is kept in a journal."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from optsd import models
from optsd.errors import BadInput, OptsdError
from optsd.judge.kept import score
from optsd.measure import memory
from optsd.measure.pictures import check_pictures
from optsd.measure.run import run_batch, timing_prompts
from optsd.measure.seeds import fix_seeds
from optsd.measure.time import seconds
from optsd.measure.turns import in_turn
from optsd.quality.generate import generate
from optsd.quality.objects import count_objects
from optsd.quality.pictures import Pictures
from optsd.quality.readings import Readings
from optsd.quality.session import Setting
from optsd.quality.store import Store
from optsd.records import Technique, Workload
from optsd.tune.candidates import split
from optsd.tune.journal import Journal
from optsd.tune.search import BASELINE, Failed, Scores, TimeUp, block_of
from optsd.variants import against_eager

MOST_OBJECTS = 2  # that a prompt of the shipped model asks for


@dataclass
class Measured:
    """A `Bench` that runs the model. The baseline stays in memory, and one candidate beside it.

    `deadline` is of `time.monotonic`; `weights` the model's `optsd.quality.generate.fingerprint`.
    """

    model: str
    device: str
    workload: Workload
    metrics: tuple[str, ...]
    setting: Setting
    weights: str
    store: Store
    journal: Journal
    deadline: float
    say: Callable[[str], None] = lambda text: None
    _built: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False)
    _took: dict[tuple[str, str], float] = field(default_factory=dict, init=False)

    def trial(self, name: str) -> float:
        return self._reading("trial", name, 0, lambda: self._try(name))

    def ratio(self, name: str, number: int) -> float:
        return self._reading("ratio", name, number, lambda: self._round(name))

    def scores(self, name: str, number: int) -> dict[str, Scores]:
        return self._reading("scores", name, number, lambda: self._look(name, number))

    def peak(self, name: str) -> int:
        def make() -> int:
            variant, work = split(name)[0], self.work(name)
            return memory.peak_memory(self.model, variant, self.device, work.dtype, work).peak

        return self._reading("peak", name, 0, make)

    def evidence(self, name: str) -> Technique:
        """What the variant changes, and what its counters say of one batch."""
        (variant, steps), (pipe, patch) = split(name), self._pipe(name)
        run_batch(pipe, self.work(name), self._prompts)
        return Technique(name, against_eager(variant).exact and steps is None, patch.touched, patch.proof)

    def work(self, name: str) -> Workload:
        """What a candidate is asked to do: the baseline's workload, where its name says so in fewer steps."""
        return replace(self.workload, steps=split(name)[1] or self.workload.steps)

    def images(self, name: str, count: int) -> Pictures:
        """The first `count` pictures: whole blocks, from the store but for those that are missing."""
        variant, texts = split(name)[0], self.setting.texts[:count]
        return generate(variant, self.work(name), texts, self.weights, self.store, lambda: self._pipe(name)[0])

    def _reading(self, kind: str, name: str, number: int, make: Callable[[], Any]) -> Any:
        """From the journal, or measured if there is time for it. Raises TimeUp, Failed."""
        if (why := self.journal.get(["failed", name])) is not None:
            raise Failed(why)

        def measured() -> Any:
            began = time.monotonic()
            alike = [took for (what, _), took in self._took.items() if what == kind]
            if began + self._took.get((kind, name), min(alike, default=0.0)) > self.deadline:
                raise TimeUp
            made = make()
            self._took[kind, name] = time.monotonic() - began
            return made

        try:
            return self.journal.reading([kind, name, number], measured)
        except TimeUp:
            raise
        except Exception as error:  # out of memory, unsupported, a library's own: each is a result
            if name == BASELINE or isinstance(error, BadInput):
                raise
            self._built.pop(split(name)[0], None)
            if isinstance(error, OptsdError):
                self.journal.put(["failed", name], error.problem)
                raise Failed(error.problem) from error
            # Such as memory that others had taken: the next call tries again.
            raise Failed(f"{type(error).__name__}: {error}".strip().split("\n")[0][:200]) from error

    def _try(self, name: str) -> float:
        """The lesser of two readings each: a burst of others' work must not end what is as fast as the baseline."""
        theirs, ours = (min(self._seconds(each, steps=1) for _ in range(2)) for each in (BASELINE, name))
        return ours / theirs

    def _round(self, name: str) -> float:
        self._pipe(name)  # built before the clock starts
        theirs, ours = (partial(self._seconds, each, self.work(each).steps) for each in (BASELINE, name))
        return in_turn(theirs, ours, lambda ratios: True, budget_s=0.0).ratios[0]

    def _seconds(self, name: str, steps: int) -> float:
        pipe, work = self._pipe(name)[0], replace(self.workload, steps=steps)
        return seconds(lambda: run_batch(pipe, work, self._prompts), pipe.device)

    def _look(self, name: str, number: int) -> dict[str, Scores]:
        """The scores of one block, candidate's and baseline's."""
        block = block_of(self.workload.batch_size)
        first, last = number * block, (number + 1) * block
        texts = self.setting.texts[first:last]
        theirs, ours = (self._part(each, first, last) for each in (BASELINE, name))
        found: dict[str, Scores] = {}
        for metric in self.metrics:
            v, b = SCORES[metric](self._readings, ours, theirs, texts)
            found[metric] = [(round(float(x), 6), round(float(y), 6)) for x, y in zip(v, b, strict=True)]
        return found

    def _part(self, name: str, first: int, last: int) -> Pictures:
        whole = self.images(name, last)
        return Pictures(whole.parts[first // self.workload.batch_size :], whole.size)

    def _pipe(self, name: str) -> tuple[Any, Any]:
        """The pipeline with the variant, warm: kernels are chosen, code is compiled, a picture is one."""
        name = split(name)[0]
        if name not in self._built:
            for other in {*self._built} - {BASELINE}:
                del self._built[other]
            _free_memory()
            self.say(f"{name}: loading")
            fix_seeds()
            pipe, patch = models.build(self.model, name, self.device, self.workload.dtype)
            warm = replace(self.workload, steps=1)
            check_pictures(run_batch(pipe, warm, self._prompts, output_type="np"), name)
            self._built[name] = pipe, patch
        return self._built[name]

    @cached_property
    def _prompts(self) -> list[str]:
        return timing_prompts(self.workload.model, self.workload.batch_size)

    @cached_property
    def _readings(self) -> Readings:
        return Readings(self.setting.networks, self.store)


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _objects(readings: Readings, ours: Pictures, theirs: Pictures, texts: Sequence[str]) -> tuple[Any, Any]:
    """Objects that are right, as a share of the most that a prompt has: their sums are those of `objects_right`."""
    found = (count_objects(texts, readings.features(each)[1][:])[0] / MOST_OBJECTS for each in (ours, theirs))
    return tuple(found)  # type: ignore[return-value]


def _clip(readings: Readings, ours: Pictures, theirs: Pictures, texts: Sequence[str]) -> tuple[Any, Any]:
    found = (score("clip", readings.agreement(each, texts)) for each in (ours, theirs))
    return tuple(found)  # type: ignore[return-value]


def _lpips(readings: Readings, ours: Pictures, theirs: Pictures, texts: Sequence[str]) -> tuple[Any, Any]:
    """1 − LPIPS, of which the baseline itself has 1. What is further off than 1 counts as 1."""
    distances = readings.distances(ours, theirs)
    return score("lpips", distances), np.ones(len(distances))


def _ssim(readings: Readings, ours: Pictures, theirs: Pictures, texts: Sequence[str]) -> tuple[Any, Any]:
    similar = readings.pixels(ours, theirs)["ssim"]
    return score("ssim", similar), np.ones(len(similar))


SCORES: dict[str, Callable[[Readings, Pictures, Pictures, Sequence[str]], tuple[Any, Any]]] = {
    "objects_right": _objects,
    "clip": _clip,
    "lpips": _lpips,
    "lpips_shapes": _lpips,
    "ssim": _ssim,
}
"""The score of each picture, from 0 to 1: the candidate's, and the baseline's."""

READ = {"objects_right": "features", "clip": "agreement", "lpips": "distances", "lpips_shapes": "distances"}
"""What networks read for a score; nothing for the others."""

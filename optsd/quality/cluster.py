"""Batches on many machines: a store whose missing items Ray makes (https://docs.ray.io), where `--ray` asks for it.

Each item is one task, which does what any process does that shares the store: claims the item, makes it, keeps it. So a
node that dies costs what it was making; Ray starts that task again, and spreads, waits and grows as its cluster can.
"""

import contextlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from uuid import uuid4

from optsd import models
from optsd.errors import BadInput, OptsdError
from optsd.quality import generate
from optsd.quality.store import Item, Kind, Step, Store

SECONDS_WITHOUT_A_WORKER = 60
"""After them a run says what it waits for: with a cluster that grows it may be minutes, with another for ever."""

Make = Callable[[Any], Any]


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A cluster for as long as this lasts: the one at this address, or for `auto` that of $RAY_ADDRESS, or the one that
    runs on this machine, or a new one of this machine alone.

    Raises BadInput where there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it will do one day, without the warning
    import ray

    place = None if address == "auto" else address
    try:
        ray.init(place, include_dashboard=None if place else False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"no Ray at {address} ({reason})", "start one: ray start --head; then --ray auto") from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass
class ClusterStore(Store):
    """A store that all nodes share (a folder or a URL), filled by tasks that ask for a GPU each, or for CPU cores.

    `device` is `cuda` or `cpu`; a task on a CPU takes as many cores as this process has threads, because their number
    decides last bits. `say` is told how many are done. What makes an item is sent to the nodes: it holds what can be
    sent.
    """

    device: str = "cpu"
    say: Callable[[str], None] = lambda text: None
    nodes: set[str] = field(default_factory=set, init=False)  # that made something

    def __reduce__(self) -> tuple[type[Store], tuple[Any]]:
        return Store, (self.folder,)  # a node fills nothing but its own items

    def fill(self, items: Sequence[Kind], make: Callable[[Kind], Any]) -> None:
        """Have the missing items made. Raises what making one raised, and BadInput where nodes share no store."""
        missing, step = self._missing(items)
        if not missing:
            return
        import ray
        import torch

        threads = torch.get_num_threads()
        asked = {"num_gpus": 1} if self.device == "cuda" else {"num_cpus": threads}
        work = ray.remote(_work).options(max_retries=-1, **asked)
        handed, token = [ray.put((Store(self.folder), make))], uuid4().hex  # in a list: a task gets the reference
        running = [work.remote(item, token, handed, threads) for item in missing]
        try:
            for answer in self._ended(running, asked, step):
                self._take(answer, step)
        finally:
            for task in running:  # after an error, or Ctrl-C: those that have not ended
                ray.cancel(task)
        if lost := sum(self.get(item) is None for item in missing):
            raise BadInput(
                f"{lost} of {len(missing)} items that were made are not in {self.folder}",
                "give --image-store a folder that all nodes share, or a URL",
            )

    def _ended(self, running: list[Any], asked: dict[str, int], step: Step) -> Iterator["Answer"]:
        """What each task gives, as they end; they are removed from the list."""
        import ray

        total, began, has_waited = len(running), time.monotonic(), False
        while running:
            ended, running[:] = ray.wait(running, timeout=1)
            for task in ended:
                yield ray.get(task)
            where = f"{len(self.nodes)} worker{'s' * (len(self.nodes) > 1)}" if self.nodes else "waiting for a worker"
            self.say(f"{step.work}: {total - len(running)} of {total} batches, {where}")
            if len(running) == total and not has_waited and time.monotonic() - began > SECONDS_WITHOUT_A_WORKER:
                has_waited = True
                needs = " and ".join(f"{count:g} of {name.removeprefix('num_')}" for name, count in asked.items())
                has = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
                warnings.warn(f"no batch has ended yet: each needs {needs}, and the cluster has {has}", stacklevel=3)

    def _take(self, answer: "Answer", step: Step) -> None:
        if answer.error is not None:
            kind, problem, remedy = answer.error
            raise kind(problem, f"{remedy} (on node {answer.node})")
        self.made += answer.made
        self.nodes.add(answer.node)
        self.watch(replace(step, count=answer.count, seconds=answer.seconds, node=answer.node))


@dataclass(frozen=True)
class Answer:
    """What has become of a task: how many items it made (none where another had), or its error, as a user gets it."""

    node: str
    made: int = 0
    count: int = 0  # pictures
    seconds: float = 0.0
    error: tuple[type[OptsdError], str, str] | None = None


_kept: dict[str, tuple[Store, Make]] = {}
"""Of this process of a node: what was sent last, with the pipeline or the networks that it has loaded since."""


def _work(item: Item, token: str, handed: list[Any], threads: int) -> Answer:
    import ray
    import torch

    torch.set_num_threads(threads)
    node, began = f"{socket.gethostname()}/{os.getpid()}", time.monotonic()
    try:
        _check_same(item)
        if token not in _kept:
            _kept.clear()
            _kept[token] = ray.get(handed[0])
        store, make = _kept[token]
        before = store.made
        store.fill([item], make)
    except OptsdError as error:
        return Answer(node, error=(type(error), error.problem, error.remedy))
    return Answer(node, store.made - before, item.count, time.monotonic() - began)


def _check_same(item: Item) -> None:
    """What decides an item's bits beside its recipe: code, libraries, and the kind of processor."""
    recipe = getattr(item, "recipe", {})
    here = {"code": ""}
    if "reading" in recipe:
        from optsd.quality import readings  # with the networks' libraries, which take seconds

        here["code"] = readings.code_version()
    elif "code" in recipe:
        here["code"] = generate.code_version()
    if "machine" in recipe:
        here["machine"] = generate.machine(recipe["workload"]["device"])
    differs = [name for name, value in here.items() if recipe.get(name, value) != value]
    if differs:
        raise BadInput(
            f"a node's {' and '.join(differs)} is not what this run's pictures are made with",
            "install the same packages everywhere, on machines of one kind",
        )


@cache
def _checked(location: str, dtype: str, weights: str) -> None:
    found = generate.fingerprint(models.load(location, "cpu", dtype, text_to_image=True))
    if found != weights:
        raise BadInput(f"{location} is another model on a node", "give --model a folder that all nodes share")


def build(location: str, variant: str, device: str, dtype: str, weights: str) -> Any:
    """A variant's pipeline on a node, of a model that has this `generate.fingerprint`. Raises BadInput for another."""
    _checked(location, dtype, weights)
    return models.build(location, variant, device, dtype)[0]


def silent(text: str) -> None:
    """For what is sent to the nodes, where nobody reads what it says."""

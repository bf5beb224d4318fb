"""Where a long run is: one page, written anew meanwhile, of what is done, what is left, and how fast each worker is.

Each process of a run keeps what it did in a file of its own under the run's folder; whoever writes the page reads all.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from optsd.files import write_atomically

PAGE, WORKERS = "progress.html", "workers"
SECONDS_BETWEEN = 2.0
STALE_S = 600.0
"""A worker that has said nothing for so long adds nothing to the rate: it may have been killed."""

_TEMPLATES = Path(__file__).parent / "templates"


class Step(Protocol):
    """See `optsd.quality.store.Step`."""

    @property
    def work(self) -> str: ...
    @property
    def filling(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def node(self) -> str: ...


@dataclass
class Course:
    """What this process has done of a run that draws and reads `pictures` of each of `variants`; see `told`."""

    folder: Path
    worker: str
    variants: int
    pictures: int
    clock: Callable[[], float] = time.time
    _fillings: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _workers: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _written: float = field(default=0.0, init=False)

    def told(self, step: Step) -> None:
        """Count a step; the page is written where the last one is two seconds old."""
        filling = self._fillings.setdefault(
            step.filling, {"work": step.work, "total": step.total, "found": step.count, "made": 0}
        )
        if step.seconds is not None:
            filling["made"] += step.count
            name = step.node or f"{socket.gethostname()}/{self.worker or os.getpid()}"
            worker = self._workers.setdefault(name, {"works": {}})
            done = worker["works"].setdefault(step.work, {"made": 0, "seconds": 0.0})
            done["made"] += step.count
            done["seconds"] += step.seconds
            worker["at"] = self.clock()
        if self.clock() - self._written >= SECONDS_BETWEEN:
            self.write()

    def write(self) -> None:
        """This process's file, and the page of all."""
        own = {"fillings": self._fillings, "workers": self._workers}
        write_atomically(self.folder / WORKERS / f"{self.worker or 'main'}.json", json.dumps(own))
        found = Standing.of(_read(self.folder / WORKERS), self.variants, self.pictures, self.clock())
        write_atomically(self.folder / PAGE, page(found))
        self._written = self.clock()


def remove(folder: Path) -> None:
    """A run is over: its report takes the page's place."""
    for file in (folder / PAGE, *(folder / WORKERS).glob("*.json")):
        file.unlink(missing_ok=True)
    for place in (folder / WORKERS, folder):  # of a run that found nothing the folder is empty
        with suppress(OSError):
            place.rmdir()


def _read(folder: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            found.append(json.loads(file.read_text(encoding="utf-8")))
    return found


@dataclass(frozen=True)
class Work:
    """One kind of work: pictures done of all, by now how many a minute by all workers together, and minutes left."""

    name: str
    done: int
    total: int
    a_minute: float

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 1.0

    @property
    def minutes_left(self) -> float:
        """Infinite where something is left and nobody is known to work on it."""
        left = self.total - self.done
        return 0.0 if left <= 0 else left / self.a_minute if self.a_minute else float("inf")


@dataclass(frozen=True)
class Worker:
    """Pictures that it drew and read, how many a minute of each kind of work, and seconds since it ended something."""

    name: str
    a_minute: dict[str, float]
    made: dict[str, int]
    silent_s: float

    @property
    def is_stale(self) -> bool:
        return self.silent_s > STALE_S


@dataclass(frozen=True)
class Standing:
    """Of a whole run, at a moment (seconds of the epoch)."""

    works: tuple[Work, ...]
    workers: tuple[Worker, ...]
    now: float

    @classmethod
    def of(cls, states: Iterable[dict[str, Any]], variants: int, pictures: int, now: float) -> "Standing":
        """From what each process says of itself. What was there when the first one looked was made by none of them."""
        fillings: dict[str, dict[str, Any]] = {}
        workers = []
        for state in states:
            for key, one in state["fillings"].items():
                known = fillings.setdefault(key, {**one, "made": 0})
                known["found"] = min(known["found"], one["found"])
                known["made"] += one["made"]
            for name, one in state["workers"].items():
                made = {work: done["made"] for work, done in one["works"].items()}
                rates = {w: 60 * d["made"] / d["seconds"] for w, d in one["works"].items() if d["seconds"]}
                workers.append(Worker(name, rates, made, now - one["at"]))
        works = []
        for work in dict.fromkeys(one["work"] for one in fillings.values()):
            own = [one for one in fillings.values() if one["work"] == work]
            done = sum(min(one["found"] + one["made"], one["total"]) for one in own)
            begun = sum(one["total"] == pictures for one in own)  # another number is that of the real pictures
            total = sum(one["total"] for one in own) + max(0, variants - begun) * pictures
            rate = sum(worker.a_minute.get(work, 0.0) for worker in workers if not worker.is_stale)
            works.append(Work(work, done, total, rate))
        return cls(tuple(works), tuple(workers), now)

    @property
    def minutes_left(self) -> float:
        """Of all kinds of work that have begun, one after the other; infinite where that cannot be said."""
        return sum(work.minutes_left for work in self.works)


def page(standing: Standing) -> str:
    """HTML that asks for itself again every few seconds, and needs no network."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    left = standing.minutes_left
    silent = "nobody works on it" if any(worker.is_stale for worker in standing.workers) else "just begun"
    return environment.get_template("progress.html").render(
        standing=standing,
        style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        ends=time.strftime("%A %H:%M", time.localtime(standing.now + 60 * left)) if left < float("inf") else "",
        at=time.strftime("%H:%M:%S", time.localtime(standing.now)),
        rounded=lambda rate: f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}",
        in_words=lambda minutes: _in_words(minutes) or silent if minutes else "",
    )


def _in_words(minutes: float) -> str:
    """
    >>> [_in_words(each) for each in (0.2, 7.4, 135.0, 3000.0, float("inf"))]
    ['under a minute', '7 minutes', '2 h 15 min', '50 h 0 min', '']
    """
    if minutes == float("inf"):
        return ""
    if minutes < 1:
        return "under a minute"
    if minutes < 90:
        return f"{minutes:.0f} minutes"
    return f"{minutes // 60:.0f} h {minutes % 60:.0f} min"

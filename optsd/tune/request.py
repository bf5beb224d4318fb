"""What somebody asks `optsd tune` for, checked before anything is loaded. Imports no torch."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optsd import models, workloads
from optsd.errors import BadInput
from optsd.models import Source, shapes
from optsd.models.published import RANDOM
from optsd.tune.candidates import ALLOWED
from optsd.tune.search import Ask, Demand, Goal

QUALITY = 0.95
"""Of what the model's judge counts, as the benches' own summary has it, where nothing else is asked for."""
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "B": 1, **{f"{p}iB": 2 ** (10 * n) for n, p in enumerate("KMGT", 1)}} | {
    f"{p}B": 10 ** (3 * n) for n, p in enumerate("KMGT", 1)
}


@dataclass(frozen=True)
class Request:
    """`quality`: the share to be kept of the objects that are right (the shipped models), else of CLIP's score; `lpips`
    at most; `ssim` at least. None of them: `quality` 0.95. `images` and `rounds`: at most, of each candidate.

    Raises BadInput for what cannot be searched for.
    """

    model: str = "shapes"
    device: str = "auto"
    dtype: str = "auto"
    variants: tuple[str, ...] = ()  # the candidates; (): all that are known
    quality: float | None = None
    lpips: float | None = None
    ssim: float | None = None
    memory: int | None = None  # bytes at the peak
    goal: Goal = "speed"
    time_budget_s: float = 1800.0
    images: int | None = None
    rounds: int = 64
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None  # width, height
    batch_size: int | None = None
    seed: int = 42
    allow: tuple[str, ...] = ()
    output: Path | None = None
    expected: Path = Path("expected")
    say: Any = field(default=lambda text: None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for option, share in (("--quality", self.quality), ("--lpips", self.lpips), ("--ssim", self.ssim)):
            if share is not None and not 0 < share < 1:
                raise BadInput(f"{option} {share:g} is no share", "give a number between 0 and 1, such as 0.95")
        if not self.time_budget_s > 0:
            raise BadInput(f"--time-budget {self.time_budget_s:g} is no time", "give seconds, or 30m, or 2h")
        if self.memory is not None and self.memory < 2**20:
            raise BadInput(f"--memory {self.memory:g} bytes holds no model", "give for example 8GiB or 500MiB")
        for option, value in (("--images", self.images), ("--rounds", self.rounds), ("--steps", self.steps)):
            if value is not None:
                workloads.at_least(option, value, 1)
        if self.batch_size is not None:
            workloads.at_least("--batch-size", self.batch_size, 1)
        if self.guidance is not None:
            workloads.at_least("--guidance", self.guidance, 0)
        workloads.check_seed(self.seed)
        if unknown := [name for name in self.allow if name not in ALLOWED]:
            raise BadInput(f"--allow {unknown[0]} is unknown", f"choose from {', '.join(ALLOWED)}")

    @property
    def preset(self) -> workloads.Preset:
        return workloads.PRESETS[models.default_preset(self.model)]

    def demands(self, source: Source) -> tuple[Demand, ...]:
        """What is to be kept, as shares of scores between 0 and 1. Raises BadInput where pictures are noise."""
        quality = QUALITY if (self.quality, self.lpips, self.ssim) == (None, None, None) else self.quality
        asked = {"ssim": self.ssim}
        if quality is not None or self.lpips is not None:
            lpips = "lpips_shapes" if source.name in shapes.PIPELINES else "lpips"
            asked = {judged_by(source): quality, lpips: None if self.lpips is None else 1 - self.lpips, **asked}
        return tuple(Demand(name, share) for name, share in asked.items() if share is not None)

    def ask(self, source: Source, images: int) -> Ask:
        return Ask(self.demands(source), self.memory, self.goal, self.rounds, images)


def judged_by(source: Source) -> str:
    """The metric that `--quality` is a share of. Raises BadInput where pictures are noise."""
    if source.name in RANDOM:
        raise BadInput(
            f"{source.name} has random weights: nothing can judge its pictures",
            "ask for likeness to the baseline's alone, such as optsd tune --ssim 0.9",
        )
    # The shipped models have judges of their own, and those metrics names of their own.
    return "objects_right" if source.name in shapes.PIPELINES else "clip"


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `30m` or `2h`. Raises BadInput."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise BadInput(f"--time-budget {text} is no time", "give seconds, or 30m, or 2h")
    return float(found[1]) * _SECONDS[found[2]]


def parse_bytes(text: str) -> int:
    """`8GiB`, `500MiB`, `8GB` or plain bytes. Raises BadInput."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B?)", text.strip())
    if not found:
        raise BadInput(f"--memory {text} is no size", "give for example 8GiB or 500MiB")
    return round(float(found[1]) * _BYTES[found[2]])

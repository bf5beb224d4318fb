"""What one run computes and moves, small enough to keep: a trace's operations, alike ones together.

A trace takes seconds; its profile says for any number of steps, any batch, with or without guidance, and on any GPU
what the least time is. Profiles are kept in `$OPTSD_HOME/profiles`, by model, technique, size and libraries' versions.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

from optsd.estimate.devices import DEFAULT, Device
from optsd.files import home, plain_name, write_atomically
from optsd.records import Workload

SCHEMA = 1
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}


class Work(NamedTuple):
    """Operations that are all alike: `number` in one `part` of the run. In float16, one picture with guidance."""

    part: str  # "text encoder", "vae", "other", or of the denoiser "step", "cached step"
    kind: str  # "convolution", "linear", "attention", "other"
    flops: float
    moved_bytes: int
    weight_bytes: int
    number: int


@dataclass(frozen=True)
class Run:
    """How a profile is run. `latents`: in one call of the denoiser, pictures times two with guidance."""

    steps: int
    batch: int
    guided: bool
    dtype: str
    every: int = 1  # one whole step of so many

    @property
    def whole_steps(self) -> int:
        return -(-self.steps // self.every)


@dataclass(frozen=True)
class Profile:
    weights: dict[str, int]  # bytes by component, in float16
    works: tuple[Work, ...]

    def flops(self, run: Run, part: str = "", kinds: tuple[str, ...] = ()) -> float:
        """Multiplications and additions of a call, of some kinds, in one part ("denoiser": all its steps) or in all."""
        return sum(
            work.flops * times * scale
            for work, times, scale in self._parts(run, part)
            if not kinds or work.kind in kinds
        )

    def roofline_s(self, run: Run, device: Device, part: str = "") -> float:
        """Seconds of a call where each operation is a kernel of its own at the device's rates."""
        rate, width, bytes_s = device.rate(run.dtype), WIDTHS[run.dtype] / 2, device.bytes_s or math.inf
        return sum(
            times
            * max(
                work.flops * scale / rate,
                (work.weight_bytes + (work.moved_bytes - work.weight_bytes) * scale) * width / bytes_s,
            )
            for work, times, scale in self._parts(run, part)
        )

    def arithmetic_s(
        self, run: Run, device: Device, part: str = "", kinds: tuple[str, ...] = (), precision: str = ""
    ) -> float:
        """Seconds of the multiplications alone: the floor for whoever multiplies the same numbers."""
        return self.flops(run, part, kinds) / device.rate(precision or run.dtype)

    def _parts(self, run: Run, part: str) -> Iterator[tuple[Work, float, float]]:
        cached = any(work.part == "cached step" for work in self.works)
        for work in self.works:
            in_loop = work.part in ("step", "cached step")
            if part and part != ("denoiser" if in_loop else work.part):
                continue
            scale = run.batch * (1 if work.part in ("vae", "other") or run.guided else 0.5)
            times = work.number * (
                1 if not in_loop else run.whole_steps if work.part == "step" and cached else run.steps
            )
            if work.part == "cached step":
                times = work.number * (run.steps - run.whole_steps)
            yield work, times, scale


def profile(model: str, variant: str, width: int, height: int) -> Profile:
    """Of a model of `optsd.estimate.architectures`; traced once and kept. Raises Unsupported as `estimate` does."""
    file = home() / "profiles" / f"{model}-{plain_name(variant)}-{width}x{height}.json"
    key = {"schema": SCHEMA, "torch": version("torch"), "diffusers": version("diffusers"), "optsd": version("optsd")}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return Profile(kept["weights"], tuple(Work(*row) for row in kept["works"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or of other versions: traced again
    made = _traced(model, variant, width, height)
    write_atomically(file, json.dumps({"key": key, "weights": made.weights, "works": made.works}))
    return made


def _traced(model: str, variant: str, width: int, height: int) -> Profile:
    from optsd.estimate import estimate

    cached = "deepcache" in variant
    workload = Workload(model, "cuda", "float16", 3 if cached else 1, 7.5, height, width, 1)
    found = estimate(model, variant, workload, DEFAULT)
    last = max(found.step_counts)
    # Of deepcache:2 every second step is whole; without reuse they are alike. Schedulers may call once more than asked.
    whole = 3 if cached else last
    counts: Counter[Work] = Counter()
    for operation in found.operations:
        if operation.stage == found.denoiser:
            part = "step" if operation.step == whole else "cached step" if cached and operation.step == 2 else ""
        else:
            part = {"text_encoder": "text encoder", "text_encoder_2": "text encoder", "vae": "vae"}.get(
                operation.stage, "other" if operation.step in (0, last) else ""
            )
        if part:
            moved, weights = operation.moved_bytes, operation.weight_bytes
            counts[Work(part, operation.kind, operation.flops, moved, weights, 1)] += 1
    works = tuple(work._replace(number=count) for work, count in sorted(counts.items()))
    return Profile(dict(found.weight_bytes), works)

"""Made-up runs for the judge: quick to make, and nothing of them was measured."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.judge.statistics import median_interval, ratio_interval
from optsd.records import Measurement, Results, Technique, Workload

CPU_WORKLOAD = Workload("shapes", "cpu", "float32", 20, 5.0, 64, 64, 4)
GUIDE_WORKLOAD = Workload("sd15", "cuda", "float16", 50, 7.5, 512, 512, 4)
MACHINE = {
    "cpu": {"name": "Test CPU @ 2 GHz", "usable_cores": 2, "flags": ["avx2"]},
    "threads": {"torch": 2},
    "gpus": [{"name": "NVIDIA H100", "driver": "570.1"}],
    "versions": {"torch": "2.15.0", "cuda": "13.0"},
    "load": {"others_cpu_share": 0.0, "others_on_gpu": 0},
}


def _run(
    speedups: dict[str, float] | None = None,
    *,
    workload: Workload = CPU_WORKLOAD,
    machine: dict | None = None,
    rounds: int = 10,
    noise: float = 0.01,
    seed: int = 0,
    kernel: str = "flash",
    extra: tuple[Measurement, ...] = (),
    images: int = 0,
) -> Results:
    """A run in which the baseline takes about 1 s an image and each variant is so many times as fast."""
    generator = np.random.default_rng(seed)
    rows = []
    speedups = {"baseline": 1.0, **({"int8": 1.4, "flash": 1.2} if speedups is None else speedups)}
    for variant, speedup in speedups.items():
        baseline = generator.lognormal(0, noise, rounds)
        seconds = generator.lognormal(0, noise, rounds) / speedup
        rows.append(Measurement(variant, "latency_s", "s", *median_interval(seconds), tuple(seconds)))
        ratios = tuple(baseline / seconds)
        rows.append(Measurement(variant, "speedup", "×", *ratio_interval(baseline, seconds), ratios))
        rows.append(Measurement(variant, "peak_memory_bytes", "B", 1e9 / speedup))
    return Results(
        machine=machine or MACHINE,
        workload=workload,
        measurements=(*rows, *extra),
        techniques=tuple(Technique(variant, True, ("unet",), {"kernel": kernel}) for variant in speedups),
        images=tuple(
            {"variant": variant, "prompt": "p", "seed": 42, "index": i, "file": f"images/{variant}/{i}.png"}
            for variant in speedups
            for i in range(images)
        ),
        created="2025-01-01T00:00:00+00:00",
        complete=True,
    )


@pytest.fixture(scope="session")
def make_run():
    return _run


@pytest.fixture(scope="session")
def guide_run():
    """A run on the guide's workload, with so many pictures."""
    return lambda **changes: _run(**{"workload": GUIDE_WORKLOAD, "images": 1000, **changes})


@pytest.fixture(scope="session")
def with_value():
    """The run with one figure replaced; `None` takes the value, `"absent"` takes the row away."""

    def change(results: Results, variant: str, metric: str, value: float | str | None, **bounds) -> Results:
        rows = [row for row in results.measurements if (row.variant, row.metric) != (variant, metric)]
        if value != "absent":
            note = "" if value is not None else "the bench failed"
            rows.append(Measurement(variant, metric, "", value, note=note, **bounds))
        return replace(results, measurements=tuple(rows))

    return change


@pytest.fixture(scope="session")
def refusal():
    """The one line that a call is refused with; empty where it is not."""

    def of(call, *arguments):
        try:
            call(*arguments)
        except BadInput as error:
            assert "\n" not in str(error)  # noqa: PT017
            return str(error)
        return ""

    return of


JUNK = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 10**400, math.nan, math.inf, 5e-324, "", "\ud800", [], {}, [[]], [{}]]),
    st.integers(-3, 3), st.floats(), st.text(max_size=4),
)  # fmt: skip


@pytest.fixture(scope="session")
def junk():
    """A copy of JSON in which one value, anywhere, is replaced, is taken away, or is there twice."""

    def damage(data, whole):
        whole = copy.deepcopy(whole)
        place = whole
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            inner = place[key]
            if not inner or not isinstance(inner, (dict, list)) or data.draw(st.integers(0, 3)) == 0:
                break
            place = inner
        act = data.draw(st.sampled_from(["replace", "take away", "twice"]))
        if act == "take away":
            del place[key]
        elif act == "twice" and isinstance(place, list):
            place.append(inner)
        else:
            place[key] = data.draw(JUNK)
        return whole

    return damage

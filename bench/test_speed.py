"""How fast is each variant? Against the baseline, in the same session, turn by turn."""

import pytest

from conftest_plugins.pipelines import Built
from conftest_plugins.results import Recorder, as_extra_info
from optsd.judge.statistics import median_interval, ratio_interval
from optsd.measure.time import seconds, stage_times
from optsd.records import Technique
from optsd.variants import parse


@pytest.mark.speed
def test_speed(built: Built, baseline: Built, rounds: int, benchmark, recorder: Recorder, machine_to_itself) -> None:
    """Seconds an image, and the speedup over the baseline with its interval.

    A round is one batch of the baseline, then one of the variant: what the machine does to one it does to the other.
    For the baseline itself that is its noise floor.
    """
    assert built.patch.touched, f"{built.variant} touched nothing"
    device, pictures = built.pipe.device, built.workload.batch_size
    baseline.warm_up()
    built.warm_up()
    theirs: list[float] = []
    ours: list[float] = []
    benchmark.extra_info["variant"] = built.variant

    def turn(which: Built, readings: list[float]) -> None:
        readings.append(seconds(lambda: which.run(f"timing, round {len(readings) + 1} of {rounds}"), device))

    benchmark.pedantic(lambda: turn(built, ours), setup=lambda: turn(baseline, theirs), rounds=rounds)
    with stage_times(built.pipe) as stages:
        built.run("timing the stages")

    per_image = tuple(reading / pictures for reading in ours)
    latency, low, high = median_interval(per_image)
    speedup, slowest, fastest = ratio_interval(theirs, ours)
    found = [
        recorder.measure(built.variant, "latency_s", latency, (low, high), per_image),
        recorder.measure(built.variant, "throughput_images_s", 1 / latency, (1 / high, 1 / low)),
        recorder.measure(
            built.variant,
            "speedup",
            speedup,
            (slowest, fastest),
            tuple(a / b for a, b in zip(theirs, ours, strict=True)),
            note="the baseline against itself: the noise floor" if built is baseline else "",
        ),
    ]
    for stage, readings in stages.items():
        middle, low, high = median_interval(readings)
        found.append(recorder.measure(built.variant, stage, middle, (low, high), tuple(readings)))
    proof = built.proof()
    if "compile_s" in proof:
        found.append(recorder.measure(built.variant, "compile_s", proof["compile_s"], note="not in the other times"))
    benchmark.extra_info.update(as_extra_info(found))
    recorder.technique(Technique(built.variant, parse(built.variant).exact, built.patch.touched, proof))

"""How fast is each variant? Against the baseline, in the same session, turn by turn."""

from typing import TYPE_CHECKING

import pytest

from optsd.judge.benchmark_json import as_extra_info
from optsd.judge.statistics import enough, median_interval, ratio_interval

if TYPE_CHECKING:
    from conftest_plugins.pipelines import Bench
    from conftest_plugins.results import Recorder
    from optsd.quality.witness import Witness


@pytest.mark.speed
def test_speed(
    built: "Bench",
    baseline: "Bench",
    rounds: int,
    benchmark,
    recorder: "Recorder",
    witness: "Witness",
    machine_to_itself,
) -> None:
    """Seconds an image, and the speedup over the baseline with its interval.

    A round is one batch of the baseline, then one of the variant: what the machine does to one it does to the other.
    For the baseline itself that is its noise floor. Each round has new prompts and noise, so that who keeps answers
    gains nothing; whether one does is asked afterwards.
    """
    from optsd.quality.witness import keeps_answers

    pictures = built.workload.batch_size
    baseline.warm_up()
    built.warm_up()
    theirs: list[float] = []
    ours: list[float] = []
    benchmark.extra_info["variant"] = built.variant

    def turn(which: "Bench", readings: list[float]) -> None:
        number = len(readings) + 1
        readings.append(which.seconds(f"timing, round {number} of {rounds}", number))

    benchmark.pedantic(lambda: turn(built, ours), setup=lambda: turn(baseline, theirs), rounds=rounds)
    again = built.seconds("timing the last round once more", rounds)
    stages = built.stage_seconds()

    per_image = tuple(reading / pictures for reading in ours)
    latency, speedup = median_interval(per_image), ratio_interval(theirs, ours)
    ends = enough(latency, rounds)
    found = [
        recorder.measure(built.variant, "latency_s", latency.value, ends, per_image),
        recorder.measure(
            built.variant, "throughput_images_s", 1 / latency.value, (1 / ends[1], 1 / ends[0]) if ends else None
        ),
        recorder.measure(
            built.variant,
            "speedup",
            speedup.value,
            enough(speedup, rounds),
            tuple(a / b for a, b in zip(theirs, ours, strict=True)),
            note="the baseline against itself: the noise floor" if built is baseline else "",
        ),
    ]
    for stage, readings in stages.items():
        middle = median_interval(readings)
        ends = enough(middle, len(readings))
        found.append(recorder.measure(built.variant, stage, middle.value, ends, tuple(readings)))
    evidence = built.evidence()
    if "compile_s" in evidence.proof:
        compiling = evidence.proof["compile_s"]
        found.append(recorder.measure(built.variant, "compile_s", compiling, note="not in the other times"))
    benchmark.extra_info.update(as_extra_info(found))
    recorder.technique(evidence)
    wrong = [keeps_answers(built.variant, again, ours), witness.difference(built.variant)]
    assert not any(wrong), "; ".join(filter(None, wrong))

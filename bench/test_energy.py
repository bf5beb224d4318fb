"""How many joules does a picture take? In windows of two seconds or more, beside the baseline's; times nothing."""

from functools import partial
from typing import TYPE_CHECKING

import pytest

from optsd.errors import Unsupported
from optsd.judge.statistics import Interval, enough, median_interval, ratio_interval
from optsd.measure import energy

if TYPE_CHECKING:
    from conftest_plugins.pipelines import Bench
    from conftest_plugins.results import Recorder


@pytest.mark.energy
def test_energy(built: "Bench", baseline: "Bench", rounds: int, recorder: "Recorder", machine_to_itself) -> None:
    """Joules an image by the chip's own counter, and the share of the baseline's that is saved, with its interval."""
    device, pictures = str(baseline.pipe.device), built.workload.batch_size
    try:
        energy.read(device)
    except Unsupported as error:
        for name in ("energy_j", "energy_reduction"):
            recorder.measure(built.variant, name, None, note=str(error))
        pytest.skip(str(error))
    baseline.warm_up()
    built.warm_up()
    theirs: list[float] = []
    ours: list[float] = []
    for number in range(1, rounds + 1):
        for bench, readings in ((baseline, theirs), (built, ours)):
            doing = f"counting joules, round {number} of {rounds}"
            draw = partial(bench.seconds, doing, number)
            readings.append(energy.joules_of_a_call(draw, device))

    per_image = tuple(reading / pictures for reading in ours)
    found, share = median_interval(per_image), ratio_interval(ours, theirs)  # of the baseline's joules
    saved, least, most = (1 - each for each in share)
    recorder.measure(built.variant, "energy_j", found.value, enough(found, rounds), per_image)
    recorder.measure(built.variant, "energy_reduction", saved, enough(Interval(saved, most, least), rounds))
    assert found.value > 0

"""What could each variant be at best, by the model's architecture and the device's data sheet? Runs nothing."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from optsd.estimate import Estimate, measurements
from optsd.records import Technique
from optsd.variants import parse

if TYPE_CHECKING:
    from conftest_plugins.results import Recorder


@pytest.mark.estimate
def test_estimate(variant: str, estimates: Callable[[str], Estimate], recorder: "Recorder") -> None:
    """Least time and memory of one batch; asked for with `--device estimate:NAME`."""
    found = estimates(variant)
    for row in measurements(found, estimates("baseline")):
        recorder.measurement(row)
    recorder.technique(Technique(variant, parse(variant).exact, found.touched, found.proof))
    assert found.peak_bytes > sum(found.weight_bytes.values())

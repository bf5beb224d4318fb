"""What could each variant be at best, by the model's architecture and the device's data sheet? Runs nothing."""

from collections.abc import Callable

import pytest

from conftest_plugins.ledgers import ledgers_of_run
from conftest_plugins.results import Recorder
from optsd.estimate import Estimate, measurements
from optsd.estimate.ledger import file_name, of_estimate
from optsd.files import write_atomically
from optsd.records import Technique
from optsd.variants import parse


@pytest.mark.estimate
def test_estimate(
    variant: str, estimates: Callable[[str], Estimate], recorder: Recorder, pytestconfig: pytest.Config
) -> None:
    """Least time and memory of one batch, and its ledger; asked for with `--device estimate:NAME`."""
    found = estimates(variant)
    for row in measurements(found, estimates("baseline"), estimates("sdpa")):
        recorder.measurement(row)
    write_atomically(ledgers_of_run(pytestconfig) / file_name(variant), of_estimate(found).to_text())
    recorder.technique(Technique(variant, parse(variant).exact, found.touched, found.proof))
    assert found.peak_bytes > sum(found.weight_bytes.values())

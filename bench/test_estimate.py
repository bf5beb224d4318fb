"""What could each variant be at best, by the model's architecture and the device's data sheet? Runs nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from optsd.estimate import Estimate, measurements
from optsd.estimate.counted import of_estimate
from optsd.files import write_atomically
from optsd.ledger import file_name
from optsd.records import Technique
from optsd.variants import parse

if TYPE_CHECKING:
    from conftest_plugins.results import Recorder


@pytest.mark.estimate
def test_estimate(
    variant: str, estimates: Callable[[str], Estimate], recorder: "Recorder", ledger_folder: Path
) -> None:
    """Least time and memory of one batch, and its ledger; asked for with `--device estimate:NAME`."""
    found = estimates(variant)
    for row in measurements(found, estimates("baseline"), estimates("sdpa")):
        recorder.measurement(row)
    write_atomically(ledger_folder / file_name(variant), of_estimate(found).to_text())
    recorder.technique(Technique(variant, parse(variant).exact, found.touched, found.proof))
    assert found.peak_bytes > sum(found.weight_bytes.values())

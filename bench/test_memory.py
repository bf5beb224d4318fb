"""How much memory does each variant need at its peak? In a fresh process, and a pass that times nothing."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from optsd.errors import Unsupported
from optsd.measure.memory import PeakMemory

if TYPE_CHECKING:
    from conftest_plugins.results import Recorder


@pytest.mark.memory
def test_memory(variant: str, peak: Callable[[str], PeakMemory], recorder: "Recorder", machine_to_itself) -> None:
    """Peak bytes of one batch, and the share of the baseline's peak that is saved."""
    try:
        found = peak(variant)
    except Unsupported as error:
        pytest.skip(str(error))
    recorder.measure(variant, "peak_memory_bytes", found.peak, samples=found.timeline)
    recorder.measure(variant, "peak_process_bytes", found.process)
    baseline = recorder.results().get("baseline", "peak_memory_bytes")
    if baseline is None or not baseline.value:
        recorder.measure(variant, "memory_reduction", None, note="the baseline's memory was not measured")
        return
    recorder.measure(variant, "memory_reduction", 1 - found.peak / baseline.value)
    assert found.peak > 0

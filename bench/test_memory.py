"""How much memory does each variant need at its peak? In a fresh process, and a pass that times nothing."""

import pytest

from conftest_plugins.options import DEVICE, MODEL
from conftest_plugins.results import Recorder
from optsd.errors import Unsupported
from optsd.measure.memory import PeakMemory, peak_memory
from optsd.records import Workload


@pytest.mark.memory
def test_memory(
    variant: str, workload: Workload, pytestconfig: pytest.Config, recorder: Recorder, machine_to_itself
) -> None:
    """Peak bytes of one batch, and the share of the baseline's peak that is saved."""
    try:
        stash = pytestconfig.stash
        found: PeakMemory = peak_memory(stash[MODEL], variant, stash[DEVICE], workload.dtype, workload)
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

"""How much memory does each variant need at its peak? In a fresh process, and a pass that times nothing."""

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import pytest

from optsd.errors import Unsupported
from optsd.measure.memory import PeakMemory

if TYPE_CHECKING:
    from conftest_plugins.results import Recorder


PASSES = 3
"""Of the baseline, each in a process of its own: how far a variant's single one may be off. torch's allocator on CUDA
counts what tensors hold, which repeats; a process's peak on a CPU takes in what its allocators and threads keep."""


@pytest.mark.memory
def test_memory(variant: str, peak: Callable[[str], PeakMemory], recorder: "Recorder", machine_to_itself) -> None:
    """Peak bytes of one batch, and the share of the baseline's peak that is saved. The baseline's interval is the range
    of its passes."""
    try:
        passes = [peak(variant) for _ in range(PASSES if variant == "baseline" else 1)]
    except Unsupported as error:
        pytest.skip(str(error))
    found, peaks = passes[0], [each.peak for each in passes]
    between, note = (
        ((min(peaks), max(peaks)), f"the range of {PASSES} passes") if len(peaks) > 1 else (None, "one pass")
    )
    recorder.measure(variant, "peak_memory_bytes", median(peaks), between, found.timeline, note)
    recorder.measure(variant, "peak_process_bytes", found.process)
    baseline = recorder.results().get("baseline", "peak_memory_bytes")
    if baseline is None or not baseline.value:
        recorder.measure(variant, "memory_reduction", None, note="the baseline's memory was not measured")
        return
    recorder.measure(variant, "memory_reduction", 1 - median(peaks) / baseline.value)
    assert min(peaks) > 0

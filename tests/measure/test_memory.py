import sys

import pytest

from optsd.errors import OptsdError
from optsd.measure import memory
from optsd.records import Workload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process memory is read from /proc")
MIB = 2**20


def test_the_peak_is_seen_after_it_is_over() -> None:
    memory.reset_peak()
    before = memory.resident_bytes("VmHWM")
    block = bytearray(b"1") * (64 * MIB)
    del block
    assert 60 * MIB < memory.resident_bytes("VmHWM") - before < 80 * MIB
    memory.reset_peak()
    assert memory.resident_bytes("VmHWM") - before < 20 * MIB


@pytest.mark.slow
def test_a_fresh_process_measures_one_variant(untrained_folder) -> None:
    workload = Workload("folder", "cpu", "float32", 2, 5.0, 128, 128, 1)
    eager = memory.peak_memory(str(untrained_folder), "baseline", "cpu", "float32", workload)
    weights = sum(file.stat().st_size for file in untrained_folder.rglob("*.safetensors"))
    assert weights < eager.peak < weights + 400 * MIB
    assert eager.process > eager.peak
    assert len(eager.timeline) == workload.steps + 1


@pytest.mark.slow
def test_an_error_of_the_child_reaches_the_parent(tmp_path) -> None:
    workload = Workload("folder", "cpu", "float32", 2, 5.0, 64, 64, 1)
    with pytest.raises(OptsdError, match=r"model_index.json is missing; give a whole diffusers folder"):
        memory.peak_memory(str(tmp_path), "baseline", "cpu", "float32", workload)

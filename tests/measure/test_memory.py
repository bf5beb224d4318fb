import sys
from types import SimpleNamespace

import pytest
import torch

from optsd.errors import OptsdError, Unsupported
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


def test_where_a_peak_cannot_be_reset_the_error_is_one_line(monkeypatch) -> None:
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    with pytest.raises(Unsupported, match="a process cannot reset its peak here: .*; measure memory outside"):
        memory.reset_peak()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_memory_of_a_gpu_needs_no_such_reset(monkeypatch, device) -> None:
    def refuse():
        raise Unsupported("no reset", "")

    pipe = SimpleNamespace(device=SimpleNamespace(type=device), unet=torch.nn.Identity())
    monkeypatch.setattr(memory, "reset_peak", refuse)
    monkeypatch.setattr("optsd.models.build", lambda *_: (pipe, None))
    monkeypatch.setattr("optsd.measure.run.run_batch", lambda *_, **__: [])
    monkeypatch.setattr("optsd.measure.pictures.check_pictures", lambda *_: None)
    for name, value in ("memory_allocated", 3), ("max_memory_allocated", 5), ("reset_peak_memory_stats", None):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda _, value=value: value)
    measuring = lambda: memory._measure("m", "baseline", device, "float16", Workload("m", device, "", 1, 1.0, 8, 8, 1))  # noqa: E731
    if device == "cuda":
        assert (measuring().peak, measuring().timeline) == (5, (3,))
    else:
        with pytest.raises(Unsupported, match="no reset"):
            measuring()


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


def test_the_bench_takes_the_baseline_in_three_passes_and_says_how_far_they_lay_apart():
    from bench import test_memory as bench

    measured = {}
    recorder = SimpleNamespace(
        measure=lambda variant, name, value, *rest, **more: measured.update({(variant, name): (value, *rest)}),
        results=lambda: SimpleNamespace(
            get=lambda *_: SimpleNamespace(value=measured["baseline", "peak_memory_bytes"][0])
        ),
    )
    peaks = iter([104, 100, 101, 90])
    for variant in ("baseline", "int8"):
        bench.test_memory(variant, lambda _: memory.PeakMemory(next(peaks), 7, (1, 2)), recorder, None)
    assert measured["baseline", "peak_memory_bytes"] == (101, (100, 104), (1, 2), "the range of 3 passes")
    assert measured["int8", "peak_memory_bytes"] == (90, None, (1, 2), "one pass")
    assert measured["int8", "memory_reduction"][0] == 1 - 90 / 101

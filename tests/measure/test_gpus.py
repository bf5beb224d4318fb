"""NVML and torch are made up here: what is tested is which GPU is meant, and what is read of it."""

import os
import sys
from types import SimpleNamespace

import pytest

from optsd.judge.expectations import machine_name
from optsd.measure import environment, gpus


class FakeNvml(SimpleNamespace):
    """Two GPUs; the second one lacks power readings, as virtual GPUs do."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "memory", "gpu"

    def __init__(self, foreign=()):
        super().__init__(foreign=list(foreign), opened=0, closed=set(), alone=set(), slices={}, mhz=1980, held=0)

    def nvmlInit(self):
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        if index in self.closed:
            raise self.NVMLError
        return index

    def nvmlDeviceGetUUID(self, handle):
        return f"MIG-{handle}" if handle in self.slices else f"GPU-{handle}"

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):
        if handle != 0 or index >= len(self.slices):
            raise self.NVMLError  # not found
        return list(self.slices)[index]

    def nvmlSystemGetDriverVersion(self):
        return b"570.1"

    def nvmlDeviceGetName(self, handle):
        return f"NVIDIA H{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=80 << 30)

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return {"sm": self.mhz, "memory": 2619}[kind]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.held

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return 1980

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return 5_000 * (handle + 1)

    def nvmlDeviceGetPowerUsage(self, handle):
        if handle == 1:
            raise self.NVMLError
        return 123_456

    nvmlDeviceGetEnforcedPowerLimit = nvmlDeviceGetPowerUsage

    def nvmlDeviceGetTemperature(self, handle, kind):
        return 41

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        if handle in self.slices:
            return [SimpleNamespace(pid=pid, usedGpuMemory=1 << 30) for pid in self.slices[handle]]
        if handle == 1 and not self.alone:
            raise self.NVMLError
        if handle == 1:
            return [SimpleNamespace(pid=pid, usedGpuMemory=1 << 30) for pid in self.alone]
        pids = [os.getpid(), *self.foreign]
        return [SimpleNamespace(pid=pid, usedGpuMemory=1 << 30) for pid in pids]


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml(foreign=[4_000_001])
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_gpus_are_read_through_nvml(nvml):
    first, second = gpus.found()
    assert first["name"] == "NVIDIA H0"
    assert first["driver"] == "570.1"
    assert first["power_w"] == 123.5
    assert first["clock_mhz"] == 1980
    assert first["temperature_c"] == 41
    assert first["other_processes"] == [{"pid": 4_000_001, "memory_bytes": 1 << 30}]
    assert second["power_w"] is None
    assert second["other_processes"] == []
    assert nvml.opened == 0


def test_without_a_driver_there_are_no_gpus(nvml, monkeypatch):
    def fail():
        raise nvml.NVMLError

    monkeypatch.setattr(nvml, "nvmlInit", fail)
    assert gpus.found() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.found() == []


def seen_by_torch(monkeypatch, *about):
    """torch with these GPUs: pairs of UUID and name."""
    properties = [SimpleNamespace(uuid=uuid, name=name, total_memory=80 << 30) for uuid, name in about]
    functions = SimpleNamespace(current_device=lambda: 0, get_device_properties=properties.__getitem__)
    torch = SimpleNamespace(cuda=functions, get_num_threads=lambda: 1, version=SimpleNamespace(cuda=None))
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.fixture
def cuda(monkeypatch):
    """torch, to which CUDA_VISIBLE_DEVICES shows NVML's GPUs in another order: the second one is `cuda:0`."""
    seen_by_torch(monkeypatch, ("1", "H1"), ("0", "H0"))


def test_joules_are_those_of_the_card_that_ran(nvml, cuda, monkeypatch):
    assert [gpus.joules(device) for device in ("cuda", "cuda:1", "cpu")] == [10, 5, None]
    nvml.slices = {"a": {5}}
    seen_by_torch(monkeypatch, ("a", "NVIDIA H0 MIG 1g.10gb"))
    assert gpus.joules("cuda") is None, "a card's joules are those of all of its slices"


def test_a_gpu_that_others_use_is_noticed(nvml, cuda):
    watch = environment.Watch()
    assert watch.read("cuda:1")["others_on_gpu"] == 1
    nvml.foreign.append(4_000_002)
    assert watch.read("cuda:1")["others_on_gpu"] == 2
    nvml.foreign.clear()
    assert watch.read("cuda:1")["others_on_gpu"] == 0


def test_others_count_on_the_gpu_that_ran_alone(nvml, cuda):
    watch = environment.Watch()
    assert watch.read("cuda")["others_on_gpu"] == 0
    assert watch.read("cpu")["others_on_gpu"] == 0
    nvml.alone.add(4_000_003)  # and none of ours: as a container sees it
    assert environment.Watch().read("cuda")["others_on_gpu"] == 1


@pytest.mark.parametrize(("device", "name"), [("cuda", "NVIDIA H1"), ("cuda:0", "NVIDIA H1"), ("cuda:1", "NVIDIA H0")])
def test_a_machine_is_called_by_the_gpu_that_ran(nvml, cuda, device, name):
    found = environment.machine(device)
    assert [gpu["name"] for gpu in found["gpus"]] == [name, *({"NVIDIA H0", "NVIDIA H1"} - {name})]
    assert machine_name(found, "cuda") == name.lower().replace(" ", "-")
    nvml.closed = {0, 1}  # torch knows it even so
    assert machine_name(environment.machine(device), "cuda") == name.lower().removeprefix("nvidia ")


@pytest.mark.parametrize("name", [name for name in dir(FakeNvml) if name.startswith("nvml")])
@pytest.mark.parametrize("error", [FakeNvml.NVMLError("lost"), OSError("no such library"), AttributeError("too old")])
def test_no_failure_of_nvml_ends_a_run(nvml, monkeypatch, name, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(nvml, name, fail)
    assert isinstance(gpus.found(), list)
    assert environment.Watch().read()["others_on_gpu"] == 0


def test_a_gpu_that_cannot_be_opened_is_left_out(nvml):
    nvml.closed = {0}
    assert [gpu["name"] for gpu in gpus.found()] == ["NVIDIA H1"]


@pytest.mark.parametrize(
    ("uuid", "visible", "others"),
    [("b", "", {7}), ("0", "MIG-b", {7}), ("0", "MIG-b,MIG-a", {7}), ("0", "", {5, 6}), ("0", "0", {5, 6})],
    ids=["CUDA 13", "named", "the first named", "the card's first", "the first of a numbered card"],
)
def test_a_slice_has_a_name_memory_and_neighbours_of_its_own(nvml, monkeypatch, uuid, visible, others):
    """Before CUDA 13 torch gives the card's UUID for a slice."""
    nvml.slices = {"a": {5, 6, os.getpid()}, "b": {7, os.getpid()}}
    seen_by_torch(monkeypatch, (uuid, "NVIDIA H0 MIG 1g.10gb"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = environment.machine("cuda")
    assert [gpu["name"] for gpu in found["gpus"]] == ["NVIDIA H0 MIG 1g.10gb", "NVIDIA H1"]
    assert found["gpus"][0]["driver"] == "570.1"
    assert {process["pid"] for process in found["gpus"][0]["other_processes"]} == others
    assert machine_name(found, "cuda") == "nvidia-h0-mig-1g-10gb"
    assert environment.Watch().read("cuda")["others_on_gpu"] == len(others)


def test_a_whole_card_is_none_of_its_slices(nvml, monkeypatch):
    nvml.slices = {"a": {5, 6}}
    seen_by_torch(monkeypatch, ("0", "NVIDIA H0"))
    assert environment.machine("cuda")["gpus"][0]["name"] == "NVIDIA H0"
    assert environment.Watch().read("cuda")["others_on_gpu"] == 1


def test_the_clock_is_read_while_the_gpu_works(nvml, cuda, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watch = environment.Watch()
    for mhz, held in ((1980, 0x1), (1200, 0x4), (1400, 0x4 | 0x20 | 0x40), (210, 0)):
        nvml.mhz, nvml.held = mhz, held
        watch.look("cuda")
        now[0] += 0.5  # the second and the fourth look come too early
        watch.look("cuda")
        now[0] += 0.6
    assert watch.read("cuda")["gpu_clock"] == {
        "least_mhz": 210,
        "median_mhz": 1300,
        "most_mhz": 1980,
        "highest_mhz": 1980,
        "readings": 4,
        "held_by": {"heat": 0.25, "power cap": 0.5},
    }
    assert nvml.opened == 0


def test_a_cpu_has_no_such_clock(nvml, cuda):
    watch = environment.Watch()
    watch.look("cpu")
    assert "gpu_clock" not in watch.read("cpu")


@pytest.mark.parametrize("name", [name for name in dir(FakeNvml) if name.startswith("nvml")])
def test_a_clock_that_cannot_be_read_ends_no_run(nvml, cuda, monkeypatch, name):
    def fail(*_):
        raise nvml.NVMLError

    monkeypatch.setattr(nvml, name, fail)
    watch = environment.Watch()
    watch.look("cuda")
    assert isinstance(watch.read("cuda"), dict)

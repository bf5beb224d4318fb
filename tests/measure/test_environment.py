import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from optsd.judge.expectations import machine_name
from optsd.measure import environment
from optsd.records import dumps


class FakeNvml(SimpleNamespace):
    """Two GPUs; the second one lacks power readings, as virtual GPUs do."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "memory", "gpu"

    def __init__(self, foreign=()):
        super().__init__(foreign=list(foreign), opened=0, closed=set(), alone=set())

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
        return f"GPU-{handle}"

    def nvmlSystemGetDriverVersion(self):
        return b"570.1"

    def nvmlDeviceGetName(self, handle):
        return f"NVIDIA H{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=80 << 30)

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return {"sm": 1980, "memory": 2619}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return 1980

    def nvmlDeviceGetPowerUsage(self, handle):
        if handle == 1:
            raise self.NVMLError
        return 123_456

    nvmlDeviceGetEnforcedPowerLimit = nvmlDeviceGetPowerUsage

    def nvmlDeviceGetTemperature(self, handle, kind):
        return 41

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
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


def test_machine_is_plain_data_and_names_no_person_or_place():
    found = environment.machine()
    text = dumps(found)
    assert found["cpu"]["name"]
    assert found["cpu"]["logical_cores"] >= 1
    assert found["memory_bytes"] > 1 << 28
    assert found["versions"]["numpy"]
    assert os.environ.get("HOME", "/nowhere") not in text
    assert os.uname().nodename not in text


def test_torch_is_not_imported():
    code = "import sys; from optsd.measure.environment import machine; machine(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_torch_adds_its_threads_and_cuda_once_it_is_imported(monkeypatch):
    torch = SimpleNamespace(
        get_num_threads=lambda: 7,
        version=SimpleNamespace(cuda="13.0"),
        backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 91000)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert environment.threads()["torch"] == 7
    assert environment.versions()["cuda"] == "13.0"
    assert environment.versions()["cudnn"] == "91000"


def test_gpus_are_read_through_nvml(nvml):
    first, second = environment.gpus()
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
    assert environment.gpus() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert environment.gpus() == []


@pytest.fixture
def cuda(monkeypatch):
    """torch, to which CUDA_VISIBLE_DEVICES shows NVML's GPUs in another order: the second one is `cuda:0`."""
    properties = [SimpleNamespace(uuid=f"{1 - index}", name=f"H{1 - index}", total_memory=80 << 30) for index in (0, 1)]
    functions = SimpleNamespace(current_device=lambda: 0, get_device_properties=properties.__getitem__)
    torch = SimpleNamespace(cuda=functions, get_num_threads=lambda: 1, version=SimpleNamespace(cuda=None))
    monkeypatch.setitem(sys.modules, "torch", torch)


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
    assert isinstance(environment.gpus(), list)
    assert environment.Watch().read()["others_on_gpu"] == 0


def test_a_gpu_that_cannot_be_opened_is_left_out(nvml):
    nvml.closed = {0}
    assert [gpu["name"] for gpu in environment.gpus()] == ["NVIDIA H1"]


def test_own_work_is_not_taken_for_others(monkeypatch):
    busy = [100.0, 101.0]
    own = [10.0, 11.0]
    monkeypatch.setattr(environment, "_busy_cpu_s", lambda: busy.pop(0))
    monkeypatch.setattr(environment, "_own_cpu_s", lambda: own.pop(0))
    watch = environment.Watch()
    time.sleep(0.01)
    assert watch.read()["others_cpu_share"] == 0


def test_cpu_time_of_children_counts_as_own():
    before = environment._own_cpu_s()
    subprocess.run(
        [sys.executable, "-c", "import time\nt = time.process_time()\nwhile time.process_time() < t + .2: 1"]
    )
    assert environment._own_cpu_s() - before >= 0.2


def test_work_of_others_is_seen(monkeypatch):
    busy = [100.0, 1e6]  # more than any pause could be
    monkeypatch.setattr(environment, "_busy_cpu_s", lambda: busy.pop(0))
    monkeypatch.setattr(environment, "_own_cpu_s", lambda: 10.0)
    watch = environment.Watch()
    time.sleep(0.01)
    assert watch.read()["others_cpu_share"] == 1


def test_git_state_is_that_of_this_project_only(tmp_path):
    assert environment.git_state(tmp_path) is None
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert environment.git_state(tmp_path) is None  # no commit yet
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    (tmp_path / "new").touch()
    state = environment.git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["changed_files"] == 1
    (tmp_path / "site-packages").mkdir()
    assert environment.git_state(tmp_path / "site-packages") is None

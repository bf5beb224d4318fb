"""The machine that a run was made on, as plain data, and how much of it others used meanwhile. Never imports torch.

What identifies a person or a place (host name, user, paths, command lines of other processes) is left out.
"""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil

PACKAGES = (
    "optsd",
    "torch",
    "diffusers",
    "transformers",
    "numpy",
    "safetensors",
    "triton",
    "flash-attn",
    "bitsandbytes",
    "torchao",
    "openvino",
    "torchvision",
    "torch-fidelity",
    "lpips",
    "open-clip-torch",
    "pytest",
    "pytest-benchmark",
)
"""Packages whose version can change a figure."""

CPU_FLAGS = {
    *("f16c", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve"),
}
"""Instructions that decide which kernels run."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def machine(device: str = "cpu") -> dict[str, Any]:
    """CPU, memory, GPUs, threads, versions and git state. What cannot be read is None.

    `device` is torch's name of what ran, `cuda:1`: that GPU is the first one of the list, as a machine is called by it.
    """
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": threads(),
        "gpus": gpus(device),
        "versions": versions(),
        "git": git_state(Path(__file__).parents[2]),
    }


def cpu() -> dict[str, Any]:
    """Model, cores, flags that decide kernels, governor, load average."""
    information = _read(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", information, re.MULTILINE)
    return {
        "name": name[1].strip() if name else platform.processor() or platform.machine(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
        "flags": sorted(CPU_FLAGS.intersection(flags[1].split() if flags else ())),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")).strip() or None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def threads() -> dict[str, int | str]:
    """Threads that torch computes with, where it is imported, and the variables that decide their number."""
    found: dict[str, int | str] = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    if torch := sys.modules.get("torch"):
        found["torch"] = torch.get_num_threads()
    return found


def versions() -> dict[str, str]:
    """Python's version and those of the packages that are installed; CUDA's and cuDNN's where torch is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if (torch := sys.modules.get("torch")) and torch.version.cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that is checked out and whether files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top, commit = git("rev-parse", "--show-toplevel"), git("rev-parse", "HEAD")
    # Installed into some other project's tree, the package would report that project's commit.
    if top is None or commit is None or Path(top).resolve() != folder.resolve():
        return None
    return {"commit": commit, "changed_files": len((git("status", "--porcelain") or "").splitlines())}


def gpus(device: str = "cpu") -> list[dict[str, Any]]:
    """Every NVIDIA GPU: name, memory, driver, clocks, power, temperature, and the other processes on it.

    First the one that torch calls `device`, as torch knows it where NVML does not; then the others in NVML's order.
    Empty where there is none, or no driver, or nvidia-ml-py is not installed. NVML's failures are never raised.
    """
    ran = _torch_gpu(device)
    with _nvml() as nvml:
        found = [(_uuid(nvml, handle), _gpu(nvml, handle)) for handle in _handles(nvml)]
    first = [gpu for uuid, gpu in found if ran and uuid == ran.uuid]
    if ran and not first:
        first = [{"name": ran.name, "memory_bytes": ran.memory_bytes}]
    return first + [gpu for _, gpu in found if gpu not in first]


class Watch:
    """How much of the machine other processes used between `Watch()` and `read()`: their noise is in every timing."""

    def __init__(self) -> None:
        self._wall_s, self._busy_s, self._own_s = time.monotonic(), _busy_cpu_s(), _own_cpu_s()
        self._gpu_processes = _gpu_processes()

    def read(self, device: str = "cpu") -> dict[str, Any]:
        """`others_cpu_share`: CPU seconds of other processes ÷ (seconds × cores); `others_on_gpu`: how many processes.

        Of GPUs only the one that torch calls `device` counts. Linux counts CPU time that the hypervisor gave to other
        guests as theirs (steal), and so does this.
        """
        elapsed = time.monotonic() - self._wall_s
        others = (_busy_cpu_s() - self._busy_s) - (_own_cpu_s() - self._own_s)
        share = others / (elapsed * (psutil.cpu_count() or 1)) if elapsed > 0 else 0.0
        own, ran = _own_processes(), _torch_gpu(device)
        now, before = (seen.get(ran.uuid, set()) if ran else set() for seen in (_gpu_processes(), self._gpu_processes))
        # In a container NVML gives numbers of the host, among which our own cannot be told: then only processes count
        # that were there before this one began to use the GPU.
        foreign = now - own if now & own else now & before
        return {"others_cpu_share": round(min(max(share, 0.0), 1.0), 3), "others_on_gpu": len(foreign)}


class _TorchGpu(NamedTuple):
    uuid: str  # as NVML writes it, without its prefix
    name: str
    memory_bytes: int


def _torch_gpu(device: str) -> _TorchGpu | None:
    """The GPU that torch calls so, which CUDA_VISIBLE_DEVICES may have chosen from others; None for a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    index = int(device.partition(":")[2] or torch.cuda.current_device())
    found = torch.cuda.get_device_properties(index)
    return _TorchGpu(str(getattr(found, "uuid", "")), found.name, found.total_memory)


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    def read(name: str, *arguments: Any) -> Any:
        return _ask(nvml, name, handle, *arguments)

    def scaled(value: float | None, factor: float) -> float | None:
        return None if value is None else round(value * factor, 1)

    memory = read("nvmlDeviceGetMemoryInfo")
    own = _own_processes()
    return {
        "name": _text(read("nvmlDeviceGetName")),
        "driver": _text(_ask(nvml, "nvmlSystemGetDriverVersion")),
        "memory_bytes": memory and memory.total,
        "clock_mhz": read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        "max_clock_mhz": read("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        "power_w": scaled(read("nvmlDeviceGetPowerUsage"), 1e-3),
        "power_limit_w": scaled(read("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
        "temperature_c": read("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        "other_processes": [
            {"pid": process.pid, "memory_bytes": process.usedGpuMemory}
            for process in _running(nvml, handle)
            if process.pid not in own
        ],
    }


def _gpu_processes() -> dict[str, set[int]]:
    """Numbers of the processes that compute on each GPU, as NVML gives them, by the GPU's UUID."""
    with _nvml() as nvml:
        return {_uuid(nvml, handle): {each.pid for each in _running(nvml, handle)} for handle in _handles(nvml)}


def _handles(nvml: Any) -> list[Any]:
    """NVML's GPUs, but for those that it cannot open (of another user, lost, in a container without their files)."""
    handles = (
        _ask(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(_ask(nvml, "nvmlDeviceGetCount") or 0)
    )
    return [handle for handle in handles if handle is not None]


def _uuid(nvml: Any, handle: Any) -> str:
    return (_text(_ask(nvml, "nvmlDeviceGetUUID", handle)) or "").removeprefix("GPU-")


def _running(nvml: Any, handle: Any) -> list[Any]:
    return _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or []


def _ask(nvml: Any, name: str, *arguments: Any) -> Any:
    """What NVML answers, or None: many cards, virtual GPUs and old drivers lack one reading or another."""
    try:
        return getattr(nvml, name)(*arguments)
    except Exception:  # noqa: BLE001 - a reading that is missing must not cost a run
        return None


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML's module, initialised, or None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no package, no driver, another version of it, no permission
        yield None
        return
    try:
        yield pynvml
    finally:
        _ask(pynvml, "nvmlShutdown")


def _busy_cpu_s() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    times = psutil.cpu_times()._asdict()
    return sum(times.get(kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


def _own_cpu_s() -> float:
    """CPU seconds of this process and all its children, those that have ended included."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _own_processes() -> set[int]:
    return {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

"""The machine that a run was made on, as plain data, and how much of it others used meanwhile. Never imports torch.

What identifies a person or a place (host name, user, paths, command lines of other processes) is left out.
"""

import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from optsd.measure import gpus

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
        "gpus": gpus.found(device),
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


class Watch:
    """How much of the machine other processes used between `Watch()` and `read()`: their noise is in every timing."""

    def __init__(self) -> None:
        self._wall_s, self._busy_s, self._own_s = time.monotonic(), _busy_cpu_s(), _own_cpu_s()
        self._gpu_processes, self._clock = gpus.processes(), gpus.Clock()

    def look(self, device: str = "cpu") -> None:
        """Call it while `device` works, as often as you like: reads the clock of a GPU, at most once a second."""
        self._clock.look(device)

    def read(self, device: str = "cpu") -> dict[str, Any]:
        """`others_cpu_share`: CPU seconds of other processes ÷ (seconds × cores); `others_on_gpu`: how many processes.

        Of GPUs only the one that torch calls `device` counts, with its `gpu_clock` where `look` read one. Linux counts
        CPU time that the hypervisor gave to other guests as theirs (steal), and so does this.
        """
        elapsed = time.monotonic() - self._wall_s
        others = (_busy_cpu_s() - self._busy_s) - (_own_cpu_s() - self._own_s)
        share = others / (elapsed * (psutil.cpu_count() or 1)) if elapsed > 0 else 0.0
        found = {
            "others_cpu_share": round(min(max(share, 0.0), 1.0), 3),
            "others_on_gpu": len(gpus.foreign(device, self._gpu_processes)),
        }
        clock = self._clock.read()
        return found | ({"gpu_clock": clock} if clock else {})


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


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

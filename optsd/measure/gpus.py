"""The machine's NVIDIA GPUs, by NVML: which one ran, how fast its clock was, and who else was on it.

torch numbers the GPUs that CUDA_VISIBLE_DEVICES leaves, in CUDA_DEVICE_ORDER; NVML numbers all of them, by their place
on the bus. A UUID means the same to both. Never imports torch; NVML's failures are never raised.
"""

import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import psutil

REASONS = {
    0x02: "clocks that were set",
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat",
    0x40: "heat",
    0x80: "power brake",
}
"""Why a GPU's clock is below its highest, as NVML's bits (`nvmlClocksEventReason…`); idleness is none of them."""

SECONDS_BETWEEN_LOOKS = 1.0


def found(device: str = "cpu") -> list[dict[str, Any]]:
    """Every NVIDIA GPU: name, memory, driver, clocks, power, temperature, and the other processes on it.

    First the one that torch calls `device`, by torch's name and memory where it is a slice (MIG) or NVML does not know
    it; then the others in NVML's order. Empty where there is none, or no driver, or nvidia-ml-py is not installed.
    """
    ran = _ran(device)
    with _nvml() as nvml:
        places = _places(nvml)
        mine = places.get(_uuid_of(ran, places))
        rest = [_describe(nvml, each) for each in places.values() if not each.is_slice and not _same_card(each, mine)]
        first = [_describe(nvml, mine)] if mine else []
    if ran and (mine is None or mine.is_slice):
        first = [{**(first[0] if first else {}), "name": ran.name, "memory_bytes": ran.memory_bytes}]
    return first + rest


def processes() -> dict[str, set[int]]:
    """Numbers of the processes that compute on each GPU and on each slice, as NVML gives them, by the UUID."""
    with _nvml() as nvml:
        return {uuid: _running(nvml, place) for uuid, place in _places(nvml).items()}


def foreign(device: str, before: dict[str, set[int]]) -> set[int]:
    """The other processes on the GPU that torch calls `device`, or on its slice; `before`: `processes()`, earlier."""
    ran = _ran(device)
    if ran is None:
        return set()
    with _nvml() as nvml:
        places = _places(nvml)
        uuid = _uuid_of(ran, places)
        now = _running(nvml, places[uuid]) if uuid in places else set()
    # In a container NVML gives numbers of the host, among which our own cannot be told: then only processes count
    # that were there before this one began to use the GPU.
    own = _own_processes()
    return now - own if now & own else now & before.get(uuid, set())


def joules(device: str) -> float | None:
    """What the card that torch calls `device` has used since its driver was loaded; None where it does not count.

    Nor does it count what one slice (MIG) of it uses.
    """
    with _nvml() as nvml:
        places = _places(nvml)
        place = places.get(_uuid_of(_ran(device), places))
        used = _ask(nvml, "nvmlDeviceGetTotalEnergyConsumption", place.card) if place and not place.is_slice else None
    return None if used is None else used / 1000


class Clock:
    """The clock of the GPU that works, read while it does, and what held it down meanwhile."""

    def __init__(self) -> None:
        self._readings: list[int] = []
        self._reasons: Counter[str] = Counter()
        self._highest: int | None = None
        self._last_s = -SECONDS_BETWEEN_LOOKS
        self._card: Any = None
        self._open: tuple[ExitStack, Any] | None = None

    def look(self, device: str) -> None:
        """Read it, unless that was done within the last second: one reading takes about a thousandth of one."""
        now = time.monotonic()
        if not device.startswith("cuda") or now - self._last_s < SECONDS_BETWEEN_LOOKS:
            return
        self._last_s = now
        if self._open is None:  # once: to open NVML takes as long as a step
            stack = ExitStack()
            self._open = stack, stack.enter_context(_nvml())
            places = _places(self._open[1])
            mine = places.get(_uuid_of(_ran(device), places))
            self._card = mine and mine.card
        nvml = self._open[1]
        if self._card is None:
            return
        mhz = _ask(nvml, "nvmlDeviceGetClockInfo", self._card, nvml.NVML_CLOCK_SM)
        if mhz is None:
            return
        self._highest = self._highest or _ask(nvml, "nvmlDeviceGetMaxClockInfo", self._card, nvml.NVML_CLOCK_SM)
        held = _ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", self._card) or 0
        self._readings.append(mhz)
        self._reasons.update({name for bit, name in REASONS.items() if held & bit})

    def read(self) -> dict[str, Any]:
        """`least`, `median` and `most` of `readings` in MHz, the `highest` possible, and the share `held_by` a reason.

        Empty where there is no reading.
        """
        if self._open:
            self._open[0].close()
            self._open = None
        if not self._readings:
            return {}
        count = len(self._readings)
        return {
            "least_mhz": min(self._readings),
            "median_mhz": round(statistics.median(self._readings)),
            "most_mhz": max(self._readings),
            "highest_mhz": self._highest,
            "readings": count,
            "held_by": {name: round(times / count, 2) for name, times in sorted(self._reasons.items())},
        }


class _Ran(NamedTuple):
    uuid: str  # without the kind before it
    name: str
    memory_bytes: int


def _ran(device: str) -> _Ran | None:
    """The GPU that torch calls so, which CUDA_VISIBLE_DEVICES may have chosen from others; None for a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    index = int(device.partition(":")[2] or torch.cuda.current_device())
    about = torch.cuda.get_device_properties(index)
    return _Ran(_bare(str(getattr(about, "uuid", ""))), about.name, about.total_memory)


class _Place(NamedTuple):
    card: Any  # NVML's handle of the whole card: clocks, power and driver are its
    handle: Any  # the card's or that of a slice: whose processes count
    is_slice: bool


def _places(nvml: Any) -> dict[str, _Place]:
    """NVML's GPUs and their slices by UUID, but for those that it cannot open (of another user, lost, not let in)."""
    places = {}
    for index in range(_ask(nvml, "nvmlDeviceGetCount") or 0):
        card = _ask(nvml, "nvmlDeviceGetHandleByIndex", index)
        if card is None:
            continue
        places[_uuid(nvml, card, f"card {index}")] = _Place(card, card, False)
        for number in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", card) or 0):
            part = _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", card, number)
            if part is not None:
                places[_uuid(nvml, part, f"card {index} slice {number}")] = _Place(card, part, True)
    return places


def _uuid_of(ran: _Ran | None, places: dict[str, _Place]) -> str:
    """The UUID of what ran among those places.

    Before CUDA 13 a slice has the UUID of its card. Then it is the one that CUDA_VISIBLE_DEVICES names, as a process
    can have only one, or the card's first.
    """
    if ran is None:
        return ""
    place = places.get(ran.uuid)
    if place is None or place.is_slice or " MIG " not in ran.name:
        return ran.uuid
    slices = [uuid for uuid, each in places.items() if each.is_slice and _same_card(each, place)]
    asked = _bare(os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip())
    return next((uuid for uuid in slices if asked and uuid.startswith(asked)), slices[0] if slices else ran.uuid)


def _same_card(place: _Place, other: _Place | None) -> bool:
    return other is not None and place.card is other.card


def _describe(nvml: Any, place: _Place) -> dict[str, Any]:
    def read(name: str, *arguments: Any) -> Any:
        return _ask(nvml, name, place.card, *arguments)

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
            for process in _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", place.handle) or []
            if process.pid not in own
        ],
    }


def _running(nvml: Any, place: _Place) -> set[int]:
    return {each.pid for each in _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", place.handle) or []}


def _own_processes() -> set[int]:
    return {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}


def _uuid(nvml: Any, handle: Any, otherwise: str) -> str:
    return _bare(_text(_ask(nvml, "nvmlDeviceGetUUID", handle)) or otherwise)


def _bare(uuid: str) -> str:
    return uuid.removeprefix("GPU-").removeprefix("MIG-")


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


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value

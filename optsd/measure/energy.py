"""Joules, by the counter of the chip that works: NVML's of a GPU, RAPL's of a CPU. Without a counter, no figure.

NVIDIA's sensors are read every 20 to 100 ms (Yang, Adamek & Armour, SC 2024), so nothing is read that lasts less
than `WINDOW_S`. It counts the whole card, or all packages of the CPU: idle power and other programs are in it. That is
why a variant is read beside the baseline. Watts of a data sheet are never multiplied with seconds here.
"""

import math
from collections.abc import Callable
from pathlib import Path

from optsd.errors import Unsupported
from optsd.measure import gpus

WINDOW_S = 2.0
POWERCAP = Path("/sys/class/powercap")

Reading = list[tuple[float, float]]
"""Joules of each counter, and where it begins at zero again."""


def joules_of_a_call(call: Callable[[], float], device: str) -> float:
    """The mean of as many calls as fill a window; `call` gives the seconds that it took. `device`: as torch names it.

    Raises Unsupported where nothing counts.
    """
    before, calls, passed_s = read(device), 0, 0.0
    while passed_s < WINDOW_S:
        passed_s += call()
        calls += 1
    return between(before, read(device)) / calls


def read(device: str) -> Reading:
    """What the counters of a device say now. Raises Unsupported where there is none, or it may not be read."""
    if not device.startswith("cuda"):
        return _packages()
    used = gpus.joules(device)
    if used is None:
        raise Unsupported(f"{device} has no counter of joules of its own", "NVML has one of whole cards since Volta")
    return [(used, math.inf)]


def between(before: Reading, after: Reading) -> float:
    """Joules that were used meanwhile; no counter may have begun again twice."""
    pairs = zip(before, after, strict=True)
    return sum(new - old + (end if new < old else 0.0) for (old, end), (new, _) in pairs)


def _packages() -> Reading:
    found = []
    for folder in sorted(POWERCAP.glob("*rapl:[0-9]*")):
        try:
            if not (folder / "name").read_text().startswith("package"):  # a part of one, or all of the machine
                continue
            found.append(tuple(int((folder / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj")))
        except PermissionError:
            raise Unsupported(
                f"{folder}/energy_uj may not be read", f"let yourself read it: sudo chmod a+r {POWERCAP}/*/energy_uj"
            ) from None
        except (OSError, ValueError):
            continue
    if not found:
        raise Unsupported("this CPU's joules are counted nowhere", f"RAPL shows them under {POWERCAP}, not in most VMs")
    return [(used, end) for used, end in found]

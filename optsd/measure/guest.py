"""Somebody's callable in a process of its own: it may crash or hang, and takes nobody's figures with it.

What it draws is checked and timed there; pictures and figures come back as bytes and JSON.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from optsd import subjects
from optsd.errors import BadInput, OptsdError, Unsupported
from optsd.measure.memory import PeakMemory, context, reset_peak, resident_bytes
from optsd.records import Workload
from optsd.subjects import Drawer

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Drawn:
    """Pictures (N×H×W×3, uint8) and the seconds of the call that gave them."""

    pictures: "np.ndarray"
    seconds: float


class Guest:
    """A callable that was loaded in its process. Raises OptsdError, naming it, for whatever it does wrong.

    An answer that takes longer than `timeout_s` ends the process; `broken` then has the error, by the subject's name.
    Of `device` (`cuda:1`) the process sees that GPU alone, which is `cuda` to it, as the workload says.
    """

    def __init__(
        self,
        subject: Drawer,
        workload: Workload,
        timeout_s: float,
        broken: dict[str, OptsdError] | None = None,
        device: str = "",
    ) -> None:
        self.subject, self.timeout_s = subject, timeout_s
        self.broken = {} if broken is None else broken
        start = context(workload.device)
        self._connection, theirs = start.Pipe()
        data = (subject.name, subject.target, subject.folder, asdict(workload), device)
        self._process = start.Process(target=_serve, args=(theirs, *data), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer("loading")
        except OptsdError:
            self.close()
            raise

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> Drawn:
        """Draw the prompts, in one call of the callable."""
        import numpy as np

        answer = self._ask("drawing", do="draw", prompts=[*prompts], seeds=[*seeds])
        pixels = self._receive("drawing")
        return Drawn(np.frombuffer(pixels, np.uint8).reshape(answer["shape"]), answer["seconds"])

    def tells(self) -> tuple[int | None, dict[str, Any]]:
        """Bytes of its weights, or None, and its proof."""
        answer = self._ask("telling of itself", do="tell")
        return answer["weight_bytes"], answer["proof"]

    def peak(self) -> PeakMemory | None:
        """The peak of its process since it was loaded; None on a GPU whose memory torch does not know."""
        answer = self._ask("telling its memory", do="peak")
        return PeakMemory(answer["peak"], answer["process"], ()) if answer["peak"] else None

    def close(self) -> None:
        self._connection.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _ask(self, doing: str, **question: Any) -> dict[str, Any]:
        if self.subject.name in self.broken:
            raise self.broken[self.subject.name]
        with suppress(OSError):  # it died meanwhile: there will be no answer
            self._connection.send_bytes(json.dumps(question).encode())
        return self._answer(doing)

    def _answer(self, doing: str) -> dict[str, Any]:
        answer = json.loads(self._receive(doing))
        if "problem" in answer:
            raise OptsdError(f"{self.subject.name}, {doing}: {answer['problem']}", answer["remedy"])
        return answer

    def _receive(self, doing: str) -> bytes:
        name = self.subject.name
        try:
            if self._connection.poll(self.timeout_s):
                return self._connection.recv_bytes()
            error = OptsdError(
                f"{name}, {doing}: no answer in {self.timeout_s:g} s",
                "see where it hangs, or give it longer with --subject-timeout",
            )
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            error = OptsdError(f"{name}, {doing}: its process died (exit code {code})", "see its output above")
        self.broken[name] = error
        self.close()
        raise error


def _serve(connection: Any, name: str, target: str, folder: Any, workload: dict[str, Any], device: str = "") -> None:
    """In the process: load the callable, then do what is asked until nobody asks any more."""
    see_only(device)
    work = Workload(**workload)
    start = resident_bytes() if sys.platform == "linux" else 0
    draw: Any = None

    def load() -> dict[str, Any]:
        nonlocal draw
        draw = Drawer(name, target, folder).load(work)
        if sys.platform == "linux":
            with suppress(Unsupported) if work.device != "cpu" else nullcontext():
                reset_peak()
        return {}

    if not _say(connection, load):
        return
    while True:
        try:
            question = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if question["do"] == "draw":
            _draw(connection, draw, work, question["prompts"], question["seeds"])
        elif question["do"] == "tell":
            _say(connection, lambda: {"weight_bytes": subjects.weight_bytes(draw), "proof": subjects.proof(draw)})
        else:
            _say(connection, lambda: _peak(work, start))


def see_only(device: str) -> None:
    """Let CUDA, before its first use, see nothing but the GPU that torch calls so, `cuda:1`; any other name is free."""
    kind, _, index = device.partition(":")
    if kind == "cuda" and index:
        seen = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(index)] if seen else index


def _draw(connection: Any, draw: Any, work: Workload, prompts: list[str], seeds: list[int]) -> None:
    pictures: Any = None

    def timed() -> dict[str, Any]:
        nonlocal pictures
        _synchronize()
        began = time.perf_counter()
        made = draw(prompts, seeds, work)
        _synchronize()
        seconds = time.perf_counter() - began
        pictures = subjects.checked(made, len(prompts), work.height, work.width)
        return {"seconds": seconds, "shape": pictures.shape}

    if _say(connection, timed):
        connection.send_bytes(pictures.tobytes())


def _peak(work: Workload, start: int) -> dict[str, Any]:
    process = resident_bytes("VmHWM")
    torch = sys.modules.get("torch")
    if work.device == "cpu":
        return {"peak": process - start, "process": process}
    known = torch is not None and torch.cuda.is_initialized()
    return {"peak": torch.cuda.max_memory_allocated() if known and torch else 0, "process": process}


def _synchronize() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _say(connection: Any, do: Callable[[], dict[str, Any]]) -> bool:
    """Send what is found out, or what went wrong."""
    try:
        connection.send_bytes(json.dumps(do()).encode())
    except BadInput as error:
        connection.send_bytes(json.dumps({"problem": error.problem, "remedy": error.remedy}).encode())
    except BaseException as error:  # noqa: BLE001 - whatever it is, who asks must hear of it
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
        remedy = "see the traceback above, and mend it"
        connection.send_bytes(json.dumps({"problem": said, "remedy": remedy}).encode())
    else:
        return True
    return False

"""Peak memory of one variant, in a fresh process and a pass of its own.

On CUDA the peak is `torch.cuda.max_memory_allocated`: what tensors hold, without CUDA's context (some hundred MiB) and
what torch's allocator keeps for later. On a CPU it is the process's peak resident memory above what it
held before the model was loaded: Linux keeps it as VmHWM and resets it when 5 is written to /proc/self/clear_refs.
"""

import ctypes
import gc
import multiprocessing
import sys
import traceback
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optsd.errors import OptsdError, Unsupported
from optsd.records import Workload

MOST_STEPS = 4
"""Denoising steps of a memory pass: its peak does not grow with their number."""


@dataclass(frozen=True)
class PeakMemory:
    """Bytes. `peak` is that of the tensors on CUDA and the process's, above its start, on a CPU."""

    peak: int
    process: int  # the process's whole peak, libraries included; on CUDA since its start, where it cannot be reset
    timeline: tuple[int, ...]  # memory in use after each denoising step and at the end, as `peak` counts it


def peak_memory(model: str, variant: str, device: str, dtype: str, workload: Workload) -> PeakMemory:
    """Run one batch of the variant in a new process and read its peak. Raises OptsdError where that fails."""
    start = context(device)
    receiver, sender = start.Pipe(duplex=False)
    process = start.Process(target=_child, args=(sender, model, variant, device, dtype, workload), daemon=True)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise OptsdError(
            f"the process that measured {variant}'s memory died (exit code {process.exitcode})",
            "free memory, or choose a smaller --size or --batch-size",
        ) from None
    process.join()
    if isinstance(answer, PeakMemory):
        return answer
    kind, problem, remedy = answer
    raise (Unsupported if kind == "Unsupported" else OptsdError)(problem, remedy)


def context(device: str) -> Any:
    """How processes begin that are measured: with the libraries imported, and without a model or a GPU's memory."""
    # A fork server imports the libraries once; each measurement is a fork of it that has loaded no model yet. Importing
    # diffusers asks for CUDA's devices, and a process that has asked cannot be forked into one that uses them.
    made: Any = multiprocessing.get_context("spawn" if device.startswith("cuda") else "forkserver")
    made.set_forkserver_preload(["torch", "diffusers", "transformers", "optsd.models", "optsd.measure.run"])
    _give_back_device_memory()
    return made


def resident_bytes(key: str = "VmRSS") -> int:
    """The process's resident memory now (`VmRSS`) or at its peak (`VmHWM`), in bytes. Linux only."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        raise Unsupported("process memory is read from /proc, which this system lacks", "measure on Linux") from None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def reset_peak() -> None:
    """Make `VmHWM` the memory in use now, after giving freed memory back to the system. Raises Unsupported."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc; musl has no such call and keeps little
            libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        raise Unsupported(
            "a process cannot reset its peak here: /proc/self/clear_refs cannot be written",
            "measure memory outside of this sandbox",
        ) from None


def _give_back_device_memory() -> None:
    """What this process keeps of a GPU for later would be missing in the one that is measured."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _child(sender, model: str, variant: str, device: str, dtype: str, workload: Workload) -> None:
    answer: PeakMemory | tuple[str, str, str]
    try:
        answer = _measure(model, variant, device, dtype, workload)
    except OptsdError as error:
        answer = (type(error).__name__, error.problem, error.remedy)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        traceback.print_exc()
        answer = (type(error).__name__, f"measuring {variant}'s memory failed ({error!r})", "see the traceback above")
    sender.send(answer)
    sender.close()


def _measure(model: str, variant: str, device: str, dtype: str, workload: Workload) -> PeakMemory:
    import torch

    from optsd.anatomy import denoiser
    from optsd.measure.pictures import check_pictures
    from optsd.measure.run import run_batch, timing_prompts
    from optsd.measure.seeds import fix_seeds
    from optsd.models import build

    fix_seeds()
    start = resident_bytes()
    pipe, _patch = build(model, variant, device, dtype)
    cuda = pipe.device.type == "cuda"
    timeline: list[int] = []

    def note(*_) -> None:
        timeline.append(torch.cuda.memory_allocated(pipe.device) if cuda else resident_bytes() - start)

    handle = denoiser(pipe).register_forward_hook(note)
    short = replace(workload, steps=min(workload.steps, MOST_STEPS))
    # On CUDA it decides nothing but `process`.
    with suppress(Unsupported) if cuda else nullcontext():
        reset_peak()
    if cuda:
        torch.cuda.reset_peak_memory_stats(pipe.device)
    drawn = run_batch(pipe, short, timing_prompts(workload.model, workload.batch_size), output_type="np")
    note()
    handle.remove()
    process = resident_bytes("VmHWM")
    peak = torch.cuda.max_memory_allocated(pipe.device) if cuda else process - start
    check_pictures(drawn, variant)
    return PeakMemory(peak, process, tuple(timeline))

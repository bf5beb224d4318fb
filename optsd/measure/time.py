"""Seconds: of a whole batch, and by stage. The device is idle before the clock starts and when it stops."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


def synchronize(device: "torch.device") -> None:
    """Wait until the device has done all that was asked of it. A CPU always has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: "torch.device") -> float:
    """Wall-clock seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


@contextmanager
def stage_times(pipe: "DiffusionPipeline") -> Iterator[dict[str, list[float]]]:
    """Time every call of the text encoders, the denoiser and the decoder while the context is open.

    Gives `{"text_encoder_s": [...], "unet_step_s": [...], "vae_decode_s": [...]}`, complete when the context closes;
    where several encoders read a prompt, that is one reading of all of them. It synchronises the device around each
    call, which costs a little: run it in a pass of its own, not in the one that times the whole.
    """
    from optsd import anatomy
    from optsd.patching import Change, Interposed, Replaced

    times: dict[str, list[float]] = {"text_encoder_s": [], "unet_step_s": [], "vae_decode_s": []}
    clock = partial(partial, _timed)
    changes: list[Change] = []
    encoders: list[list[float]] = []
    try:
        for encoder in anatomy.text_encoders(pipe).values():
            encoders.append([])
            changes.append(Interposed(encoder, "", clock(encoders[-1], pipe.device)))
        changes.append(Interposed(anatomy.denoiser(pipe), "", clock(times["unet_step_s"], pipe.device)))
        if (decoder := anatomy.decoder(pipe)) is not None:
            decode: Any = clock(times["vae_decode_s"], pipe.device, decoder.decode)
            decode.__wrapped__ = decoder.decode  # so that a technique which put it there knows itself on
            changes.append(Replaced(decoder, "decode", decode))
        yield times
    finally:
        for change in reversed(changes):
            change.revert()
        times["text_encoder_s"] += map(sum, zip_longest(*encoders, fillvalue=0.0))


def _timed(readings: list[float], device: "torch.device", call: Callable, *arguments: Any, **options: Any) -> Any:
    result = None

    def run() -> None:
        nonlocal result
        result = call(*arguments, **options)

    readings.append(seconds(run, device))
    return result

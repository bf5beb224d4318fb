"""Seconds: of a whole batch, and by stage. The device is idle before the clock starts and when it stops."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline


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
def stage_times(pipe: "StableDiffusionPipeline") -> Iterator[dict[str, list[float]]]:
    """Time every call of the text encoder, the UNet and the VAE's decoder while the context is open.

    Gives `{"text_encoder_s": [...], "unet_step_s": [...], "vae_decode_s": [...]}`. It synchronises the device around
    each call, which costs a little: run it in a pass of its own, not in the one that times the whole.
    """
    from optsd.anatomy import denoiser
    from optsd.patching import Change, Interposed, Replaced

    times: dict[str, list[float]] = {"text_encoder_s": [], "unet_step_s": [], "vae_decode_s": []}
    changes: list[Change] = [
        Interposed(pipe.text_encoder, "", partial(_timed, times["text_encoder_s"], pipe.device)),
        Interposed(denoiser(pipe), "", partial(_timed, times["unet_step_s"], pipe.device)),
        Replaced(pipe.vae, "decode", partial(_timed, times["vae_decode_s"], pipe.device, pipe.vae.decode)),
    ]
    try:
        yield times
    finally:
        for change in reversed(changes):
            change.revert()


def _timed(readings: list[float], device: "torch.device", call: Callable, *arguments: Any, **options: Any) -> Any:
    result = None

    def run() -> None:
        nonlocal result
        result = call(*arguments, **options)

    readings.append(seconds(run, device))
    return result

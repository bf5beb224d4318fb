"""Seconds: of a whole batch, and by stage. The device is idle before the clock starts and when it stops."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING

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
    times: dict[str, list[float]] = {"text_encoder_s": [], "unet_step_s": [], "vae_decode_s": []}
    watched = (
        (pipe.text_encoder, "forward", "text_encoder_s"),
        (pipe.unet, "forward", "unet_step_s"),
        (pipe.vae, "decode", "vae_decode_s"),
    )
    # Shadowing the method on the instance leaves the class, and other pipelines, alone; a technique may have shadowed
    # it before, so what was there on the instance is put back.
    before = [(module, name, module.__dict__.get(name)) for module, name, _ in watched]
    for module, name, key in watched:
        setattr(module, name, _timed(getattr(module, name), times[key], pipe.device))
    try:
        yield times
    finally:
        for module, name, shadow in before:
            if shadow is None:
                delattr(module, name)
            else:
                setattr(module, name, shadow)


def _timed(call: Callable, readings: list[float], device: "torch.device") -> Callable:
    @wraps(call)
    def timed(*arguments, **options):
        result = None

        def run() -> None:
            nonlocal result
            result = call(*arguments, **options)

        readings.append(seconds(run, device))
        return result

    return timed

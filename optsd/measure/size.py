"""Bytes of weights: in memory, and on disk as safetensors."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import nn

COMPONENTS = ("unet", "text_encoder", "vae")


def weight_bytes(pipe: "StableDiffusionPipeline") -> int:
    """Bytes that the parameters and buffers of the UNet, the text encoder and the VAE hold in memory."""
    return sum(module_bytes(getattr(pipe, name)) for name in COMPONENTS)


def module_bytes(module: "nn.Module") -> int:
    """Bytes of a module's parameters and buffers; memory that two of them share is counted once.

    A tensor in oneDNN's own order has no address and counts by its size; one that is made of others counts as those.
    """
    sizes: dict[int, int] = {}
    waiting = [*module.parameters(), *module.buffers()]
    while waiting:
        tensor = waiting.pop()
        if hasattr(tensor, "__tensor_flatten__"):
            waiting += [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        elif tensor.is_mkldnn:
            sizes[id(tensor)] = tensor.numel() * tensor.itemsize
        else:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def disk_bytes(pipe: "StableDiffusionPipeline") -> int:
    """Bytes of the safetensors files that saving the pipeline writes. Writes them to a temporary folder."""
    from optsd import quantization

    with tempfile.TemporaryDirectory(prefix="optsd-size-") as folder:
        quantization.save(pipe, Path(folder))
        return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))

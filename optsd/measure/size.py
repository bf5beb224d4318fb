"""Bytes of weights: in memory, and on disk as safetensors."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn


def weight_bytes(pipe: "DiffusionPipeline") -> int:
    """Bytes that the parameters and buffers of the denoiser, the text encoders and the decoder hold in memory."""
    from optsd import anatomy

    return module_bytes(*anatomy.networks(pipe).values())


def module_bytes(*modules: "nn.Module") -> int:
    """Bytes of modules' parameters and buffers; memory that two of them share is counted once.

    A tensor in oneDNN's own order has no address and counts by its size; one that is made of others counts as those.
    """
    sizes: dict[int, int] = {}
    waiting = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
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


def disk_bytes(pipe: "DiffusionPipeline") -> int:
    """Bytes of the safetensors files that saving the pipeline writes. Writes them to a temporary folder."""
    from optsd import quantization

    with tempfile.TemporaryDirectory(prefix="optsd-size-") as folder:
        quantization.save(pipe, Path(folder))
        return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))

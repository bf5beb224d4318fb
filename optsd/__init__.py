"""OptSD: optimizations for diffusers pipelines that are really applied, and measured.

    import optsd
    pipe = optsd.load("shapes")
    patch = optsd.apply(pipe, "int8+flash")
    pipe("a small red circle on a beige background").images[0]

Importing this package does not import torch; `load` and `apply` do.
"""

from os import PathLike, fspath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from optsd.patching import Patch

__version__ = "0.1.0"
__all__ = ["apply", "load", "patches"]


def load(
    model: "str | PathLike[str]",
    device: "str | torch.device" = "auto",
    dtype: "str | torch.dtype" = "auto",
    *,
    torch_dtype: "str | torch.dtype | None" = None,
    variant: str = "",
) -> "DiffusionPipeline":
    """A diffusers pipeline by name: `shapes`, `sd15`, `sdxl-random`, a folder, a .safetensors checkpoint, or a hub id.

    It is of the class that the model names. `device`: auto, cpu, cuda or cuda:N, or a `torch.device`. `dtype`: auto
    (float16 on CUDA, else float32), float32, float16, bfloat16, or a `torch.dtype`; `torch_dtype`, as diffusers once
    called it, is the same. `variant`: applied to it as by `apply`; `tuned` is the one that `optsd tune` has found for
    this model on this machine, in the folder `expected/tuned`. Raises NotFound or BadInput, with the remedy, before
    anything large is read.
    """
    from optsd.models import load

    number_type = dtype if torch_dtype is None else torch_dtype
    if variant == "tuned":
        from optsd.tune.answer import tuned

        return tuned(fspath(model), device, number_type)
    pipe = load(fspath(model), device, number_type)
    if variant:
        apply(pipe, variant)
    return pipe


def apply(pipe: "DiffusionPipeline", variant: str) -> "Patch":
    """Apply a variant such as `int8+flash` to any Stable Diffusion pipeline, in place.

    Raises Unsupported when it cannot work there, NothingMatched when it would change nothing.
    """
    from optsd.variants import parse

    return parse(variant).apply(pipe)


def patches(pipe: "DiffusionPipeline") -> "list[Patch]":
    """What has been applied to this pipeline, or to the one that it is a copy of; the last one can be undone first."""
    from optsd.patching import patches

    return patches(pipe)

"""What is measured: the shipped models, SD v1.5, any diffusers folder, checkpoint or hub id.

`check` finds what can be found wrong without importing torch; `load` gives the pipeline; `build` applies a variant.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optsd.errors import BadInput, NotFound
from optsd.files import home
from optsd.models import folders, shapes
from optsd.models.folders import SD15_HUB_ID
from optsd.models.published import RANDOM, SIDES
from optsd.quiet import import_diffusers, without_progress_bars
from optsd.workloads import device_name, dtype_name

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from optsd.patching import Patch

NAMES = (*shapes.PIPELINES, "sd15", *RANDOM)


@dataclass(frozen=True)
class Source:
    """Where a model comes from: exactly one of a path (folder or file), a hub id, or random weights (neither)."""

    name: str  # as records have it: no place and no person is in it
    location: str  # as `check` and `load` take it, from any directory
    path: Path | None = None
    hub_id: str | None = None
    size: tuple[int, int] = (512, 512)  # width and height in pixels, unless the user says otherwise
    dtype: str = ""  # of a folder that `optsd.quantization.save` wrote: the only one that it has


def default_preset(model: str) -> str:
    """`quick` for the shipped models; the guide's experiment for every other one."""
    return "quick" if model in shapes.PIPELINES else "guide"


def check(model: str) -> Source:
    """Find a model by name and look at its files, not at its weights. Imports no torch.

    Raises NotFound or BadInput for an unknown name, a missing, truncated or pickled weight file.
    """
    if model in shapes.PIPELINES:
        folder = shapes.PIPELINES[model]
        if not folder.is_dir():
            raise NotFound(
                f"the shipped model's weights are not in {folder}",
                "make them with: python -m optsd.models.shapes.train --export",
            )
        return _on_disk(folder, model)
    if model in RANDOM:
        return Source(model, model, size=(SIDES[RANDOM[model]],) * 2)
    if model == "sd15":
        folder = home() / "models" / "sd15"
        return _on_disk(folder, model) if folder.is_dir() else Source(model, model, hub_id=SD15_HUB_ID)
    path = folders.path_of(model)
    if path and path.exists():
        return _on_disk(path.resolve())
    if not path and folders.is_hub_id(model):
        return Source(model, model, hub_id=model, size=folders.hub_size(model))
    raise NotFound(
        f"no model {model!r}",
        f"use {', '.join(NAMES)}, a diffusers folder, a .safetensors checkpoint, or a hub id such as owner/name",
    )


def _on_disk(path: Path, name: str = "") -> Source:
    location = name or str(path)
    if path.is_dir():
        folders.check_folder(path)
        return Source(
            name or folders.label(path), location, path, size=folders.size(path), dtype=folders.saved_dtype(path)
        )
    folders.check_file(path)
    return Source(folders.label(path), location, path, size=folders.file_size(path))


def load(
    model: str, device: "str | torch.device" = "auto", dtype: "str | torch.dtype" = "auto", text_to_image: bool = False
) -> "DiffusionPipeline":
    """The pipeline of that name, in evaluation mode on the device. See `optsd.load`.

    `text_to_image`: of an image-to-image or inpainting model, the pipeline that draws from text alone. A folder that
    `optsd.quantization.save` wrote keeps its own types: raises BadInput where another is asked for.
    """
    source = check(model)
    place = resolve_device(device)
    number_type = resolve_dtype(dtype, place, source)
    import_diffusers()
    with without_progress_bars():
        if source.dtype:
            from optsd import quantization

            pipe = quantization.load(source.path or source.location, str(place))
        elif source.name in RANDOM:
            from optsd.models import published

            pipe = published.random(RANDOM[source.name], number_type, place)
        else:
            from optsd.models import pipelines

            pipe = pipelines.load(source.path or str(source.hub_id), number_type, text_to_image)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def build(
    model: str, variant: str, device: "str | torch.device" = "auto", dtype: "str | torch.dtype" = "auto"
) -> "tuple[DiffusionPipeline, Patch]":
    """A pipeline loaded afresh, with a variant applied as the benches want it: eager attention unless it names one.

    It draws from text alone: raises BadInput for a model that cannot.
    """
    from optsd.variants import against_eager

    pipe = load(model, device, dtype, text_to_image=True)
    return pipe, against_eager(variant).apply(pipe)


def resolve_device(device: "str | torch.device") -> "torch.device":
    """auto, cpu, cuda or cuda:N as a torch device. Raises BadInput where there is no such device."""
    name = device_name(device)
    kind, _, index = name.partition(":")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        return torch.device("cuda" if count else "cpu")
    if kind == "cuda" and int(index or 0) >= count:
        raise BadInput(f"no device {name!r}: torch sees {count} CUDA devices", "use --device cpu, or fix the driver")
    return torch.device(name)


def resolve_dtype(dtype: "str | torch.dtype", device: "torch.device", source: Source | None = None) -> "torch.dtype":
    """auto is the guide's: float16 on CUDA, float32 on a CPU; of a quantized folder, the type that it was saved in."""
    import torch

    name = dtype_name(dtype)
    saved = source.dtype if source else ""
    if source and saved and name not in ("auto", saved):
        raise BadInput(f"{source.location} is quantized, and computes in {saved}", "leave out the dtype")
    if name == "auto":
        name = saved or ("float16" if device.type == "cuda" else "float32")
    return getattr(torch, name)

"""What is measured: the shipped model, SD v1.5, any diffusers folder or hub id.

`check` finds what can be found wrong without importing torch; `load` gives the pipeline; `build` applies a variant.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optsd.errors import BadInput, NotFound
from optsd.files import home
from optsd.models import shapes

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from optsd.patching import Patch

SD15_HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
QUANTIZED = "optsd_quantization.json"
"""The file by which a folder that `optsd.quantization.save` wrote is known."""
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: exactly one of a folder, a hub id, or seeded random weights (neither)."""

    name: str
    folder: Path | None = None
    hub_id: str | None = None
    size: int = 512  # pixels, unless the user says otherwise


def check(model: str) -> Source:
    """Find a model by name and look at its files, not at its weights. Imports no torch.

    Raises NotFound or BadInput for an unknown name, a missing, truncated or pickled weight file.
    """
    if model == "shapes":
        folder = shapes.WEIGHTS / "pipeline"
        if not folder.is_dir():
            raise NotFound(
                f"the shipped model's weights are not in {folder}",
                "make them with: python -m optsd.models.shapes.train --export",
            )
        check_folder(folder)
        return Source(model, folder=folder, size=64)
    if model == "sd15-random":
        return Source(model)
    if model == "sd15" and not (home() / "models" / "sd15").is_dir():
        return Source(model, hub_id=SD15_HUB_ID)
    folder = home() / "models" / "sd15" if model == "sd15" else Path(model).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return Source(model, folder=folder, size=_default_size(folder))
    parts = model.split("/")
    if len(parts) == 2 and all(parts) and not model.startswith((".", "~")):
        return Source(model, hub_id=model)
    raise NotFound(
        f"no model {model!r}", "use shapes, sd15, sd15-random, a diffusers folder, or a hub id such as owner/name"
    )


def check_folder(folder: Path) -> None:
    """Every component of a diffusers folder has whole safetensors weights, and none of its own code is needed."""
    from safetensors import SafetensorError, safe_open

    index = _read_json(folder / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise BadInput(
            f"{folder}/model_index.json asks for a pipeline class of its own code", "use a model of a diffusers class"
        )
    for component, kind in index.items():
        if component.startswith("_") or not isinstance(kind, list) or kind[0] is None:
            continue
        if kind[0] not in ("diffusers", "transformers", "stable_diffusion"):
            raise BadInput(
                f"{folder}/model_index.json takes {component!r} from {kind[0]!r}, code that would have to be trusted",
                "use a model whose components are classes of diffusers and transformers",
            )
        part = folder / component
        if not component.isidentifier() or not part.is_dir():
            raise NotFound(f"{folder} has no folder {component!r}", "download the model again, whole")
        if any(word in str(kind[1]) for word in ("Tokenizer", "Scheduler", "Extractor", "ImageProcessor")):
            continue
        _read_json(part / "config.json")
        files = sorted(part.glob("*.safetensors"))
        pickled = sorted(path.name for suffix in ("bin", "ckpt", "pt", "pth") for path in part.glob(f"*.{suffix}"))
        if not files and pickled:
            raise BadInput(
                f"{part}/{pickled[0]} is a pickle, which can run any code when it is loaded",
                "convert it to safetensors, or download the model's safetensors weights",
            )
        expected = {name for sharded in part.glob("*.safetensors.index.json") for name in _shards(sharded)}
        missing = sorted(expected - {file.name for file in files})
        if not files or missing:
            raise NotFound(
                f"{part} lacks its weights ({(missing or ['*.safetensors'])[0]})", "download the model again"
            )
        for file in files:
            try:
                with safe_open(file, "np"):
                    pass
            except (SafetensorError, OSError) as error:
                raise BadInput(f"{file} is damaged or truncated ({error})", "download it again") from error


def load(model: str, device: str = "auto", dtype: str = "auto") -> "StableDiffusionPipeline":
    """The pipeline of that name, in evaluation mode on the device. See `optsd.load`.

    A folder that `optsd.quantization.save` wrote keeps its own types: raises BadInput where another is asked for.
    """
    source = check(model)
    place = resolve_device(device)
    number_type = resolve_dtype(dtype, place)
    import diffusers

    if source.folder and (source.folder / QUANTIZED).is_file():
        from optsd import quantization

        if dtype != "auto":
            raise BadInput(f"{source.folder} is quantized: its types are as it was saved", "leave out the dtype")
        pipe = quantization.load(source.folder, str(place))
    elif source.name == "sd15-random":
        from optsd.models import sd15

        pipe = sd15.random(number_type)
    else:
        # The safety checker is no part of what is measured, and blanks pictures.
        options = {"dtype": number_type, "use_safetensors": True, "safety_checker": None}
        try:
            pipe = diffusers.StableDiffusionPipeline.from_pretrained(
                source.folder or source.hub_id, local_files_only=source.folder is not None, **options
            )
        except (OSError, ValueError) as error:
            where = home() / "models" / "sd15"
            remedy = f"put the diffusers folder at {where} or give its path" if source.hub_id else "check the folder"
            raise NotFound(f"cannot load {source.folder or source.hub_id} ({_first_line(error)})", remedy) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def build(
    model: str, variant: str, device: str = "auto", dtype: str = "auto"
) -> "tuple[StableDiffusionPipeline, Patch]":
    """A pipeline loaded afresh, with a variant applied as the benches want it: eager attention unless it names one."""
    from optsd.variants import against_eager

    pipe = load(model, device, dtype)
    return pipe, against_eager(variant).apply(pipe)


def resolve_device(device: str) -> "torch.device":
    """auto, cpu, cuda or cuda:N as a torch device. Raises BadInput where there is no such device."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        raise BadInput(f"unknown device {device!r}", "use auto, cpu, cuda or cuda:N")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        return torch.device("cuda" if count else "cpu")
    if kind == "cuda" and int(index or 0) >= count:
        raise BadInput(f"no device {device!r}: torch sees {count} CUDA devices", "use --device cpu, or fix the driver")
    return torch.device(device)


def resolve_dtype(dtype: str, device: "torch.device") -> "torch.dtype":
    """auto is the guide's: float16 on CUDA, float32 on a CPU."""
    import torch

    if dtype == "auto":
        dtype = "float16" if device.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise BadInput(f"unknown dtype {dtype!r}", f"use auto, {', '.join(DTYPES)}")
    return getattr(torch, dtype)


def _default_size(folder: Path) -> int:
    """The side of a picture, in pixels, that the model was trained for: latents times the autoencoder's factor."""
    unet, vae = _read_json(folder / "unet" / "config.json"), _read_json(folder / "vae" / "config.json")
    return int(unet.get("sample_size") or 64) * 2 ** (len(vae.get("block_out_channels", [0] * 4)) - 1)


def _shards(index: Path) -> set[str]:
    return set(_read_json(index).get("weight_map", {}).values())


def _read_json(file: Path) -> dict:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{file} is missing", "give a whole diffusers folder") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read ({_first_line(error)})", "download it again") from error
    if not isinstance(data, dict):
        raise BadInput(f"{file} is no JSON object", "download it again")
    return data


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__

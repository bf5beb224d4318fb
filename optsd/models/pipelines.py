"""Pipelines from files: the class that a model names, its weights in the wanted type, nothing of its own code."""

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
from diffusers.pipelines import auto_pipeline

from optsd import anatomy
from optsd.errors import BadInput, NotFound
from optsd.files import home
from optsd.models import folders
from optsd.models.folders import SD15_HUB_ID

if TYPE_CHECKING:
    import torch

OTHER_MEDIA = ("frame", "video", "audio")
"""In the name of an argument, they tell a pipeline that makes something else than pictures."""
TASKS = (
    auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
)


def load(source: Path | str, dtype: "torch.dtype", text_to_image: bool = False) -> Any:
    """The pipeline of a diffusers folder, a single-file checkpoint or a hub id, on the CPU.

    It is of the class that the model names or, with `text_to_image`, of the one that draws from text alone with the
    same parts. Raises NotFound or BadInput.
    """
    try:
        if isinstance(source, Path) and source.is_file():
            return _from_file(source, dtype, text_to_image)
        index = diffusers.DiffusionPipeline.load_config(source, local_files_only=isinstance(source, Path))
        kind = pipeline_class(index, str(source), text_to_image)
        # Pictures are drawn without these, and a safety checker would blank some.
        options: dict[str, Any] = _left_out(kind, index)
        if isinstance(source, Path):
            options |= _variants(source, dtype)
        pipe = kind.from_pretrained(
            source, dtype=dtype, use_safetensors=True, local_files_only=isinstance(source, Path), **options
        )
    except (OSError, ValueError, TypeError, IndexError) as error:
        remedy = "check the folder" if isinstance(source, Path) else "download it, and give its folder"
        if source == SD15_HUB_ID:
            remedy = f"put the diffusers folder at {home() / 'models' / 'sd15'} or give its path"
        raise NotFound(f"cannot load {source} ({_first_line(error)})", remedy) from error
    if text_to_image:
        _check_channels(pipe, str(source))
    return pipe


def pipeline_class(index: dict[str, Any], source: str, text_to_image: bool = False) -> Any:
    """The class that a `model_index.json` names, or its counterpart that draws pictures from text alone.

    Raises BadInput for a class that diffusers lacks, one that makes no pictures, and one without a counterpart.
    """
    name = str(index.get("_class_name"))
    kind = getattr(diffusers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise BadInput(
            f"{source} asks for the pipeline class {name}, which diffusers {diffusers.__version__} lacks",
            "install the version that has it, or use another model",
        )
    takes = inspect.signature(kind.__call__).parameters
    if any(word in argument for argument in takes for word in OTHER_MEDIA):
        raise BadInput(f"{source} is a {name}, which makes no single pictures", "use a model of text to image")
    if not text_to_image:
        return kind
    known = next((key for table in TASKS for key, each in table.items() if each.__name__ == name), None)
    found = TASKS[0].get(known) if known else kind if "height" in takes and "image" not in takes else None
    if found is None or "Control" in found.__name__:
        needs = "a control picture" if found else "more than text"
        raise BadInput(
            f"{source} is a {name}, which draws from {needs}", "use a model of text to image, or optsd.load it yourself"
        )
    return found


def _left_out(kind: Any, index: dict[str, Any]) -> dict[str, Any]:
    """Arguments that leave out what is never loaded, where the class can do without, and what the model is without."""
    optional = set(getattr(kind, "_optional_components", ()))
    takes = inspect.signature(kind.__init__).parameters
    absent = {name for name, part in index.items() if part == [None, None]}
    without: dict[str, Any] = {name: None for name in takes if name in absent | (optional & set(folders.NEVER_LOADED))}
    return without | ({"requires_safety_checker": False} if "requires_safety_checker" in takes else {})


def _variants(folder: Path, dtype: "torch.dtype") -> dict[str, Any]:
    """The components whose weights are taken from a variant: diffusers wants one variant of all, folders mix them."""
    loaded = {}
    for name, (library, kind) in folders.components(folder).items():
        chosen = folders.variant(folder / name, str(dtype).removeprefix("torch."))
        if chosen:
            loaded[name] = getattr(importlib.import_module(library), kind).from_pretrained(
                folder / name, variant=chosen, dtype=dtype, use_safetensors=True, local_files_only=True
            )
    return loaded


def _from_file(file: Path, dtype: "torch.dtype", text_to_image: bool) -> Any:
    """Through diffusers' own conversion; configurations and vocabulary lie beside the file, or in the hub's cache."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    hub_id = fetch_diffusers_config(folders.fake_tensors(file))["pretrained_model_name_or_path"]
    at_hand = [file.parent, *([home() / "models" / "sd15"] if hub_id == SD15_HUB_ID else [])]
    config = str(next((folder for folder in at_hand if (folder / "model_index.json").is_file()), hub_id))
    try:
        index = diffusers.DiffusionPipeline.load_config(config, local_files_only=True)
        kind = pipeline_class(index, str(file), text_to_image)
        pipe = kind.from_single_file(
            str(file), config=config, dtype=dtype, local_files_only=True, **_left_out(kind, index)
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        name = "StableDiffusionXLPipeline" if folders.file_size(file)[0] == 1024 else "StableDiffusionPipeline"
        raise NotFound(
            f"{file} is a single file, and cannot be loaded with the configurations of {config} ({_first_line(error)})",
            f'convert it where there is a network: python -c "from diffusers import {name} as P; '
            f"P.from_single_file('{file.name}').save_pretrained('FOLDER')\", and give the folder",
        ) from error
    if text_to_image:
        _check_channels(pipe, str(file))
    return pipe


def _check_channels(pipe: Any, source: str) -> None:
    """A UNet for inpainting, depth or instructions takes a picture beside the noise, whatever the pipeline's class."""
    takes, noise = anatomy.channels(pipe)
    if takes != noise:
        raise BadInput(
            f"the UNet of {source} takes {takes} channels, a picture beside {noise} of noise",
            "use a model of text to image, or optsd.load it yourself",
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__

"""Pipelines without weights: by name, or from the configuration files of a diffusers folder or hub id.

Call `build` under FakeTensorMode: then nothing is allocated, however large the model.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optsd.errors import BadInput, NotFound
from optsd.models import Source, folders
from optsd.models.folders import SD15_HUB_ID
from optsd.models.published import BUILDERS, RANDOM, SIDES, real_numbers
from optsd.models.shapes import PIPELINES

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


NAMED: dict[str, Callable[[], "DiffusionPipeline"]] = {
    **BUILDERS,
    **{name: BUILDERS[plain] for name, plain in RANDOM.items()},
}

NAMES = (*PIPELINES, *NAMED)


def check(model: str) -> Source:
    """Where a model's architecture comes from: a name, a folder's configurations, or a hub id. Imports no torch.

    Raises NotFound for what is none of them.
    """
    if model in PIPELINES:
        return Source(model, str(PIPELINES[model]), PIPELINES[model], size=folders.size(PIPELINES[model]))
    if model in NAMED:
        return Source(model, model, size=(SIDES[RANDOM.get(model, model)],) * 2)
    path = folders.path_of(model)
    if path and path.is_dir():
        path = path.resolve()
        return Source(folders.label(path), str(path), path, size=folders.size(path))
    if path or not folders.is_hub_id(model):
        raise NotFound(
            f"no model {model!r}",
            f"use {', '.join(NAMES)}, a diffusers folder, or a hub id such as {SD15_HUB_ID}",
        )
    return Source(model, model, hub_id=model)


def build(model: str, dtype: "torch.dtype") -> "DiffusionPipeline":
    """The pipeline with the architecture of `model`, in that type, on the device that is current.

    Raises NotFound for an unknown name, BadInput for what is no diffusers pipeline or needs code of its own.
    """
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        pipe = NAMED[model]() if model in NAMED else _from_files(model)
    finally:
        torch.set_default_dtype(before)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _from_files(model: str) -> "DiffusionPipeline":
    """A pipeline from `model_index.json` and its components' configuration files; weights are never read."""
    import diffusers

    source = check(model).location
    try:
        index = diffusers.DiffusionPipeline.load_config(source)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{model} is no diffusers pipeline ({str(error).splitlines()[0][:160]})",
            "give a folder or hub id with a model_index.json",
        ) from error
    pipeline_class = getattr(diffusers, str(index.get("_class_name")), None)
    if not isinstance(pipeline_class, type) or not issubclass(pipeline_class, diffusers.DiffusionPipeline):
        raise BadInput(
            f"{model} asks for the pipeline class {index.get('_class_name')!r}, which diffusers lacks",
            "use a model of a diffusers class",
        )
    parts: dict[str, Any] = {}
    for component, kind in index.items():
        if component.startswith("_") or not isinstance(kind, (list, tuple)):
            continue
        present = kind[0] is not None and component not in folders.NEVER_LOADED
        parts[component] = _component(source, component, kind[0], kind[1]) if present else None
    if "requires_safety_checker" in index:
        parts["requires_safety_checker"] = False
    try:
        return pipeline_class(**parts)
    except TypeError as error:  # a component that the class needs is not named
        raise BadInput(
            f"{model} is no whole {pipeline_class.__name__} ({error})", "check its model_index.json"
        ) from error


def _component(source: str, component: str, library: str, name: str) -> Any:
    import diffusers
    import transformers

    if library not in ("diffusers", "transformers"):
        raise BadInput(
            f"{source} takes {component!r} from {library!r}, code that would have to be trusted",
            "use a model whose components are classes of diffusers and transformers",
        )
    found: Any = getattr(importlib.import_module(library), name, None)
    is_class = isinstance(found, type)
    try:
        if is_class and issubclass(found, diffusers.ModelMixin):
            return found.from_config(found.load_config(source, subfolder=component))
        if is_class and issubclass(found, transformers.PreTrainedModel):
            return found(found.config_class.from_pretrained(source, subfolder=component))
        if found is not None:
            with real_numbers():
                return found.from_pretrained(source, subfolder=component)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            f"{source}/{component} cannot be built ({str(error).splitlines()[0][:160]})", "check its configuration file"
        ) from error
    raise BadInput(f"{source} asks for {name!r}, which {library} lacks", f"install a newer {library}")

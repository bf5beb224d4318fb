"""Quantized pipelines on disk: a diffusers folder whose quantized components lie in `quantized.safetensors`.

`optsd_quantization.json` says which layers are quantized and how, and holds the files' SHA-256. What is loaded computes
the same bits as what was saved.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from optsd import records
from optsd.errors import BadInput, NotFound
from optsd.files import write_atomically
from optsd.patching import Pipeline
from optsd.quantization import INDEX, WEIGHTS
from optsd.quantization.boundary import boundary_of, compute_in_bfloat16, drawing_part, fuse_on_gpu
from optsd.quantization.convert import keep_others_right, keep_pictures_apart
from optsd.quantization.layers import QConv2d, QLinear, QuantizedLayer
from optsd.quantization.schemes import Int4Weight, Int8Weight

SCHEMA = 1
REMEDY = "save the pipeline again with optsd.quantization.save"
LIBRARIES = ("diffusers", "transformers")


def save(pipe: Pipeline, folder: Path | str) -> None:
    """Write any pipeline, quantized or not. A folder that holds another pipeline is overwritten file by file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pipe.save_config(folder)
    quantized = {}
    dtypes = {}
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            dtypes[name] = _name(next(component.parameters()).dtype)
        if isinstance(component, nn.Module) and _layers(component):
            quantized[name] = _save_component(component, folder / name)
        elif component is not None:
            component.save_pretrained(folder / name)
    index = {"schema": SCHEMA, "dtypes": dtypes, "components": quantized}
    write_atomically(folder / INDEX, records.dumps(index))


def load(folder: Path | str, device: str = "cpu") -> Pipeline:
    """The pipeline that `save` wrote, on the device. Raises NotFound or BadInput for missing or damaged files."""
    import diffusers

    folder = Path(folder)
    index = _read_index(folder)
    kind: Any = getattr(diffusers, str(_read_json(folder / "model_index.json").get("_class_name")), None)
    is_class = isinstance(kind, type)
    if not is_class or not issubclass(kind, diffusers.DiffusionPipeline):
        raise BadInput(f"{folder}/model_index.json names no pipeline class of diffusers", REMEDY)
    components: dict[str, Any] = {name: _load_component(folder / name, row) for name, row in _rows(index, folder)}
    dtypes = {name: _dtype(dtype) for name, dtype in index["dtypes"].items()}
    try:
        pipe = kind.from_pretrained(
            folder,
            **components,
            torch_dtype=dtypes,
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot load {folder} ({str(error).strip().splitlines()[0]})", REMEDY) from error
    pipe.to(device)
    for name in components:
        fuse_on_gpu(getattr(pipe, name))
    return pipe


def _save_component(component: Any, folder: Path) -> dict[str, Any]:
    library = type(component).__module__.split(".")[0]
    component.save_config(folder) if library == "diffusers" else component.config.save_pretrained(folder)
    whole = component.state_dict()
    twins = _twins(whole)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in whole.items() if name not in twins}
    file = folder / WEIGHTS
    save_file(tensors, file)
    layers = {
        name: {"bits": layer.bits, "inputs": layer.inputs, "dtype": _name(layer.dtype)}
        for name, layer in _layers(component).items()
    }
    return {
        "library": library,
        "class": type(component).__name__,
        "sha256": _sha256(file),
        "casts": boundary_of(drawing_part(component)) is not None,
        "layers": layers,
    }


def _load_component(folder: Path, row: dict[str, Any]) -> nn.Module:
    file = folder / WEIGHTS
    if not file.is_file():
        raise NotFound(f"{file} is missing", REMEDY)
    if _sha256(file) != row["sha256"]:
        raise BadInput(f"{file} is not the file that {INDEX} describes: its SHA-256 is another", REMEDY)
    try:
        # Copied to where torch puts tensors: on a CPU the last bits of a float layer depend on where its weights begin.
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file} is damaged ({error})", REMEDY) from error
    component = _empty(folder, row)
    for name, fields in row["layers"].items():
        _set_layer(component, name, fields, tensors, file)
    wanted = {name: tensor for name, tensor in component.state_dict().items() if not _is_quantized(component, name)}
    tensors |= {name: tensors[first] for name, first in _twins(wanted).items() if first in tensors}
    for name in (*wanted, *tensors):
        problem = "missing" if name not in tensors else "unknown" if name not in wanted else ""
        if not problem and tensors[name].shape != wanted[name].shape:
            problem = f"of shape {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        if problem:
            raise BadInput(f"{file} does not fit its configuration: {name} is {problem}", REMEDY)
    component.load_state_dict(tensors, strict=False, assign=True)
    if row["casts"]:
        compute_in_bfloat16(drawing_part(component))
    keep_pictures_apart(component)
    keep_others_right(component)
    return component.eval()


def _twins(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Those that are another one under a second name, as T5's embeddings are, and the name that stands first."""
    found: dict[Any, str] = {}
    known = {name: tensor for name, tensor in tensors.items() if tensor.numel() and not tensor.is_meta}
    firsts = {
        name: found.setdefault((tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        for name, tensor in known.items()
    }
    return {name: first for name, first in firsts.items() if name != first}


def _empty(folder: Path, row: dict[str, Any]) -> nn.Module:
    """The component without weights: its parameters lie on the meta device until they are loaded."""
    import importlib

    if row["library"] not in LIBRARIES or not str(row["class"]).isidentifier():
        raise BadInput(f"{folder.parent}/{INDEX} asks for a class of {row['library']!r}", REMEDY)
    kind = getattr(importlib.import_module(row["library"]), row["class"], None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise BadInput(f"{row['library']} has no model {row['class']!r}", "install the version that saved the pipeline")
    if row["library"] == "transformers":  # its buffers are computed, not loaded: they need a real device
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True))  # type: ignore[attr-defined]
    with torch.device("meta"):
        return kind.from_config(_read_json(folder / "config.json"))  # type: ignore[attr-defined]


def _set_layer(component: nn.Module, name: str, fields: dict[str, Any], tensors: dict[str, Tensor], file: Path) -> None:
    """Put a quantized layer in place of the empty one, with its tensors taken out of `tensors`."""
    try:
        empty = component.get_submodule(name)
        own = {key: tensors.pop(f"{name}.{key}") for key in BUFFERS if f"{name}.{key}" in tensors}
        weight = (
            Int8Weight(own["values"], own["scale"])
            if fields["bits"] == 8
            else Int4Weight(own["packed"], own["multipliers"], own["scale"], fields["inputs"])
        )
        matrix = weight.values if isinstance(weight, Int8Weight) else weight.packed.t()
        fits = _fits(empty, weight, own.get("bias"))
    except (AttributeError, KeyError, TypeError) as error:
        raise BadInput(f"{file} does not fit its configuration at {name} ({error!r})", REMEDY) from error
    if not fits:
        raise BadInput(f"{file}: {name} has a tensor of the wrong shape or type ({tuple(matrix.shape)})", REMEDY)
    layer: QuantizedLayer
    if isinstance(empty, nn.Conv2d):
        layer = QConv2d(weight, empty, own.get("bias"), _dtype(fields["dtype"]))
    else:
        layer = QLinear(weight, own.get("bias"), _dtype(fields["dtype"]))
    for parent in list(component.modules()):
        for attribute, child in list(parent.named_children()):
            if child is empty:
                setattr(parent, attribute, layer)


BUFFERS = ("values", "packed", "multipliers", "scale", "bias")


def _fits(empty: nn.Module, weight: Int8Weight | Int4Weight, bias: Tensor | None) -> bool:
    """Whether shapes and types are those of this layer, so that no kernel reads beyond a tensor's end."""
    if not isinstance(empty, nn.Linear | nn.Conv2d):
        return False
    outputs, inputs = len(empty.weight), empty.weight[0].numel()
    fits = weight.scale.shape == (outputs,) and weight.scale.dtype == torch.float32
    fits &= bias is None if empty.bias is None else bias is not None and bias.shape == (outputs,)
    if isinstance(weight, Int8Weight):
        return fits and weight.values.shape == (outputs, inputs) and weight.values.dtype == torch.int8
    half, groups = len(weight.packed), len(weight.multipliers)
    return (
        fits
        and weight.inputs == inputs
        and weight.packed.dtype == weight.multipliers.dtype == torch.int8
        and weight.packed.shape == (half, outputs)
        and weight.multipliers.shape == (groups, outputs)
        and inputs <= 2 * half
        and groups > 0
        and 2 * half % groups == 0
    )


def _is_quantized(component: nn.Module, tensor: str) -> bool:
    return isinstance(component.get_submodule(tensor.rpartition(".")[0]), QuantizedLayer)


def _layers(component: nn.Module) -> dict[str, QuantizedLayer]:
    return {name: layer for name, layer in component.named_modules() if isinstance(layer, QuantizedLayer)}


def _rows(index: dict[str, Any], folder: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        for name, row in index["components"].items():
            if not name.isidentifier() or not {"library", "class", "sha256", "casts", "layers"} <= row.keys():
                raise KeyError(name)
        return list(index["components"].items())
    except (KeyError, AttributeError, TypeError) as error:
        raise BadInput(f"{folder / INDEX} lacks what it should say ({error!r})", REMEDY) from error


def _read_index(folder: Path) -> dict[str, Any]:
    index = _read_json(folder / INDEX)
    if index.get("schema") != SCHEMA or not isinstance(index.get("dtypes"), dict):
        raise BadInput(f"{folder / INDEX} is not of schema {SCHEMA}", REMEDY)
    return index


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{file} is missing", "give a folder that optsd.quantization.save has written") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read ({error})", REMEDY) from error
    if not isinstance(data, dict):
        raise BadInput(f"{file} is no JSON object", REMEDY)
    return data


def _sha256(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            found.update(part)
    return found.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise BadInput(f"{INDEX} names the type {name!r}", REMEDY)
    return dtypes[name]

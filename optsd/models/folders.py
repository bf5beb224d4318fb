"""Models on disk, looked at before they are loaded: a diffusers folder, or a checkpoint in a single file.

Nothing here imports torch. Of weights only the headers are read.
"""

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optsd.errors import BadInput, NotFound
from optsd.quantization import INDEX, WEIGHTS

SD15_HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
NEVER_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that text to image does without (a safety checker blanks pictures): a folder may lack them."""

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
DENOISERS = ("unet", "transformer")
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
_WITHOUT_WEIGHTS = ("Tokenizer", "Scheduler", "Extractor", "Processor")
_BASES = "(?:diffusion_pytorch_model|model)"
_SHARD = r"(?:-\d{5}-of-\d{5})?"
_FILE = re.compile(rf"{_BASES}{_SHARD}(?:\.([\w-]+?))?{_SHARD}\.safetensors")
_INDEX = re.compile(rf"{_BASES}\.safetensors\.index(?:\.([\w-]+))?\.json")
_PREFERRED = {"float16": ("fp16", "", "bf16"), "bfloat16": ("bf16", "", "fp16"), "float32": ("", "bf16", "fp16")}
_SDXL, _SD2 = "conditioner.embedders.", "cond_stage_model.model."  # how tensors of their text encoders begin


def path_of(model: str) -> Path | None:
    """The path that a model's name is: one that exists, or one that is written as a path. None for a hub id."""
    try:
        path = Path(model).expanduser()
    except RuntimeError:  # a user without a home directory, or ~somebody
        path = Path(model)
    is_path = model.startswith((".", "~", "/")) or "\\" in model or path.suffix in (".safetensors", *PICKLES)
    return path if model and (is_path or path.exists()) else None


def is_hub_id(model: str) -> bool:
    """Whether it is written `owner/name`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None


def components(folder: Path) -> dict[str, tuple[str, str]]:
    """`{"unet": ("diffusers", "UNet2DConditionModel"), …}`: what is loaded of a folder, as its index says."""
    return {
        name: (str(kind[0]), str(kind[1]))
        for name, kind in read_json(folder / "model_index.json").items()
        if isinstance(kind, list) and len(kind) == 2 and kind[0] is not None
        if not name.startswith("_") and name not in NEVER_LOADED
    }


def check_folder(folder: Path) -> None:
    """Every component of a diffusers folder has whole safetensors weights, and none of its own code is needed.

    Weights may be of a variant (`*.fp16.safetensors`) and in shards. Raises NotFound or BadInput.
    """
    if not isinstance(read_json(folder / "model_index.json").get("_class_name"), str):
        raise BadInput(
            f"{folder}/model_index.json asks for a pipeline class of its own code", "use a model of a diffusers class"
        )
    for component, (library, name) in components(folder).items():
        part = folder / component
        # diffusers takes a class from the file of that name before it looks into its library
        if library not in _LIBRARIES or (component.isidentifier() and (part / f"{library}.py").exists()):
            raise BadInput(
                f"{folder}/model_index.json takes {component!r} from {library!r}, code that would have to be trusted",
                "use a model whose components are classes of diffusers and transformers",
            )
        if not component.isidentifier() or not part.is_dir():
            raise NotFound(f"{folder} has no folder {component!r}", "download the model again, whole")
        if not any(word in name for word in _WITHOUT_WEIGHTS):
            _check_weights(part)


def _check_weights(part: Path) -> None:
    read_json(part / "config.json")
    known = variants(part)
    pickled = sorted(file.name for file in part.glob("*") if file.suffix in PICKLES)
    if not known and pickled:
        raise BadInput(
            f"{part}/{pickled[0]} is a pickle, which can run any code when it is loaded",
            "convert it to safetensors, or download the model's safetensors weights",
        )
    if all(known.values()):  # none is whole
        missing = next(iter(known.values()), ["*.safetensors"])
        raise NotFound(f"{part} lacks its weights ({missing[0]})", "download the model again")
    for file in sorted(part.glob("*.safetensors")):
        if _FILE.fullmatch(file.name) or file.name == WEIGHTS:
            header(file)


def variants(part: Path) -> dict[str, list[str]]:
    """The variants of a component's weights ("" is the plain one), each with the files that it lacks."""
    files = {file.name for file in part.iterdir()}
    found: dict[str, list[str]] = {"": []} if WEIGHTS in files else {}
    for name in sorted(files):
        if matched := _INDEX.fullmatch(name):
            shards = set(map(str, read_json(part / name).get("weight_map", {}).values()))
            found[matched[1] or ""] = sorted(shards - files)
    for name in sorted(files):
        if matched := _FILE.fullmatch(name):
            variant, is_shard = matched[1] or "", re.search(r"-\d{5}-of-\d{5}", name)
            if not is_shard:
                found[variant] = []
            else:
                found.setdefault(variant, ["the index of its shards"])
    return found


def variant(part: Path, dtype: str) -> str:
    """Which variant of a component to load in that type: one stored in it, else the plain one, else what is whole."""
    whole = [name for name, missing in variants(part).items() if not missing]
    return next((name for name in (*_PREFERRED[dtype], *whole) if name in whole), "")


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """The names of a safetensors file's tensors, each with its shape. Raises BadInput for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file} is damaged or truncated ({error})", "download it again") from error


def check_file(file: Path) -> None:
    """A checkpoint of a whole pipeline in one safetensors file."""
    if file.suffix in PICKLES:
        raise BadInput(
            f"{file} is a pickle, which can run any code when it is loaded", "use its .safetensors form, or a folder"
        )
    if file.suffix != ".safetensors":
        raise BadInput(f"{file} is no model", "give a diffusers folder or a .safetensors checkpoint")
    if not any(name.startswith(("model.diffusion_model.", "first_stage_model.")) for name in header(file)):
        raise BadInput(f"{file} holds no whole pipeline", "give a diffusers folder or the checkpoint of a whole model")


def size(folder: Path) -> tuple[int, int]:
    """Width and height, in pixels, that the model was trained for: latents times the autoencoder's factor."""
    parts = components(folder)
    denoiser = next((name for name in DENOISERS if name in parts), "")
    decoder = next((name for name in ("vae", "vqvae", "movq") if name in parts), "")
    latents = read_json(folder / denoiser / "config.json").get("sample_size") if denoiser else None
    config = read_json(folder / decoder / "config.json") if decoder else {}
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels") or [0] * 4
    sides = latents if isinstance(latents, list) else [latents or (128 if denoiser == "transformer" else 64)] * 2
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise BadInput(f"{folder}/{denoiser}/config.json: {latents!r} is no sample_size", "download it again")
    height, width = (side * 2 ** (len(blocks) - 1) for side in sides)
    return width, height


def hub_size(hub_id: str) -> tuple[int, int]:
    """The same of a model in the hub's cache; SD v1.5's of one that is not there yet."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub_id, "model_index.json")
    try:
        return size(Path(index).parent) if isinstance(index, str) else (512, 512)
    except BadInput:  # not whole yet
        return 512, 512


def file_size(file: Path) -> tuple[int, int]:
    """The same of a single file, by the text encoder that its tensors are named after: SDXL, SD 2, or SD 1."""
    names = header(file)
    side = next((side for start, side in ((_SDXL, 1024), (_SD2, 768)) if any(n.startswith(start) for n in names)), 512)
    return side, side


def label(path: Path) -> str:
    """What records call a model on disk: its own name and eight digits of its architecture, wherever it lies.

    However its path is spelled it is one model, and no folder above it is named.
    """
    path = path.resolve()
    if path.is_dir():
        parts: dict[str, Any] = components(path)
        files = [path / name / f"{kind}config.json" for name in parts for kind in ("", "scheduler_")]
        architecture = [parts, [[file.parent.name, _public(file)] for file in files if file.is_file()]]
    else:
        architecture = [header(path)]
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()
    return f"{path.name}@{digest[:8]}"


def _public(config: Path) -> dict[str, Any]:
    """A configuration without what says where it came from, and which version wrote it."""
    return {key: value for key, value in read_json(config).items() if not key.startswith("_")}


def saved_dtype(folder: Path) -> str:
    """The type that a folder which `optsd.quantization.save` wrote computes in; empty for any other folder."""
    if not (folder / INDEX).is_file():
        return ""
    dtypes = read_json(folder / INDEX).get("dtypes")
    return next((str(dtypes[name]) for name in DENOISERS if name in dtypes), "") if isinstance(dtypes, dict) else ""


def fake_tensors(file: Path) -> dict[str, Any]:
    """What looks like a checkpoint to code that asks for names and shapes only."""
    return {name: SimpleNamespace(shape=shape) for name, shape in header(file).items()}


def read_json(file: Path) -> dict[str, Any]:
    """A configuration file's object. Raises NotFound or BadInput."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{file} is missing", "give a whole diffusers folder") from None
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise BadInput(f"{file} cannot be read ({reason})", "download it again") from error
    if not isinstance(data, dict):
        raise BadInput(f"{file} is no JSON object", "download it again")
    return data

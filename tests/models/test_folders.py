"""Models as people keep them on disk: variants, parts left out, single files, folders of every task."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from optsd import models
from optsd.errors import BadInput, NotFound
from optsd.models import folders, shapes

PLAIN, FP16 = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model's folder that a test may change."""
    return Path(shutil.copytree(shapes.WEIGHTS / "pipeline", tmp_path / "model"))


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def write(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


# --- variants of the weights


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ([PLAIN], {"float32": "", "float16": "", "bfloat16": ""}),
        ([FP16], {"float32": "fp16", "float16": "fp16", "bfloat16": "fp16"}),
        ([PLAIN, FP16], {"float32": "", "float16": "fp16", "bfloat16": ""}),
        ([PLAIN, "diffusion_pytorch_model.non_ema.safetensors"], {"float32": "", "float16": ""}),
        (["diffusion_pytorch_model.non-ema.safetensors"], {"float32": "non-ema", "float16": "non-ema"}),
        (
            ["model.bf16.safetensors", "model.fp16.safetensors"],
            {"float32": "bf16", "float16": "fp16", "bfloat16": "bf16"},
        ),
        (["model.safetensors", "model.fp16.bin"], {"float16": ""}),
    ],
)
def test_the_variant_is_the_one_that_suits_the_type(tmp_path: Path, files: list[str], chosen: dict[str, str]) -> None:
    write(tmp_path, dict.fromkeys(files, ""))
    assert {dtype: folders.variant(tmp_path, dtype) for dtype in chosen} == chosen


@pytest.mark.parametrize("older", [False, True])
def test_shards_are_whole_or_named(tmp_path: Path, older: bool) -> None:
    names = [f"model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    if older:  # how diffusers once wrote them
        names = [f"model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    write(tmp_path, dict.fromkeys(names, "") | {"model.safetensors.index.fp16.json": index})
    assert folders.variants(tmp_path) == {"fp16": []}
    assert folders.variant(tmp_path, "float32") == "fp16"
    (tmp_path / names[1]).unlink()
    assert folders.variants(tmp_path) == {"fp16": [names[1]]}
    write(tmp_path, {"model.safetensors": ""})  # the other variant is whole
    assert folders.variant(tmp_path, "float16") == ""


def test_a_folder_of_mixed_variants_without_what_is_never_loaded(folder: Path) -> None:
    """The UNet in fp16 shards, the VAE in its own variant, a pickled checker, a README beside weights."""
    import torch

    unet = models.load(str(folder), "cpu", "float32").unet
    (folder / "unet" / PLAIN).unlink()
    unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="9MB")
    assert len(list((folder / "unet").glob("*.fp16-0000*.safetensors"))) > 1
    (folder / "vae" / PLAIN).rename(folder / "vae" / "diffusion_pytorch_model.other.safetensors")
    write(folder, {"unet/LICENSE": "", "safety_checker/pytorch_model.bin": "", "safety_checker/config.json": {}})
    parts = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": True,
    }
    change(folder / "model_index.json", **parts)
    pipe = models.load(str(folder), "cpu", "float32")
    assert pipe.safety_checker is pipe.feature_extractor is pipe.image_encoder is None
    assert all(torch.equal(tensor, pipe.unet.state_dict()[name]) for name, tensor in unet.state_dict().items())


def test_half_a_variant_is_a_missing_file(folder: Path) -> None:
    (folder / "unet" / PLAIN).rename(folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    with pytest.raises(NotFound, match=r"unet lacks its weights \(the index of its shards\); download"):
        models.check(str(folder))


# --- sizes


@pytest.mark.parametrize(
    ("denoiser", "config", "vae", "size"),
    [
        ("unet", {"sample_size": [16, 24]}, {"block_out_channels": [1, 2]}, (48, 32)),  # latents: height first
        ("unet", {"sample_size": 96}, {"block_out_channels": [1] * 4}, (768, 768)),
        ("unet", {"sample_size": None}, {"block_out_channels": [1] * 4}, (512, 512)),
        ("transformer", {"sample_size": 128}, {"block_out_channels": [1] * 4}, (1024, 1024)),
        ("transformer", {}, {"block_out_channels": [1] * 4}, (1024, 1024)),  # FLUX says it nowhere
        ("transformer", {"sample_size": 32}, {"encoder_block_out_channels": [1] * 6}, (1024, 1024)),  # Sana
    ],
)
def test_the_size_is_the_models_own(tmp_path: Path, denoiser: str, config: dict, vae: dict, size: tuple) -> None:
    index = {"_class_name": "X", denoiser: ["diffusers", "Y"], "vae": ["diffusers", "Z"]}
    write(tmp_path, {"model_index.json": index, f"{denoiser}/config.json": config, "vae/config.json": vae})
    assert folders.size(tmp_path) == size


def test_the_size_of_a_model_of_the_hub_is_read_where_it_is_cached(folder: Path, monkeypatch) -> None:
    cached = {"owner/shapes": str(folder / "model_index.json"), "owner/half": str(folder / "unet" / "model_index.json")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda hub_id, name: cached.get(hub_id))
    sizes = {name: models.check(f"owner/{name}").size for name in ("shapes", "half", "other")}
    assert sizes == {"shapes": (64, 64), "half": (512, 512), "other": (512, 512)}


# --- one model, however it is spelled


def test_one_folder_is_one_model_and_names_no_place(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(folder)
    spelled = ["model", "./model", "model/", str(folder), "~/model", "link", "../" + tmp_path.name + "/model"]
    names = {models.check(each).name for each in spelled}
    assert len(names) == 1
    name = names.pop()
    assert name.startswith("model@")
    assert len(name) == len("model@12345678")
    change(folder / "unet" / "config.json", _name_or_path="/home/ada")  # where it came from
    shutil.copytree(folder, tmp_path / "elsewhere" / "model")
    assert models.check("elsewhere/model").name == name
    change(folder / "unet" / "config.json", sample_size=8)
    assert models.check("model").name != name


@pytest.mark.parametrize(
    "name", ["models/sd.safetensors", "./owner/name", "../x", "~/models/x", "/a/b", "a/b.ckpt", ""]
)
def test_what_looks_like_a_path_is_no_hub_id(name: str) -> None:
    with pytest.raises(NotFound, match="no model"):
        models.check(name)


def test_a_path_that_exists_is_no_hub_id(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"owner/name/readme.txt": "", "owner/file": ""})
    with pytest.raises(NotFound, match=r"model_index.json is missing"):
        models.check("owner/name")
    with pytest.raises(BadInput, match="file is no model; give a diffusers folder or a .safetensors checkpoint"):
        models.check("owner/file")
    assert models.check("owner/other").hub_id == "owner/other"


# --- single files


def checkpoint(file: Path, *names: str) -> Path:
    save_file({name: np.zeros((2, 2), "float32") for name in names}, file)
    return file


def test_a_single_file_is_looked_at(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "dream.safetensors", "model.diffusion_model.x", "first_stage_model.y")
    source = models.check(str(file))
    assert source.size == (512, 512)
    assert source.name.startswith("dream.safetensors@")
    large = checkpoint(tmp_path / "xl.safetensors", "model.diffusion_model.x", "conditioner.embedders.0.y")
    assert models.check(str(large)).size == (1024, 1024)
    with pytest.raises(BadInput, match="holds no whole pipeline; give"):
        models.check(str(checkpoint(tmp_path / "lora.safetensors", "lora_unet.x")))
    os.truncate(file, 20)
    with pytest.raises(BadInput, match="is damaged or truncated"):
        models.check(str(file))
    (tmp_path / "old.ckpt").touch()
    with pytest.raises(BadInput, match="old.ckpt is a pickle, which can run any code"):
        models.check(str(tmp_path / "old.ckpt"))


def test_a_single_file_is_loaded_with_the_configurations_beside_it(folder: Path, monkeypatch) -> None:
    import diffusers
    import torch

    file = checkpoint(folder / "dream.safetensors", "model.diffusion_model.x")
    given: dict = {}

    def from_single_file(path: str, **options: object) -> object:
        given.update(options, path=path)
        return diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", from_single_file)
    pipe = models.load(str(file), "cpu", "float32")
    assert type(pipe) is diffusers.StableDiffusionPipeline
    assert given["path"] == str(file)
    assert given["config"] == str(folder)
    assert given["dtype"] is torch.float32
    assert given["safety_checker"] is None


def test_a_single_file_that_needs_the_hub_is_told_how_to_convert(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    file = checkpoint(tmp_path / "dream.safetensors", "model.diffusion_model.x")
    with pytest.raises(NotFound, match="is a single file.*; convert it where there is a network: python -c") as raised:
        models.load(str(file), "cpu")
    assert "StableDiffusionPipeline as P; P.from_single_file('dream.safetensors').save_pretrained" in str(raised.value)
    assert "\n" not in str(raised.value)


# --- the class that a model names


@pytest.mark.parametrize(
    ("name", "drawing"),
    [
        ("StableDiffusionPipeline", "StableDiffusionPipeline"),
        ("StableDiffusionImg2ImgPipeline", "StableDiffusionPipeline"),
        ("StableDiffusionInpaintPipeline", "StableDiffusionPipeline"),
        ("StableDiffusionXLPipeline", "StableDiffusionXLPipeline"),
        ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLPipeline"),
        ("LatentConsistencyModelImg2ImgPipeline", "LatentConsistencyModelPipeline"),
        ("StableDiffusion3InpaintPipeline", "StableDiffusion3Pipeline"),
        ("FluxPipeline", "FluxPipeline"),
        ("FluxImg2ImgPipeline", "FluxPipeline"),
        ("PixArtSigmaPipeline", "PixArtSigmaPipeline"),
        ("StableDiffusionPanoramaPipeline", "StableDiffusionPanoramaPipeline"),  # not in diffusers' table
        ("StableDiffusionControlNetPipeline", "which draws from a control picture; use a model of text to image"),
        ("StableDiffusionUpscalePipeline", "which draws from more than text"),
        ("StableDiffusionInstructPix2PixPipeline", "which draws from more than text"),
    ],
)
def test_the_class_that_is_named_is_loaded_and_its_counterpart_benched(name: str, drawing: str) -> None:
    from optsd.models.pipelines import pipeline_class

    index = {"_class_name": name}
    assert pipeline_class(index, "x").__name__ == name
    if drawing.startswith("which"):
        with pytest.raises(BadInput, match=f"x is a {name}, {drawing}"):
            pipeline_class(index, "x", text_to_image=True)
    else:
        assert pipeline_class(index, "x", text_to_image=True).__name__ == drawing


@pytest.mark.parametrize(
    "name", ["StableVideoDiffusionPipeline", "AudioLDM2Pipeline", "WanPipeline", "CogVideoXPipeline"]
)
def test_other_media_are_refused(name: str) -> None:
    from optsd.models.pipelines import pipeline_class

    with pytest.raises(BadInput, match=f"x is a {name}, which makes no single pictures; use a model of text to image"):
        pipeline_class({"_class_name": name}, "x")


@pytest.mark.parametrize("name", ["Nosuch", "UNet2DConditionModel", "os", None])
def test_an_unknown_class_is_one_line(name: object) -> None:
    from optsd.models.pipelines import pipeline_class

    with pytest.raises(BadInput, match=r"pipeline class .*, which diffusers .* lacks; install the version that has it"):
        pipeline_class({"_class_name": name}, "x")


def test_an_image_to_image_folder(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    assert type(models.load(str(folder), "cpu")).__name__ == "StableDiffusionImg2ImgPipeline"
    pipe, _ = models.build(str(folder), "baseline", "cpu")
    assert type(pipe).__name__ == "StableDiffusionPipeline"


def test_a_unet_that_takes_a_picture_is_refused() -> None:
    from optsd.models.pipelines import _check_channels

    def pipe(channels: int) -> SimpleNamespace:
        parts = {"unet": {"in_channels": channels}, "vae": {"latent_channels": 4}}
        return SimpleNamespace(**{name: SimpleNamespace(config=SimpleNamespace(**c)) for name, c in parts.items()})

    _check_channels(pipe(4), "x")
    with pytest.raises(BadInput, match="the UNet of x takes 9 channels, a picture beside 4 of noise; use a model"):
        _check_channels(pipe(9), "x")


# --- no code of its own


@pytest.mark.parametrize(
    "file", ["unet/diffusers.py", "text_encoder/transformers.py", "None.py", "pipeline.py", "conftest.py"]
)
def test_code_in_a_folder_is_never_run(folder: Path, file: str, tmp_path: Path) -> None:
    (folder / file).write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass UNet2DConditionModel: pass\n")
    with contextlib.suppress(BadInput):
        models.load(str(folder), "cpu")
    assert not (tmp_path / "sprung").exists()


# --- folders that optsd.quantization.save wrote


def test_a_quantized_folder_is_a_model_as_others_are(untrained, tmp_path: Path) -> None:
    import torch

    from optsd import quantization
    from optsd.optimizations.quantize import Int8

    pipe = untrained().to(torch.bfloat16)
    Int8().apply(pipe)
    quantization.save(pipe, tmp_path)
    source = models.check(str(tmp_path))
    assert source.dtype == "bfloat16"
    cpu = torch.device("cpu")
    assert models.resolve_dtype("auto", cpu, source) is torch.bfloat16
    loaded, _ = models.build(source.location, "sdpa", "cpu", "bfloat16")  # as the suite does: the type resolved
    assert loaded.unet.dtype == torch.bfloat16
    with pytest.raises(BadInput, match="is quantized, and computes in bfloat16; leave out the dtype"):
        models.load(source.location, "cpu", "float32")


def test_looking_at_models_imports_no_torch() -> None:
    code = "import sys; from optsd import models; models.check('shapes'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

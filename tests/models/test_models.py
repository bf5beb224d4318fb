import json
import os
import shutil
from pathlib import Path

import pytest

from optsd import models
from optsd.errors import BadInput, NotFound
from optsd.models import shapes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model's folder that a test may damage."""
    return Path(shutil.copytree(shapes.WEIGHTS / "pipeline", tmp_path / "model"))


@pytest.mark.parametrize("name", shapes.PIPELINES)
def test_a_shipped_model_is_whole(name: str) -> None:
    source = models.check(name)
    assert (source.path, source.size) == (shapes.PIPELINES[name], (64, 64))


def test_what_is_shipped_is_small() -> None:
    files = [file for file in shapes.WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.suffix == ".safetensors" for file in files) == 9
    assert sum(file.stat().st_size for file in files) <= 40e6


def test_an_unknown_model_names_the_choice() -> None:
    with pytest.raises(NotFound, match="no model 'nosuch'; use shapes, shapes-dit, sd15, sd15-random"):
        models.check("nosuch")


def test_a_hub_id_is_left_to_the_hub() -> None:
    assert models.check("owner/name").hub_id == "owner/name"


def test_sd15_is_taken_from_home_when_it_lies_there(folder: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path / "home"))
    assert models.check("sd15").hub_id == models.SD15_HUB_ID
    shutil.copytree(folder, tmp_path / "home" / "models" / "sd15")
    assert models.check("sd15").path == tmp_path / "home" / "models" / "sd15"


def test_a_folder_knows_its_size(folder: Path) -> None:
    assert models.check(str(folder)).size == (64, 64)


def test_a_truncated_weight_file(folder: Path) -> None:
    file = next((folder / "unet").glob("*.safetensors"))
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(BadInput, match="is damaged or truncated .*; download it again"):
        models.check(str(folder))


def test_a_missing_weight_file(folder: Path) -> None:
    next((folder / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(NotFound, match="lacks its weights .*; download the model again"):
        models.check(str(folder))


@pytest.mark.parametrize("suffix", ["bin", "ckpt", "pt", "pth"])
def test_pickles_are_refused_with_the_reason(folder: Path, suffix: str) -> None:
    file = next((folder / "unet").glob("*.safetensors"))
    file.rename(file.with_suffix(f".{suffix}"))
    with pytest.raises(BadInput, match="is a pickle, which can run any code when it is loaded; convert it"):
        models.check(str(folder))


def test_a_missing_component(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(NotFound, match="has no folder 'text_encoder'"):
        models.check(str(folder))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"_class_name": ["pipeline", "Mine"]}, "a pipeline class of its own code"),
        ({"unet": ["my_code", "UNet"]}, "code that would have to be trusted"),
        ({"../unet": ["diffusers", "UNet2DConditionModel"]}, "has no folder '../unet'"),
    ],
)
def test_an_index_that_reaches_outside(folder: Path, change: dict, problem: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(BadInput, match=problem):
        models.check(str(folder))


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_damaged_index(folder: Path, text: str) -> None:
    (folder / "model_index.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadInput, match="download it again"):
        models.check(str(folder))


def test_no_model_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"model_index.json is missing; give a whole diffusers folder"):
        models.check(str(tmp_path))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", ""])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(BadInput, match="use auto, cpu, cuda or cuda:N"):
        models.resolve_device(device)


def test_a_cuda_device_that_is_not_there() -> None:
    with pytest.raises(BadInput, match="no device 'cuda:99'"):
        models.resolve_device("cuda:99")


def test_dtypes() -> None:
    import torch

    assert models.resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert models.resolve_dtype("auto", torch.device("cuda")) is torch.float16
    with pytest.raises(BadInput, match="unknown dtype 'int8'"):
        models.resolve_dtype("int8", torch.device("cpu"))


def test_objects_of_torch_are_taken_as_names_are() -> None:
    import torch

    import optsd

    cpu = torch.device("cpu")
    assert models.resolve_device(cpu) == cpu
    assert models.resolve_dtype(torch.bfloat16, cpu) is torch.bfloat16
    assert optsd.load("shapes", dtype=torch.float32, device=cpu).dtype is torch.float32
    assert optsd.load(shapes.WEIGHTS / "pipeline", torch_dtype=torch.bfloat16, device="cpu").dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("name", "kind", "denoiser"),
    [("shapes", "StableDiffusionPipeline", "unet"), ("shapes-dit", "StableDiffusion3Pipeline", "transformer")],
)
def test_loading_gives_float32_and_the_committed_numbers(name: str, kind: str, denoiser: str) -> None:
    import torch
    from safetensors.torch import load_file

    pipe = models.load(name, "cpu", "float32")
    assert type(pipe).__name__ == kind
    stored = load_file(next((shapes.PIPELINES[name] / denoiser).glob("*.safetensors")))
    loaded = pipe.components[denoiser].state_dict()
    assert len(loaded) == len(stored)
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in stored.items())

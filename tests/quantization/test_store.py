"""Quantized pipelines on disk: the same bits come back, and damaged files are refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import optsd
from optsd import quantization
from optsd.errors import BadInput, NotFound
from optsd.optimizations.quantize import Int4, Int8
from optsd.quantization.store import INDEX, WEIGHTS, _sha256

ALL = ("unet", "text_encoder", "vae")


def image(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a small red circle", num_inference_steps=2, generator=generator, output_type="pt").images


@pytest.fixture(scope="module")
def stored(untrained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    Int4().apply(pipe := untrained())
    quantization.save(pipe, folder)
    return folder


@pytest.fixture
def folder(stored, tmp_path) -> Path:
    """A copy that a test may damage."""
    import shutil

    return Path(shutil.copytree(stored, tmp_path / "copy"))


@pytest.mark.parametrize(
    "technique",
    [Int8(), Int4(), Int8(components=ALL), Int4(components=ALL, group_size=64), None],
    ids=["int8", "int4", "int8 all", "int4 all", "not quantized"],
)
def test_what_is_loaded_paints_the_same_bits(technique, untrained, tmp_path) -> None:
    pipe = untrained()
    if technique:
        technique.apply(pipe)
    quantization.save(pipe, tmp_path)
    loaded = optsd.load(str(tmp_path), "cpu")
    assert torch.equal(image(loaded), image(pipe))
    assert {name: tensor.dtype for name, tensor in loaded.unet.state_dict().items()} == {
        name: tensor.dtype for name, tensor in pipe.unet.state_dict().items()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_come_back(dtype, untrained, tmp_path) -> None:
    pipe = untrained().to(dtype)
    Int8().apply(pipe)
    quantization.save(pipe, tmp_path)
    loaded = quantization.load(tmp_path)
    assert loaded.unet.mid_block.resnets[0].conv1.weight.dtype == dtype
    assert (loaded.vae.dtype, loaded.text_encoder.dtype, loaded.unet.dtype) == (dtype,) * 3


def test_the_file_is_as_small_as_the_integers(untrained, tmp_path) -> None:
    pipe = untrained()
    parameters = sum(parameter.numel() for parameter in pipe.unet.parameters())
    Int8().apply(pipe)
    quantization.save(pipe, tmp_path)
    assert (tmp_path / "unet" / WEIGHTS).stat().st_size < 1.3 * parameters
    assert not list((tmp_path / "unet").glob("diffusion_pytorch_model*"))


def test_a_changed_file_is_refused(folder) -> None:
    file = folder / "unet" / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BadInput, match=f"{WEIGHTS} is not the file that {INDEX} describes: its SHA-256 is"):
        quantization.load(folder)


def rewrite(folder: Path, change) -> None:
    """Change the tensors and make the hash fit again."""
    file = folder / "unet" / WEIGHTS
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    index = json.loads((folder / INDEX).read_text())
    index["components"]["unet"]["sha256"] = _sha256(file)
    (folder / INDEX).write_text(json.dumps(index))


CONV = "mid_block.resnets.0.conv1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({f"{CONV}.packed": t[f"{CONV}.packed"][1:].contiguous()}), "wrong shape or type"),
        (lambda t: t.update({f"{CONV}.scale": t[f"{CONV}.scale"].half()}), "wrong shape or type"),
        (lambda t: t.update({f"{CONV}.multipliers": t[f"{CONV}.multipliers"][:, 1:].contiguous()}), "wrong shape"),
        (lambda t: t.pop(f"{CONV}.bias"), "wrong shape or type"),
        (lambda t: t.pop(f"{CONV}.scale"), f"does not fit its configuration at {CONV}"),
        (lambda t: t.pop("conv_in.weight"), "conv_in.weight is missing"),
        (lambda t: t.update(extra=torch.ones(1)), "extra is unknown"),
        (lambda t: t.update({"conv_in.weight": torch.ones(3)}), r"conv_in.weight is of shape \(3,\) instead of"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, change, message) -> None:
    rewrite(folder, change)
    with pytest.raises(BadInput, match=message):
        quantization.load(folder)


def test_a_truncated_file_is_refused(folder) -> None:
    file = folder / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:1000])
    index = json.loads((folder / INDEX).read_text())
    index["components"]["unet"]["sha256"] = _sha256(file)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadInput, match=f"{WEIGHTS} is damaged"):
        quantization.load(folder)


def test_a_quantized_folder_keeps_its_types(folder) -> None:
    inside = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
    with pytest.raises(BadInput, match=f"is quantized, and computes in {inside}; leave out the dtype"):
        optsd.load(str(folder), dtype="float16")


def test_missing_files(folder, tmp_path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(NotFound, match=f"{WEIGHTS} is missing; save the pipeline again"):
        quantization.load(folder)
    with pytest.raises(NotFound, match=f"{INDEX} is missing; give a folder that optsd.quantization.save has written"):
        quantization.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "is not of schema 1"),
        ({"dtypes": 3}, "is not of schema 1"),
        ({"components": {"../unet": {}}}, "lacks what it should say"),
        ({"components": {"unet": {}}}, "lacks what it should say"),
        ({"components": 3}, "lacks what it should say"),
        ({"dtypes": {"unet": "int3"}}, "names the type 'int3'"),
    ],
)
def test_a_wrong_index_is_refused(folder, change, message) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | change))
    with pytest.raises(BadInput, match=message):
        quantization.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"library": "os"}, "asks for a class of 'os'"), ({"class": "Nothing"}, "diffusers has no model 'Nothing'")],
)
def test_a_foreign_class_is_refused(folder, change, message) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["components"]["unet"] |= change
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadInput, match=message):
        quantization.load(folder)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_an_index_that_is_no_json(folder, content) -> None:
    (folder / INDEX).write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=INDEX):
        quantization.load(folder)

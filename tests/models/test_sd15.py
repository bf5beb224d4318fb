import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from optsd.models import sd15


def test_parameters_are_v15s() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sd15.UNET)
        vae = AutoencoderKL(**sd15.AUTOENCODER)
        text = CLIPTextModel(CLIPTextConfig(**sd15.TEXT_ENCODER))
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (unet, vae, text)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]


@pytest.mark.parametrize(
    ("part", "kind", "written"),
    [("unet", UNet2DConditionModel, sd15.UNET), ("vae", AutoencoderKL, sd15.AUTOENCODER)],
)
def test_the_literal_configuration_is_the_published_one(part: str, kind: type, written: dict, shared: Path) -> None:
    file = shared / "sd15" / part / "config.json"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    published = json.loads(file.read_text())
    with torch.device("meta"):
        ours, theirs = kind(**written).config, kind.from_config(published).config
    for name in (name for name in published if not name.startswith("_")):
        assert _as_json(ours[name]) == _as_json(theirs[name]), name


def _as_json(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value

"""Other programs' engines draw the pictures of the pipeline that they are given."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from optsd import models
from optsd.errors import BadInput
from optsd.measure import engines
from optsd.measure.run import run_batch, timing_prompts
from optsd.measure.seeds import noise_seeds
from optsd.records import Workload

WORKLOAD = Workload("shapes", "cpu", "float32", 2, 5.0, 64, 64, 2)


@pytest.fixture(scope="module")
def ours() -> np.ndarray:
    pipe = models.load("shapes", "cpu", "float32")
    return run_batch(pipe, WORKLOAD, timing_prompts("shapes", 2), output_type="np")


def _drawn(draw: Callable) -> np.ndarray:
    return np.asarray(draw(timing_prompts("shapes", 2), noise_seeds(WORKLOAD.seed, 0, 2), WORKLOAD))


@pytest.mark.slow
def test_openvino_draws_what_torch_draws(ours: np.ndarray) -> None:
    pytest.importorskip("openvino")
    draw = engines.OpenVINO(WORKLOAD)
    assert abs(_drawn(draw) - ours).max() < 0.02
    assert set(draw.proof()) == {"openvino", "text_encoder", "denoiser", "decoder"}
    assert draw.weight_bytes > 30e6
    with pytest.raises(BadInput, match="the pipeline calls a network in another way"):
        draw(timing_prompts("shapes", 1), [1], WORKLOAD)


@pytest.mark.slow
def test_openvino_in_int8_draws_nearly_that(ours: np.ndarray) -> None:
    pytest.importorskip("nncf")
    draw = engines.OpenVINOInt8(WORKLOAD)
    assert 0 < abs(_drawn(draw) - ours).mean() < 0.05
    assert draw.weight_bytes < 20e6
    assert ", 0 constants of 8 bits" not in draw.proof()["denoiser"]
    assert ", 0 constants of 8 bits" in draw.proof()["decoder"]


@pytest.mark.parametrize("engine", [engines.Compiled, engines.CompiledInt8])
def test_denoiser_and_decoder_are_compiled(ours: np.ndarray, monkeypatch, engine: type[engines.Engine]) -> None:
    """What torch's compiler makes of them is its own matter, and takes half a minute."""
    for package in engine.packages:
        pytest.importorskip(package)
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compiled.append(network))
    draw = engine(WORKLOAD)
    assert compiled == [draw.pipe.unet, draw.pipe.vae.decoder]
    difference = abs(_drawn(draw) - ours)
    assert difference.max() < 0.02 if engine is engines.Compiled else 0 < difference.mean() < 0.05


@pytest.mark.slow
def test_sdnq_draws_nearly_that(ours: np.ndarray) -> None:
    pytest.importorskip("sdnq")
    draw = engines.SDNQ(WORKLOAD)
    assert 0 < abs(_drawn(draw) - ours).mean() < 0.05
    assert draw.proof()["layers"] > 50
    assert draw.weight_bytes < 25e6


@pytest.mark.parametrize("engine", [engines.OpenVINO, engines.OpenVINOInt8, engines.SDNQ])
def test_a_package_that_is_missing_is_one_line(monkeypatch, engine: type[engines.Engine]) -> None:
    monkeypatch.setitem(sys.modules, engine.packages[-1], None)
    with pytest.raises(BadInput, match=rf"^{engine.packages[-1]} is not there .*; pip install {engine.packages[-1]}$"):
        engines._needed(engine.packages[-1])

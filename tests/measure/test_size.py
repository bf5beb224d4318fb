import pytest
import small_pipelines
import torch

from optsd.measure.size import disk_bytes, module_bytes, weight_bytes


def test_shared_weights_are_counted_once() -> None:
    layer = torch.nn.Linear(10, 10, bias=False)
    both = torch.nn.Sequential(layer, torch.nn.Linear(10, 10, bias=False))
    assert module_bytes(both) == 800
    both[1].weight = layer.weight
    assert module_bytes(both) == 400


def test_a_pipelines_bytes_are_its_parameters(untrained) -> None:
    pipe = untrained()
    parameters = sum(
        parameter.numel() for module in (pipe.unet, pipe.text_encoder, pipe.vae) for parameter in module.parameters()
    )
    assert weight_bytes(pipe) == pytest.approx(4 * parameters, rel=0.01)
    assert disk_bytes(pipe) == pytest.approx(4 * parameters, rel=0.02)
    half = weight_bytes(pipe.to(torch.float16))
    assert half == pytest.approx(2 * parameters, rel=0.01)


@pytest.mark.parametrize("family", ["SDXL", "SD3", "FLUX.1", "Sana"])
def test_every_network_of_a_pipeline_counts(family) -> None:
    pipe = small_pipelines.make(family)
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert weight_bytes(pipe) == sum(map(module_bytes, networks))

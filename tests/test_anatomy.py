from types import SimpleNamespace

import pytest
import torch
from torch import nn

from optsd import anatomy
from optsd.calls import interpose
from optsd.errors import Unsupported


class Net(nn.Module):
    def forward(self, sample, timestep, encoder_hidden_states=None):
        return sample


class Plus:
    def __call__(self, call, *args, **kwargs):
        return call(*args, **kwargs) + 1


def test_the_denoiser_by_either_name_and_within_what_compiles_it():
    net = Net()
    for pipe in (SimpleNamespace(unet=net), SimpleNamespace(transformer=torch.compile(net)), SimpleNamespace(unet=net)):
        assert anatomy.denoiser(pipe) is net
    with pytest.raises(Unsupported, match="SimpleNamespace has no unet and no transformer; use a text-to-image"):
        anatomy.denoiser(SimpleNamespace(unet=None))


def test_arguments_by_place_and_by_name():
    net, text = Net(), torch.zeros(1)
    interpose(net, Plus())
    assert anatomy.argument(net, anatomy.TEXT, (0, 1, text), {}) is text
    assert anatomy.argument(net, anatomy.TEXT, (0, 1), {"encoder_hidden_states": text}) is text
    assert anatomy.argument(net, anatomy.SAMPLE, (), {"sample": text}) is text
    assert anatomy.argument(net, anatomy.TEXT, (0,), {}) is None


def test_a_wrapper_that_compiles_meets_what_was_put_before_the_denoiser_later():
    net, x = Net(), torch.zeros(1)
    pipe = SimpleNamespace(unet=torch.compile(net, backend="eager"))
    interpose(net, Plus())
    anatomy.meet_again(pipe)
    assert pipe.unet(x, 0) == 1


def test_at_finds_the_layer_within_adapters():
    net = nn.Sequential(nn.Linear(1, 1))
    layer = net[0]
    net[0] = nn.Module()
    net[0].base_layer = layer
    assert anatomy.at(net, "0") == [net[0], layer]
    assert anatomy.at(net, "1") == []
    assert anatomy.is_adapter(net[0])
    assert not anatomy.is_adapter(layer)


def test_the_device_of_what_is_offloaded():
    net = nn.Linear(1, 1, device="meta")
    assert anatomy.device(net).type == "meta"
    net._hf_hook = SimpleNamespace(execution_device="cpu")
    assert anatomy.device(net).type == "cpu"

import copy
import pickle

import pytest
import torch
from torch import nn

from optsd.calls import parts
from optsd.errors import OptsdError
from optsd.patching import Interposed, Patch, Replaced, Watch, patches


class Doubled:
    def __call__(self, call, *args, **kwargs):
        return 2 * call(*args, **kwargs)


class Noted:
    """A change that only notes what becomes of it."""

    def __init__(self, name: str = "", order: list[str] | None = None) -> None:
        self.name, self.order, self.there = name, order, True

    def holds(self) -> bool:
        return self.there

    def revert(self) -> None:
        if self.order is not None:
            self.order.append(self.name)


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


class TestInterposed:
    def test_holds_until_it_is_taken_back(self, net):
        x = torch.ones(1, 2)
        plain = net[0](x)
        change = Interposed(net, "0", Doubled())
        assert change.holds()
        assert torch.equal(net[0](x), 2 * plain)
        change.revert()
        assert not change.holds()
        assert torch.equal(net[0](x), plain)

    def test_a_layer_that_others_replace_displaces_it(self, net):
        change = Interposed(net, "0", Doubled())
        net[0] = nn.Linear(2, 2)
        assert not change.holds()
        change.revert()

    def test_adapters_around_the_layer_do_not(self, net):
        class Adapter(nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.base_layer = layer

        change = Interposed(net, "0", Doubled())
        net[0] = Adapter(net[0])
        assert change.holds()
        change.revert()
        assert not parts(net[0].base_layer)

    def test_the_layer_within_an_adapter_is_found_when_the_adapter_goes(self, net):
        layer = net[0]
        net[0] = nn.Module()
        net[0].base_layer = layer
        change = Interposed(net, "0.base_layer", Doubled())
        net[0] = layer
        assert change.holds()


class TestReplaced:
    def test_comes_back_exactly(self, net):
        first = Replaced(net, "decode", Doubled())
        second = Replaced(net, "decode", Doubled())
        assert (first.holds(), second.holds()) == (False, True)
        second.revert()
        first.revert()
        assert "decode" not in vars(net)

    def test_what_others_put_there_later_stays(self, net):
        change = Replaced(net, "decode", Doubled())
        net.decode = theirs = object()
        change.revert()
        assert net.decode is theirs


def _patch(name: str, stack: list[Patch] | None = None, **more) -> Patch:
    patch = Patch(name, ("unet",), stack=stack if stack is not None else [], **more)
    if stack is not None:
        stack.append(patch)
    return patch


def test_proof_is_read_when_it_is_asked_for():
    counts = {"calls": 0}
    part = Patch("part", ("a",), lambda: dict(counts))
    whole = Patch("whole", ("a",), lambda: {"own": 1}, parts=(part,))
    assert whole.proof == {"calls": 0, "own": 1}
    counts["calls"] = 5
    assert whole.proof == {"calls": 5, "own": 1}


def test_undo_runs_once_and_in_reverse():
    order: list[str] = []
    parts = tuple(Patch(name, (name,), changes=(Noted(name, order), Noted(f"{name}2", order))) for name in "ab")
    patch = Patch("all", ("a", "b"), parts=parts)
    assert patch.active
    patch.undo()
    assert order == ["b2", "b", "a2", "a"]
    assert not patch.active
    with pytest.raises(OptsdError, match="all is undone already; call undo\\(\\) once"):
        patch.undo()
    assert order == ["b2", "b", "a2", "a"]


def test_a_lossy_part_stops_undo_before_anything_is_touched():
    order: list[str] = []
    parts = (
        Patch("int8", ("a",), why_lossy="the weights are gone"),
        Patch("b", ("b",), changes=(Noted("b", order),)),
    )
    with pytest.raises(OptsdError, match="int8 cannot be undone: the weights are gone; load the pipeline again"):
        Patch("both", ("a", "b"), parts=parts).undo()
    assert order == []


def test_patches_come_off_the_last_one_first():
    stack: list[Patch] = []
    first, second = _patch("first", stack), _patch("second", stack)
    with pytest.raises(OptsdError, match="first cannot be undone: second was applied on top of it; undo second first"):
        first.undo()
    second.undo()
    first.undo()
    assert stack == []


class Pipe:
    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet


def test_pipelines_that_share_a_unet_share_its_patches(net):
    _patch("flash", patches(Pipe(net)))
    assert [patch.name for patch in patches(Pipe(net))] == ["flash"]
    assert [patch.name for patch in patches(Pipe(torch.compile(net)))] == ["flash"]
    assert patches(Pipe(nn.ReLU())) == []


class Net(nn.Module):
    """As a denoiser is called."""

    def forward(self, sample, timestep, encoder_hidden_states):
        return sample


def test_what_is_displaced_is_said_once_at_the_next_prompt():
    net, change = Net(), Noted()
    patch = Patch("outer", (), parts=(Patch("flash", (), changes=(change,)),), stack=patches(Pipe(net)))
    patch.stack.append(patch)
    patch.changes = (Interposed(net, "", Watch(patch)),)
    text = torch.zeros(1)
    net(text, 0, text)
    assert patch.active
    assert "displaced" not in patch.proof
    change.there = False
    net(text, 0, encoder_hidden_states=text)  # the same prompt: a step, not a call
    assert patch.proof["displaced"] == "flash"
    assert not patch.active
    other = torch.ones(1)
    with pytest.warns(UserWarning, match="flash is no longer on this pipeline as it was applied"):
        net(other, 0, encoder_hidden_states=other)
    net(text, 0, text)


def from_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))  # noqa: S301 - its own


@pytest.mark.parametrize("twin", [copy.deepcopy, from_pickle])
def test_a_copy_has_patches_of_its_own(net, twin):
    patch = Patch("doubled", ("0",), changes=(Interposed(net, "0", Doubled()),), stack=patches(Pipe(net)))
    patch.stack.append(patch)
    other = twin(net)
    x = torch.ones(1, 2)
    assert torch.equal(other(x), net(x))
    (copied,) = patches(Pipe(other))
    assert copied.active
    copied.undo()
    assert not parts(other[0])
    assert type(other[0]) is nn.Linear
    assert patch.active
    assert parts(net[0])

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from optsd.calls import Call, become, interpose, parts, plain_class, take_over, withdraw


class Added:
    def __init__(self, number: float) -> None:
        self.number = number
        self.asked = 0

    def __call__(self, call, *args, **kwargs):
        self.asked += 1
        return call(*args, **kwargs) + self.number


class Times:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, call, x):
        return self.factor * call(x)


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(2, 2)


X = torch.ones(1, 2)


class Instead:
    def __call__(self, call, *args, **kwargs):
        return call(*args, **kwargs, instead_of_forward=lambda layer, x: x * layer.in_features)


def test_something_else_may_be_computed_where_hooks_and_other_parts_still_see_the_call(layer):
    seen = []
    layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    interpose(layer, Added(1))
    interpose(layer, Instead())
    assert torch.equal(layer(X), 2 * X + 1)
    assert torch.equal(seen[0], 2 * X)


def test_the_signature_is_the_layers_own(layer):
    interpose(layer, Added(1))
    assert list(inspect.signature(layer.forward).parameters) == ["input"]


def test_the_last_part_is_asked_first_and_any_may_go(layer):
    plain, added, times = layer(X), Added(1), Times(2)
    interpose(layer, added)
    interpose(layer, times)
    assert torch.equal(layer(X), 2 * (plain + 1))
    withdraw(layer, added)
    assert torch.equal(layer(X), 2 * plain)
    withdraw(layer, added)  # gone already
    withdraw(layer, times)
    assert torch.equal(layer(X), plain)
    assert type(layer) is nn.Linear
    assert "_optsd_parts" not in vars(layer)


def test_it_is_still_what_it_was_to_those_who_ask(layer):
    interpose(layer, Added(1))
    assert isinstance(layer, nn.Linear)
    assert type(layer) in (nn.Linear,)
    assert type(layer) not in (nn.Conv2d,)
    assert {nn.Linear: 1}[type(layer)] == 1
    assert plain_class(layer) is nn.Linear
    assert (type(layer).__name__, type(layer).__module__) == ("Linear", nn.Linear.__module__)
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("before", [True, False])
def test_others_may_replace_forward_and_put_it_back(layer, before):
    """As accelerate does around each picture, whichever came first."""
    plain = layer(X)

    def offload():
        whole = layer.forward
        layer.forward = lambda x: whole(x) * 10

    if before:
        offload()
    interpose(layer, Added(1))
    if not before:
        offload()
    assert torch.equal(layer(X), plain * 10 + 1)
    del layer.forward
    assert torch.equal(layer(X), plain + 1)


@pytest.mark.parametrize("compiled_first", [True, False])
def test_compiled_in_place(layer, compiled_first):
    plain = layer(X)
    if compiled_first:
        layer.compile(backend="eager")
        layer(X)
    interpose(layer, Added(1))
    if not compiled_first:
        layer.compile(backend="eager")
    assert torch.equal(layer(X), plain + 1)


def test_compiled_around(layer):
    plain = layer(X)
    whole = torch.compile(nn.Sequential(layer), backend="eager")
    assert torch.equal(whole(X), plain)
    interpose(layer, Added(1))
    assert torch.equal(whole(X), plain + 1)
    withdraw(layer, parts(layer)[0])
    assert torch.equal(whole(X), plain)


def from_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))  # noqa: S301 - its own


def test_a_call_that_was_kept_before_and_one_that_was_kept_meanwhile(layer):
    plain, added = layer(X), Added(1)
    interpose(layer, added)
    kept = layer.__call__
    assert torch.equal(kept(X), plain + 1)
    withdraw(layer, added)
    assert torch.equal(kept(X), plain)


@pytest.mark.parametrize("twin", [copy.deepcopy, from_pickle])
def test_copies_have_parts_of_their_own(layer, twin):
    interpose(layer, Added(1))
    other = twin(layer)
    assert torch.equal(other(X), layer(X))
    (mine,), (theirs,) = parts(layer), parts(other)
    assert (mine is theirs, mine.asked, theirs.asked) == (False, 1, 1)
    withdraw(other, theirs)
    assert parts(layer) == [mine]


def test_another_layer_and_another_class_take_parts_over(layer):
    class Zero(nn.Linear):
        def forward(self, x):
            return torch.zeros_like(x)

    interpose(layer, Added(1))
    become(layer, Zero)
    assert torch.equal(layer(X), torch.ones(1, 2))
    other = Zero(2, 2)
    take_over(other, layer)
    assert torch.equal(other(X), torch.ones(1, 2))
    assert plain_class(other) is Zero


def test_a_call_has_a_hash_before_it_has_fields():
    """The compiler of torch 2.11 asks for it while the call is made."""
    hash(object.__new__(Call))

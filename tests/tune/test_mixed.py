"""What is proposed of precision by layer: the cheapest mixtures of what was measured; measuring leaves no trace."""

import copy
import itertools
import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import CLASSES, make

from optsd import anatomy
from optsd.quantization.convert import KEPT, convertible
from optsd.quantization.rules import BITS, decide, parse
from optsd.records import Workload
from optsd.tune import mixed
from optsd.tune.journal import Journal
from optsd.tune.mixed import Kind, measured, mixtures, proposed
from optsd.variants import canonical

WORK = Workload("small", "cpu", "float32", 4, 5.0, 16, 16, 2)
PATTERNS = ("*.conv?", "*.attn1.*", "*.attn2.*", "*.ff.*")
WIDTHS = {"float": 32, **BITS}

errors = st.floats(1e-4, 1.0)
kind_lists = st.lists(
    st.tuples(st.integers(1, 10**6), st.integers(1, 10**6), errors, st.floats(1.0, 50.0)),
    min_size=2,
    max_size=len(PATTERNS),
).map(
    lambda rows: [
        Kind(pattern, 1, weights, multiplications, {"int8": error, "int4": error * worse})
        for pattern, (weights, multiplications, error, worse) in zip(PATTERNS, rows, strict=False)
    ]
)


def precisions_of(kinds: list[Kind], name: str) -> list[str]:
    base, _, text = name.partition(":")
    rules = {rule.pattern: rule.precision for rule in parse(text)} if text else {}
    assert base not in rules.values()
    return [rules.get(kind.pattern, base) for kind in kinds]


def lost(kinds: list[Kind], precisions: Iterable[str]) -> float:
    return math.sqrt(sum(kind.errors.get(each, 0.0) ** 2 for kind, each in zip(kinds, precisions, strict=True)))


def error_of(kinds: list[Kind], name: str) -> float:
    return lost(kinds, precisions_of(kinds, name))


def cost_of(kinds: list[Kind], precisions: Iterable[str], goal: str) -> int:
    pairs = list(zip(kinds, precisions, strict=True))
    if goal == "speed":
        return sum(kind.multiplications for kind, given in pairs if given == "float")
    return sum(kind.weights * WIDTHS[given] for kind, given in pairs)


@given(kind_lists, st.sampled_from(["speed", "memory"]))
def test_what_is_proposed_is_the_cheapest_of_all_that_lose_as_little(kinds, goal):
    int8, int4 = (error_of(kinds, name) for name in ("int8", "int4"))
    limits = [math.sqrt(0.5) * int8] if goal == "speed" else [int8, math.sqrt(int8 * int4)]
    choices = ("float", "int8") if goal == "speed" else ("float", "int8", "int4")
    found = mixtures(kinds, goal, 32)
    assert len(found) <= len(limits)
    for one in found:
        assert canonical(one.name) == one.name
        assert one.error == pytest.approx(error_of(kinds, one.name))
        given = precisions_of(kinds, one.name)
        assert {*given} <= {*choices}
        limit = min(limit for limit in limits if one.error <= limit * (1 + 1e-6)) * (1 - 1e-6)
        cost = cost_of(kinds, given, goal)
        others = itertools.product(choices, repeat=len(kinds))
        assert not [each for each in others if cost_of(kinds, each, goal) < cost and lost(kinds, each) < limit]


def test_what_costs_little_gets_few_bits_and_what_costs_much_is_left_alone():
    kinds = [
        Kind("*.conv?", 22, 600, 600, {"int8": 0.01, "int4": 0.08}),
        Kind("*.ff.*", 14, 300, 200, {"int8": 0.001, "int4": 0.004}),
        Kind("*.attn1.*", 28, 10, 10, {"int8": 0.02, "int4": 0.2}),
    ]
    names = [one.name for one in mixtures(kinds, "memory", 32)]
    assert names == ["int8:*.attn1.*=float:*.ff.*=int4", "int8:*.ff.*=int4"]
    assert [one.name for one in mixtures(kinds, "speed", 32)] == ["int8:*.attn1.*=float"]
    assert mixtures(kinds[:1], "memory", 32) == []


def test_every_layer_is_of_one_kind():
    for family in CLASSES:
        for layer in convertible(anatomy.denoiser(make(family)), KEPT)[0]:
            kinds = [name for name, pattern in anatomy.KINDS.items() if fnmatchcase(layer, pattern)]
            assert len(kinds) == 1, (family, layer, kinds)


@pytest.mark.parametrize("family", ["SD 1.5", "SD3"])
def test_measuring_says_what_each_kind_costs_and_leaves_no_trace(family):
    pipe = make(family)
    denoiser = anatomy.denoiser(pipe)
    weights, modules = copy.deepcopy(denoiser.state_dict()), list(denoiser.modules())
    found = measured(pipe, WORK, ["a cat", "a dog"], 600)
    now = denoiser.state_dict()
    assert [*denoiser.modules()] == modules
    assert all(torch.equal(tensor, now[name]) for name, tensor in weights.items())
    assert not any(module._forward_hooks for module in modules)
    layers, _ = convertible(denoiser, KEPT)
    assert sum(kind.layers for kind in found) == len(layers)
    assert sum(kind.weights for kind in found) == sum(layer.weight.numel() for layer in layers.values())
    for kind in found:
        assert 0 < kind.errors["int8"] < kind.errors["int4"] < 1, kind
        assert kind.multiplications >= kind.weights

    # That squares add up is what mixtures are chosen by: it holds within a factor.
    name = mixtures(found, "memory", 32)[0].name
    base, _, text = name.partition(":")
    mixture = {layer: decide(layer, parse(text), base) for layer in layers}
    calls, _ = mixed._recorded(pipe, denoiser, layers, WORK, ["a cat"], lambda: None)
    four, eight = ({at: layers[at] for at, given in mixture.items() if given == each} for each in ("int4", "int8"))
    with mixed.quantized(denoiser, four, 4), mixed.quantized(denoiser, eight, 8):
        together = mixed._error(denoiser, calls)
    assert together == pytest.approx(mixtures(found, "memory", 32)[0].error, rel=0.5)


def test_no_more_time_than_it_may_take_and_none_twice(tmp_path, monkeypatch):
    pipe = make("SD 1.5")
    journal = Journal(tmp_path / "journal.jsonl", {})
    late = proposed(pipe, WORK, ["a cat"], "memory", 0.0, journal)
    assert late.why_none == "measuring what each kind of layer costs takes more than 0 s"
    assert not late.kinds
    assert not anatomy.denoiser(pipe)._forward_hooks
    full = RuntimeError("CUDA out of memory\nand more")
    with monkeypatch.context() as patched:
        patched.setattr(mixed, "_error", Mock(side_effect=full))
        assert proposed(pipe, WORK, ["a cat"], "memory", 600, journal).why_none == "RuntimeError: CUDA out of memory"
    kinds = [Kind("*.conv?", 1, 9, 9, {"int8": 0.1, "int4": 0.5}), Kind("*.ff.*", 1, 9, 9, {"int8": 0.1, "int4": 0.2})]
    monkeypatch.setattr(mixed, "measured", lambda *given: kinds)
    first = proposed(pipe, WORK, ["a cat"], "memory", 1.0, journal)
    assert list(first.kinds) == kinds
    assert first.mixtures

    monkeypatch.setattr(mixed, "measured", lambda *given: pytest.fail("it was measured again"))
    assert proposed(SimpleNamespace(), WORK, [], "memory", 1.0, journal) == first
    journal.close()

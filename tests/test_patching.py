import copy

import pytest

from optsd.errors import OptsdError
from optsd.patching import Patch, active_patches, in_reverse, replace_attribute


class Layer:
    def forward(self) -> str:
        return "original"


class Louder:
    def __init__(self, layer: Layer) -> None:
        self.layer, self.whole = layer, layer.forward

    def forward(self) -> str:
        return self.whole().upper()


def test_replaced_attributes_come_back_exactly():
    layer = Layer()
    restores = [replace_attribute(layer, "forward", Louder(layer).forward)]
    assert layer.forward() == "ORIGINAL"
    restores.append(replace_attribute(layer, "forward", lambda: "second"))
    assert layer.forward() == "second"
    in_reverse(restores)()
    assert vars(layer) == {}
    assert layer.forward() == "original"


def test_a_deep_copy_works_on_itself():
    layer = Layer()
    replace_attribute(layer, "forward", Louder(layer).forward)
    twin = copy.deepcopy(layer)
    assert twin.forward.__self__.layer is twin


def _patch(name: str, active: list[Patch] | None = None, **more) -> Patch:
    patch = Patch(name, ("unet",), active=active if active is not None else [], **more)
    if active is not None:
        active.append(patch)
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
    parts = tuple(Patch(name, (name,), restore=lambda name=name: order.append(name)) for name in "abc")
    patch = Patch("all", ("a", "b", "c"), parts=parts)
    patch.undo()
    assert order == ["c", "b", "a"]
    with pytest.raises(OptsdError, match="all is undone already; call undo\\(\\) once"):
        patch.undo()
    assert order == ["c", "b", "a"]


def test_a_lossy_part_stops_undo_before_anything_is_touched():
    order: list[str] = []
    parts = (
        Patch("int8", ("a",), why_lossy="the weights are gone"),
        Patch("b", ("b",), restore=lambda: order.append("b")),
    )
    with pytest.raises(OptsdError, match="int8 cannot be undone: the weights are gone; load the pipeline again"):
        Patch("both", ("a", "b"), parts=parts).undo()
    assert order == []


def test_patches_come_off_the_last_one_first():
    active: list[Patch] = []
    first, second = _patch("first", active), _patch("second", active)
    with pytest.raises(OptsdError, match="first cannot be undone: second was applied on top of it; undo second first"):
        first.undo()
    second.undo()
    first.undo()
    assert active == []


def test_pipelines_that_share_a_unet_share_its_patches():
    class Pipe:
        def __init__(self, unet: Layer) -> None:
            self.unet = unet

    unet = Layer()
    _patch("flash", active_patches(Pipe(unet)))
    assert [patch.name for patch in active_patches(Pipe(unet))] == ["flash"]
    assert active_patches(Pipe(Layer())) == []

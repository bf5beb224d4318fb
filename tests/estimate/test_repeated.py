"""A call that is played back leaves the trace that it would have left, and only what is alike is played back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from optsd.estimate import Estimate, estimate
from optsd.estimate.counted import of_estimate
from optsd.estimate.repeated import Repeated
from optsd.estimate.trace import Tracer
from optsd.records import Workload


def traced(model: str, variant: str) -> Estimate:
    return estimate(model, variant, Workload(model, "cuda", "float16", 6, 5.0, 64, 64, 2), "a100")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("shapes", "int8+flash"),
        ("shapes", "deepcache:2+kvcache"),
        ("shapes-dit", "int4"),
        ("shapes-dit", "pab:2"),
    ],
)
def test_a_trace_with_calls_played_back_is_the_whole_trace(model: str, name: str) -> None:
    found = traced(model, name)
    with mock.patch.object(Repeated, "watch"):
        whole = traced(model, name)
    assert found.operations == whole.operations
    assert found.proof == whole.proof  # which counts no calls: fewer were made
    assert of_estimate(found) == of_estimate(whole)  # what is live at the peak and after it, by module
    assert {stage: (peak.total, peak.weights, peak.by_kind()) for stage, peak in found.peaks.items()} == {
        stage: (peak.total, peak.weights, peak.by_kind()) for stage, peak in whole.peaks.items()
    }


class Block(nn.Module):
    """A layer, twice; `runs` counts over all blocks, where nobody looks who compares two."""

    runs = 0

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.layer, self.nothing, self.settings = nn.Linear(8, 8), nn.Identity(), settings

    def forward(self, x: Tensor) -> Tensor:
        Block.runs += 1
        return self.layer(self.layer(x))


@contextmanager
def network(make: Callable[[int], Block], number: int = 4) -> Iterator[tuple[nn.Module, Tracer]]:
    """So many blocks on fake tensors, watched."""
    tracer, Block.runs = Tracer("cpu", fake=True), 0
    with torch.no_grad(), FakeTensorMode(), tracer:
        net = nn.Module()
        net.blocks = nn.ModuleList(map(make, range(number)))
        tracer.start({"net": net})
        Repeated(tracer).watch(net)
        with tracer.following_modules():
            yield net.blocks, tracer


def run(blocks: Any, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def test_nobody_stands_at_a_layer() -> None:
    """Or it would be called by itself where a block has it compute what follows."""
    lists = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), Block()])
    Repeated(Tracer("cpu")).watch(lists)
    assert ["forward" in vars(each) for each in lists] == [False, False, True]


def test_equal_blocks_run_once_and_each_is_named() -> None:
    with network(lambda _: Block()) as (blocks, tracer):
        x = torch.empty(2, 8)
        before = tracer.live_bytes
        y = run(blocks, x)
        assert Block.runs == 1
        assert [one.module for one in tracer.operations] == [
            f"net.blocks.{i}.layer" for i in range(4) for _ in range(2)
        ]
        assert (y.shape, y.dtype, y.device.type) == ((2, 8), torch.float32, "cpu")
        assert tracer.live_bytes == before + 64
        del y
        assert tracer.live_bytes == before


class Counting(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.settings["step"] = self.settings.get("step", 0) + 1
        return super().forward(x)


class Keeping(Block):
    def forward(self, x: Tensor) -> Tensor:
        Keeping.kept = [*getattr(Keeping, "kept", ()), x * 2]
        return super().forward(x)


class Lending(Block):
    """Gives back what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return x


def hooked(index: int) -> Block:
    block = Block()
    block.layer.register_forward_hook(lambda module, args, out: out * index)
    return block


def replaced(index: int) -> Block:
    """Others set `forward` of a layer, or of the block."""
    block = Block()
    whole, layer = block.forward, block.layer.forward
    block.layer.forward = lambda x: layer(x) * (1 if index < 2 else 2)
    if index % 2:
        block.forward = lambda x: whole(x)
    return block


@pytest.mark.parametrize(
    "make",
    [
        lambda i: Block(eps=i),
        lambda i: Block(eps=(1, True, 1.0, "1")[i]),
        lambda _: Block(other=object()),
        lambda i: Block(function=lambda: i),
        lambda _: Block(tensor=torch.zeros(1)),
        lambda _: Counting(),
        lambda _: Keeping(),
        hooked,
        replaced,
    ],
    ids=["settings", "types", "unknown", "functions", "tensors", "counts", "keeps", "hooks", "forward"],
)
def test_what_might_differ_is_not_played_back(make: Callable[[int], Block]) -> None:
    with network(make) as (blocks, _):
        run(blocks, torch.empty(2, 8))
        Keeping.kept = []
        assert Block.runs == 4


def test_functions_that_are_alike_are_no_difference() -> None:
    def make(_: int) -> Block:
        def function() -> Any:
            return later

        block = Block(function=function)
        if block.training is None:
            later = 1  # a variable that is not there yet when the function is looked at
        return block

    with network(make) as (blocks, _):
        run(blocks, torch.empty(2, 8))
        assert Block.runs == 1


def test_another_form_of_argument_is_another_call() -> None:
    with network(lambda _: Block()) as (blocks, _):
        for x in (torch.empty(2, 8), torch.empty(8, 2).t(), torch.empty(4, 8)[::2], torch.empty(3, 8)):
            run(blocks, x)
        assert Block.runs == 4


def test_a_block_that_gives_back_its_argument_gives_back_this_one() -> None:
    with network(lambda _: Lending()) as (blocks, _):
        x = torch.empty(2, 8)
        assert run(blocks, x) is x
        assert Block.runs == 1

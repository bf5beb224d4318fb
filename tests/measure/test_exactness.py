"""What calls itself exact is as near to float64 as what it replaces; what is not is seen."""

import pytest
import small_pipelines
import torch

from optsd import anatomy
from optsd.measure.exactness import MOST, Exactness, exactness
from optsd.variants import against_eager

EXACT = ("sdpa", "flash", "flash-enhanced", "kvcache", "flash+kvcache")


def _found(name: str, variant: str, plant=None) -> Exactness:
    pipes = [small_pipelines.make(name) for _ in range(2)]
    against_eager("baseline").apply(pipes[0])
    against_eager(variant).apply(pipes[1])
    if plant:
        plant(anatomy.denoiser(pipes[1]))
    with torch.no_grad():
        return exactness(*pipes, lambda: small_pipelines.draw(name, pipes[0], num_inference_steps=1, output_type="np"))


@pytest.mark.parametrize("technique", EXACT)
def test_an_exact_technique_errs_no_more_than_what_it_replaces(technique: str) -> None:
    found = _found("SD 1.5", technique)
    assert 0 < found.plain < 1e-4
    assert found.ratio <= MOST
    assert found.bias < 0.5
    assert found.nan_alike
    assert found.holds


@pytest.mark.parametrize("name", ["SDXL", "SD3"])
def test_of_other_classes_too(name: str) -> None:
    assert _found(name, "flash").holds


def test_the_same_network_errs_as_much_as_itself() -> None:
    found = _found("SD 1.5", "baseline")
    assert (found.ratio, found.plain) == (1.0, found.ours)


def test_an_approximate_technique_errs_more() -> None:
    found = _found("SD 1.5", "int8")
    assert found.ratio > 100
    assert not found.holds
    assert found.nan_alike, "INT8 refuses what is no number"


def test_half_precision_inside_is_seen() -> None:
    """A layer that rounds its output to bfloat16: far within what pictures show."""

    def plant(network: torch.nn.Module) -> None:
        layer = anatomy.at(network, "conv_out")[0]
        layer.register_forward_hook(lambda _, __, output: output.bfloat16().float())

    found = _found("SD 1.5", "flash", plant)
    assert found.ratio > 10


def test_an_error_to_one_side_is_seen() -> None:
    def plant(network: torch.nn.Module) -> None:
        anatomy.at(network, "conv_out")[0].register_forward_hook(lambda _, __, output: output + 1e-3)

    assert _found("SD 1.5", "flash", plant).bias > 0.9


def test_a_number_that_is_none_and_vanishes_is_seen() -> None:
    def plant(network: torch.nn.Module) -> None:
        anatomy.at(network, "conv_out")[0].register_forward_hook(lambda _, __, output: output.nan_to_num(0.0))

    found = _found("SD 1.5", "flash", plant)
    assert not found.nan_alike
    assert not found.holds


@pytest.mark.parametrize(("plain", "ours", "ratio"), [(2.0, 3.0, 1.5), (0.0, 0.0, 1.0), (0.0, 1e-9, float("inf"))])
def test_the_ratio(plain: float, ours: float, ratio: float) -> None:
    assert Exactness(plain, ours, 0.0, True).ratio == ratio

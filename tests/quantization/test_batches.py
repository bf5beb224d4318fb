"""A picture depends on itself alone: not on what else is in its batch, nor on where in it the picture stands."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import optsd
from optsd.quantization import kernels
from optsd.quantization.convert import keep_pictures_apart
from optsd.quantization.layers import quantize_layer

KERNELS_HERE = [name for name, kernel in kernels.KERNELS.items() if not kernel.refusal(torch.device("cpu"), 8, 1)]
PROMPTS = (
    "a small red circle to the left of a large blue square on a beige background",
    "a green triangle",
    "",
    "a large yellow square above a small purple circle",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def paint(pipe: Any, pictures: list[int]) -> torch.Tensor:
    """Batch × 3 × height × width in 0…255; each picture has its own prompt and noise."""
    seeds = [torch.Generator().manual_seed(seed) for seed in pictures]
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "pt"}
    return pipe([PROMPTS[picture] for picture in pictures], generator=seeds, **options).images.float() * 255


def distances(name: str, technique: str) -> list[float]:
    """Of each picture in batches of two, three and four, at every place, from itself alone."""
    pipe = optsd.load(name)
    pipe.set_progress_bar_config(disable=True)
    optsd.apply(pipe, technique)
    alone = [paint(pipe, [picture])[0] for picture in range(4)]
    batches = ([0, 1], [1, 2, 0], [3, 2, 1, 0])
    return [
        (found - alone[picture]).abs().max().item()
        for pictures in batches
        for picture, found in zip(pictures, paint(pipe, pictures), strict=True)
    ]


@pytest.fixture(scope="module", params=["shapes", "shapes-dit"])
def model(request) -> tuple[str, list[float]]:
    return request.param, distances(request.param, "baseline")


@pytest.mark.parametrize(
    "technique", ["int4", "sage", *(pytest.param(name, marks=pytest.mark.whole) for name in ("int8", "int8+flash"))]
)
def test_a_picture_alone_and_in_batches(technique, model) -> None:
    name, of_baseline = model
    found = distances(name, technique)
    assert all(mine <= theirs + 1 for mine, theirs in zip(found, of_baseline, strict=True)), (found, of_baseline)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([8, 4]),
    st.sampled_from(KERNELS_HERE),
    st.sampled_from([(4, 12), (8, 5), (7, 3)]),
    st.lists(st.sampled_from([1e-3, 1.0, -30.0]), min_size=2, max_size=5),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.booleans(),
    st.integers(0, 99),
)
def test_no_row_and_no_picture_looks_at_another(bits, kernel, sizes, magnitudes, dtype, convolves, seed) -> None:
    """Batches whose members are of different magnitude, to the last bit."""
    torch.manual_seed(seed)
    inputs, outputs = sizes
    before = nn.Conv2d(inputs, outputs, 3, padding=1) if convolves else nn.Linear(inputs, outputs)
    layer = quantize_layer(before, bits, 2, kernel)
    of_each = torch.tensor(magnitudes).view(-1, *[1] * (3 if convolves else 1))
    x = ((torch.randn(len(magnitudes), inputs, *[5, 4] * convolves) + 1) * of_each).to(dtype)
    with torch.no_grad():
        together = layer(x)
        for place in range(len(x)):
            assert torch.equal(together[place], layer(x[place : place + 1])[0]), kernel
        if not convolves:  # tokens of a picture, and the time's embedding: a row each
            assert torch.equal(layer(x[None].repeat(2, 1, 1)), together[None].repeat(2, 1, 1))
            assert torch.equal(layer(x[0]), together[0])


def test_layers_that_stay_in_high_precision_are_called_as_ever() -> None:
    """With one picture, several, none, or no batch at all; by position and by name."""
    for layer, shapes in (
        (nn.Linear(4, 6), [(4,), (1, 4), (3, 4), (3, 2, 4), (0, 4)]),
        (nn.Conv2d(4, 6, 3), [(4, 5, 5), (1, 4, 5, 5), (3, 4, 5, 5)]),
    ):
        apart = copy.deepcopy(layer)
        keep_pictures_apart(apart)
        for x in map(torch.randn, shapes):
            assert torch.allclose(apart(x), layer(x), atol=1e-6)
            assert torch.allclose(apart(input=x), layer(x), atol=1e-6)
    seen = []
    apart.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    apart(torch.randn(3, 4, 5, 5))
    assert seen == [1, 1, 1]

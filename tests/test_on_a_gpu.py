"""What only a GPU can tell: `pytest tests -m gpu`. Graphs and the judges have theirs beside their other tests."""

import numpy as np
import pytest
import torch
from torch import nn

import optsd
from optsd.measure.seeds import fix_seeds
from optsd.quantization.kernels import KERNELS
from optsd.quantization.layers import quantize_layer
from optsd.records import Workload

pytestmark = pytest.mark.gpu

PROMPT = "a small red circle to the left of a large blue square on a beige background"
LAYERS = {
    "linear": (lambda: nn.Linear(320, 640), (2, 100, 320)),
    "few rows": (lambda: nn.Linear(1280, 320), (8, 1280)),
    "no multiple of 8": (lambda: nn.Linear(77, 13), (3, 33, 77)),
    "3x3": (lambda: nn.Conv2d(320, 64, 3, padding=1), (2, 320, 16, 12)),
    "stride": (lambda: nn.Conv2d(64, 64, 3, stride=2, padding=1), (2, 64, 9, 9)),
    "1x1": (lambda: nn.Conv2d(96, 40, 1), (2, 96, 8, 8)),
    "few channels": (lambda: nn.Conv2d(4, 32, 3, padding=1), (2, 4, 8, 8)),
}


def draw(pipe) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    return pipe([PROMPT] * 2, num_inference_steps=4, generator=generators, output_type="np").images


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kernel", ["triton", "int_mm"])
@pytest.mark.parametrize("layer", LAYERS)
def test_kernels_agree_with_the_reference_on_the_same_integers(gpu, layer, kernel, bits) -> None:
    if reason := KERNELS[kernel].refusal(gpu, bits, groups=1):
        pytest.skip(reason)
    make, shape = LAYERS[layer]
    plain, x = make().requires_grad_(False).to(gpu, torch.float16), torch.randn(shape, device=gpu, dtype=torch.float16)
    for given in (x, x.contiguous(memory_format=torch.channels_last)) if x.ndim == 4 else (x,):
        found, wanted = (quantize_layer(plain, bits, 32, each)(given) for each in (kernel, "reference"))
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["baseline", "flash", "int8+flash"])
def test_peak_memory_is_the_estimate_s_within_a_tenth(gpu, name) -> None:
    from optsd.estimate import estimate
    from optsd.measure.memory import peak_memory

    work = Workload("sd15-random", "cuda", "float16", 4, 7.5, 512, 512, 4)
    measured = peak_memory("sd15-random", name, str(gpu), "float16", work).peak
    assert measured == pytest.approx(estimate("sd15-random", name, work, "a100").peak_bytes, rel=0.1)


@pytest.mark.parametrize("name", ["sdpa", "flash", "flash-enhanced", "kvcache", "deepcache:2", "tome:0.5", "graph"])
def test_undo_gives_the_pictures_back_to_the_byte(gpu, name) -> None:
    fix_seeds()
    pipe = optsd.load("shapes", gpu)
    before = draw(pipe)
    patch = optsd.apply(pipe, name)
    draw(pipe)
    patch.undo()
    assert (draw(pipe) == before).all()


@pytest.mark.parametrize("name", ["baseline", "flash", "int8+flash", "int4+flash", "tome:0.5", "flash+graph"])
def test_two_runs_draw_the_same_pictures(gpu, name) -> None:
    fix_seeds()
    drawn = []
    for _ in range(2):
        pipe = optsd.load("shapes", gpu)
        optsd.apply(pipe, name)
        drawn.append(draw(pipe))
    assert (drawn[0] == drawn[1]).all()

"""A peer: the same UNet in OpenVINO, same threads, same inputs, timed with ours in one session.

    pytest bench/test_openvino.py --model sd15-random --size 256

Needs the `peers` extra (openvino, nncf) and a CPU. OpenVINO's int8 is NNCF's post-training quantization of Linear and
Conv2d layers; its scales come from one random input, which decides the pictures' quality but not the time.
"""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from conftest_plugins.options import WORKLOAD, resolve
from optsd.records import Workload

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.peers

OURS = ("baseline", "sdpa", "int8", "int4", "int8+flash", "int4+flash")
THEIRS = ("float32", "bfloat16", "int8")
ROUNDS = 5


@pytest.fixture(scope="module")
def workload(pytestconfig: pytest.Config) -> Workload:
    pytest.importorskip("openvino")
    workload = resolve(pytestconfig)
    if workload.device != "cpu":
        pytest.skip("OpenVINO is timed on the CPU")
    return pytestconfig.stash[WORKLOAD]


@pytest.fixture(scope="module")
def inputs(workload: Workload) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Latents and text of one guided call: an image's two, conditioned and not."""
    import torch

    from optsd import models

    unet = models.load(workload.model, "cpu", "float32").unet
    factor = 8 if unet.config.in_channels == 4 else 1
    latents = torch.randn(2, unet.config.in_channels, workload.height // factor, workload.width // factor)
    return latents, torch.tensor(500.0), torch.randn(2, 77, unet.config.cross_attention_dim)


@pytest.fixture(scope="module")
def openvino_model(workload: Workload, inputs: Any) -> Any:
    """The UNet as an OpenVINO graph, with torch's default attention, which OpenVINO fuses."""
    import openvino
    import torch

    from optsd import models

    class Bare(torch.nn.Module):
        def __init__(self, unet: torch.nn.Module) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, latents: "torch.Tensor", step: "torch.Tensor", text: "torch.Tensor") -> "torch.Tensor":
            return self.unet(latents, step, text, return_dict=False)[0]

    with torch.no_grad():
        unet = models.load(workload.model, "cpu", "float32").unet
        model = openvino.convert_model(Bare(unet), example_input=inputs)
    model.reshape({port: list(value.shape) for port, value in zip(model.inputs, inputs, strict=True)})
    del unet
    gc.collect()
    return model


def compile_theirs(model: Any, precision: str, inputs: Any) -> Callable[[], object]:
    """A call of the compiled graph in that precision, on as many threads as torch uses."""
    import openvino
    import torch

    hint = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}[precision]
    if precision == "int8":
        nncf = pytest.importorskip("nncf")
        arrays = [value.numpy() for value in inputs]
        model = nncf.quantize(
            model.clone(),
            nncf.Dataset([arrays]),
            subset_size=1,
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    arrays = [value.numpy() for value in inputs]
    return lambda: request.infer(arrays)


@pytest.mark.parametrize("precision", THEIRS)
def test_openvino(precision: str, openvino_model: Any, inputs: Any, workload: Workload, benchmark) -> None:
    """Seconds of one guided UNet call in OpenVINO; compare with `test_ours` in the same table."""
    call = compile_theirs(openvino_model, precision, inputs)
    benchmark.group = f"UNet of {workload.model}, {workload.width}x{workload.height}, with guidance"
    benchmark.extra_info["by"] = f"OpenVINO {precision}"
    benchmark.pedantic(call, rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("ours", OURS)
def test_ours(ours: str, inputs: Any, workload: Workload, benchmark) -> None:
    """Seconds of one guided UNet call of a variant, on the same inputs and threads."""
    import torch

    from optsd import models

    pipe, patch = models.build(workload.model, ours, "cpu", workload.dtype)
    latents, step, text = inputs

    @torch.no_grad()
    def call() -> None:
        pipe.unet(latents, step, text, return_dict=False)

    benchmark.group = f"UNet of {workload.model}, {workload.width}x{workload.height}, with guidance"
    benchmark.extra_info["by"] = f"optsd {ours}"
    benchmark.pedantic(call, rounds=ROUNDS, warmup_rounds=1)
    assert patch.touched

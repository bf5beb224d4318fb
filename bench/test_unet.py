"""One guided UNet call: each variant beside the baseline, and OpenVINO beside both, in one session.

    pytest bench/test_unet.py -m unet --model sd15-random --size 256
    pytest bench/test_unet.py -m unet --model sd15-random --size 512 --variant flash -k ours

A round is one call of the baseline, then one of the other, on the same inputs and threads; `speedup` is their ratio
with its interval. `added_bytes` is what one call adds to the process's memory, in a pass of its own. OpenVINO needs
the `peers` extra (openvino, nncf) and a CPU; its int8 is NNCF's post-training quantization of Linear and Conv2d
layers, whose scales come from one random input: that decides the quality of pictures but not the time.
"""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from conftest_plugins.options import DEVICE, VARIANTS, chosen_preset, resolve
from optsd.judge.statistics import FEWEST_ROUNDS, median_interval, ratio_interval
from optsd.measure.memory import reset_peak, resident_bytes
from optsd.measure.time import seconds
from optsd.records import Workload

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.unet

OURS = ("baseline", "sdpa", "int8", "int4", "int8+flash", "int4+flash")
THEIRS = ("float32", "bfloat16", "int8")
Call = Callable[[], object]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ours" in metafunc.fixturenames:
        config = metafunc.config
        metafunc.parametrize("ours", config.stash[VARIANTS] if config.getoption("--variant") else OURS)


@pytest.fixture(scope="module")
def workload(pytestconfig: pytest.Config) -> Workload:
    return resolve(pytestconfig)


@pytest.fixture(scope="module")
def build(pytestconfig: pytest.Config, workload: Workload) -> Callable[[str], "tuple[Call, Any]"]:
    """A variant's UNet call, and its patch."""
    import torch

    from optsd import models

    def make(variant: str) -> tuple[Call, Any]:
        pipe, patch = models.build(workload.model, variant, pytestconfig.stash[DEVICE], workload.dtype)
        inputs = [value.to(pipe.device, pipe.unet.dtype) for value in example(workload, pipe)]

        @torch.no_grad()
        def call() -> None:
            pipe.unet(*inputs, return_dict=False)

        return call, patch

    return make


def example(workload: Workload, pipe: Any) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Latents, timestep and text of one guided call of one picture: two latents, conditioned and not."""
    import torch

    generator = torch.Generator().manual_seed(0)
    size = (workload.height // pipe.vae_scale_factor, workload.width // pipe.vae_scale_factor)
    latents = torch.randn(2, pipe.unet.config.in_channels, *size, generator=generator)
    length = pipe.tokenizer.model_max_length
    text = torch.randn(2, length, pipe.unet.config.cross_attention_dim, generator=generator)
    return latents, torch.tensor(500.0), text


@pytest.fixture(scope="module")
def baseline(build: Callable[[str], "tuple[Call, Any]"]) -> Call:
    call, _ = build("baseline")
    call()
    return call


def compare(call: Call, baseline: Call, device: "torch.device", benchmark, rounds: int) -> None:
    """Time both in turn; the figures go to the benchmark's `extra_info`."""
    call()
    if device.type == "cpu":
        reset_peak()
        before = resident_bytes()
        call()
        benchmark.extra_info["added_bytes"] = resident_bytes("VmHWM") - before
    theirs: list[float] = []
    mine: list[float] = []
    benchmark.pedantic(
        lambda: mine.append(seconds(call, device)),
        setup=lambda: theirs.append(seconds(baseline, device)),
        rounds=rounds,
    )
    benchmark.extra_info["readings"] = {"baseline": theirs, "other": mine}
    benchmark.extra_info["seconds"] = median_interval(mine)
    benchmark.extra_info["speedup"] = ratio_interval(theirs, mine)
    took, speedup = benchmark.extra_info["seconds"], benchmark.extra_info["speedup"]
    added = benchmark.extra_info.get("added_bytes")
    print(
        f"{took.value:.3f} s [{took.low:.3f}, {took.high:.3f}], {speedup.value:.2f}x the baseline "
        f"[{speedup.low:.2f}, {speedup.high:.2f}]" + (f", adds {added / 2**20:.0f} MiB" if added else "")
    )


@pytest.mark.parametrize("precision", THEIRS)
def test_openvino(precision: str, openvino_model: Any, baseline: Call, rounds: int, benchmark) -> None:
    """Seconds of one call in OpenVINO."""
    import torch

    model, arrays = openvino_model
    compare(compile_theirs(model, precision, arrays), baseline, torch.device("cpu"), benchmark, rounds)


def test_ours(
    ours: str, build: Callable[[str], "tuple[Call, Any]"], baseline: Call, rounds: int, pytestconfig, benchmark
) -> None:
    """Seconds of one call of a variant."""
    import torch

    call, patch = (baseline, None) if ours == "baseline" else build(ours)
    compare(call, baseline, torch.device(pytestconfig.stash[DEVICE]), benchmark, rounds)
    assert patch is None or patch.touched


@pytest.fixture(scope="module")
def rounds(pytestconfig: pytest.Config) -> int:
    return max(chosen_preset(pytestconfig).rounds, FEWEST_ROUNDS)


@pytest.fixture(scope="module")
def openvino_model(workload: Workload) -> Any:
    """The UNet as an OpenVINO graph, with torch's default attention, which OpenVINO fuses; and its inputs."""
    openvino = pytest.importorskip("openvino")
    if workload.device != "cpu":
        pytest.skip("OpenVINO is timed on the CPU")
    import torch

    from optsd import models

    class Bare(torch.nn.Module):
        def __init__(self, unet: torch.nn.Module) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, latents: "torch.Tensor", step: "torch.Tensor", text: "torch.Tensor") -> "torch.Tensor":
            return self.unet(latents, step, text, return_dict=False)[0]

    with torch.no_grad():
        pipe = models.load(workload.model, "cpu", "float32")
        unet, inputs = pipe.unet, example(workload, pipe)
        model = openvino.convert_model(Bare(unet), example_input=inputs)
    model.reshape({port: list(value.shape) for port, value in zip(model.inputs, inputs, strict=True)})
    del unet, pipe
    gc.collect()
    return model, [value.numpy() for value in inputs]


def compile_theirs(model: Any, precision: str, arrays: list) -> Call:
    """A call of the compiled graph in that precision, on as many threads as torch uses."""
    import openvino
    import torch

    hint = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}[precision]
    if precision == "int8":
        nncf = pytest.importorskip("nncf")
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
    return lambda: request.infer(arrays)

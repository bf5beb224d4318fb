"""One guided UNet call: each variant beside the baseline, and OpenVINO beside both, in one session.

    pytest bench/test_unet.py -m unet --model sd15-random --size 256
    pytest bench/test_unet.py -m unet --model sd15-random --size 512 --variant flash -k ours

A round is one call of the baseline, then one of the other, on the same inputs and threads; `speedup` is their ratio
with its interval. On a shared machine two such ratios, taken minutes apart, are a poor measure of each other: variants
of int8 also run in turn with OpenVINO's int8 itself (`-k beside`). `added_bytes` is what one call adds to
the process's memory, and `operators_ms` where its time goes, each in a pass of its own (OpenVINO takes its memory when
it compiles, before the call). Each subject lives in a process of its own (`bench/apart.py`). OpenVINO needs the
`peers` extra (openvino, nncf) and a CPU; its int8 is NNCF's post-training quantization of Linear and Conv2d layers,
whose scales come from one random input: that decides the quality of pictures but not the time. Whole pictures are
timed by `test_peers.py`.
"""

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.apart import apart, ask, in_turn
from conftest_plugins.options import VARIANTS
from optsd.errors import OptsdError
from optsd.measure.memory import reset_peak, resident_bytes
from optsd.measure.time import seconds
from optsd.records import Workload

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.unet

OURS = ("baseline", "sdpa", "int8", "int4", "int8+flash", "int4+flash")
THEIRS = ("float32", "bfloat16", "int8")
MOST_OPERATORS = 15
Subject = tuple[Callable[[], object], "torch.device"]
"""One call, and where it runs."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ours" in metafunc.fixturenames:
        config = metafunc.config
        ours = config.stash[VARIANTS] if config.getoption("--variant") else OURS
        beside = "beside" in metafunc.function.__name__
        metafunc.parametrize("ours", [name for name in ours if not beside or "int8" in name])


@pytest.fixture(scope="module")
def baseline(placed: Workload, device: str) -> Iterator[Executor]:
    with apart(warm, our_call, placed, device, "baseline") as process:
        yield process


@pytest.fixture(scope="module")
def openvino_graph(placed: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet as an OpenVINO graph of its own shapes, with torch's default attention, which OpenVINO fuses."""
    pytest.importorskip("openvino")
    if placed.device != "cpu":
        pytest.skip("OpenVINO is timed on the CPU")
    file = tmp_path_factory.mktemp("openvino") / "unet.xml"
    with apart(write_graph, placed, file):
        return file


@pytest.fixture(scope="module")
def openvino_int8(openvino_graph: Path, placed: Workload) -> Iterator[Executor]:
    """Made once: calibrating it takes minutes."""
    with theirs(placed, openvino_graph, "int8") as process:
        yield process


@pytest.mark.parametrize("precision", THEIRS)
def test_openvino(
    precision: str, openvino_graph: Path, placed: Workload, baseline: Executor, enough_rounds: int, benchmark
) -> None:
    """Seconds of one call in OpenVINO."""
    with theirs(placed, openvino_graph, precision) as process:
        compare(process, baseline, placed, benchmark, enough_rounds)


def test_ours(ours: str, placed: Workload, device: str, baseline: Executor, enough_rounds: int, benchmark) -> None:
    """Seconds of one call of a variant."""
    with apart(warm, our_call, placed, device, ours) as process:
        compare(process, baseline, placed, benchmark, enough_rounds)
        benchmark.extra_info["operators_ms"] = ask(process, operators_ms)


def test_beside_openvino_int8(
    ours: str, openvino_int8: Executor, placed: Workload, device: str, enough_rounds: int, benchmark
) -> None:
    """Seconds of one call of a variant, in turn with OpenVINO's int8, which is the baseline here."""
    with apart(warm, our_call, placed, device, ours) as process:
        compare(process, openvino_int8, placed, benchmark, enough_rounds)


def theirs(workload: Workload, graph: Path, precision: str) -> AbstractContextManager[Executor]:
    if precision == "int8" and importlib.util.find_spec("nncf") is None:
        pytest.skip("OpenVINO's int8 needs nncf; pip install 'optsd[peers]'")
    return apart(warm, their_call, workload, graph, precision)


def compare(process: Executor, baseline: Executor, workload: Workload, benchmark, rounds: int) -> None:
    """Time both in turn; the figures go to the benchmark's `extra_info`."""
    if workload.device == "cpu":
        benchmark.extra_info["added_bytes"] = ask(process, added_bytes)
    told = in_turn(
        benchmark,
        rounds,
        lambda number: ask(baseline, call_seconds),
        lambda number: ask(process, call_seconds),
        unit="s",
        beside="the baseline",
    )
    added = benchmark.extra_info.get("added_bytes")
    print(told + (f", adds {added / 2**20:.0f} MiB" if added else ""))


# What follows runs in the processes of the subjects.


def warm(make: Callable[..., Subject], *arguments: Any) -> Subject:
    """What `make` makes of them, the call run once."""
    subject = make(*arguments)
    subject[0]()
    return subject


def call_seconds(subject: Subject) -> float:
    return seconds(*subject)


def added_bytes(subject: Subject) -> int:
    reset_peak()
    before = resident_bytes()
    subject[0]()
    return resident_bytes("VmHWM") - before


def operators_ms(subject: Subject) -> dict[str, float]:
    """The milliseconds of the operators that take the most, their own without those inside, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = subject[1].type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        call_seconds(subject)
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # On a GPU an operator has its kernels' time too: the kernels alone are counted.
    seen = [event for event in profiled.key_averages() if (event.device_type.name == "CUDA") == on_gpu]
    times = {event.key: round(getattr(event, own) / 1e3, 3) for event in seen}
    return dict(sorted(times.items(), key=lambda item: -item[1])[:MOST_OPERATORS])


def our_call(workload: Workload, device: str, variant: str) -> Subject:
    import torch

    from optsd import anatomy, models
    from optsd.measure.seeds import fix_seeds

    fix_seeds()  # cuDNN and cuBLAS choose as they do where whole pictures are timed
    pipe, _ = models.build(workload.model, variant, device, workload.dtype)
    unet = anatomy.denoiser(pipe)
    inputs = [value.to(pipe.device, unet.dtype) for value in example(workload, pipe)]

    @torch.no_grad()
    def call() -> "torch.Tensor":
        return unet(*inputs, return_dict=False)[0]

    if not call().isfinite().all():
        raise OptsdError(f"the UNet of {variant} gives numbers that are not finite", "use --dtype float32")
    return call, pipe.device


def example(workload: Workload, pipe: Any) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Latents, timestep and text of one guided call of one picture: two latents, conditioned and not."""
    import torch

    from optsd import anatomy

    anatomy.check_unet(pipe, "this bench", "which others' runtimes take")
    config = anatomy.denoiser(pipe).config
    generator = torch.Generator().manual_seed(0)
    size = (workload.height // pipe.vae_scale_factor, workload.width // pipe.vae_scale_factor)
    latents = torch.randn(2, config.in_channels, *size, generator=generator)
    length = pipe.tokenizer.model_max_length
    text = torch.randn(2, length, config.cross_attention_dim, generator=generator)
    return latents, torch.tensor(500.0), text


def write_graph(workload: Workload, file: Path) -> None:
    import openvino
    import torch

    from optsd import anatomy, models

    class Bare(torch.nn.Module):
        def __init__(self, unet: torch.nn.Module) -> None:
            super().__init__()
            self.network = unet

        def forward(self, latents: "torch.Tensor", step: "torch.Tensor", text: "torch.Tensor") -> "torch.Tensor":
            return self.network(latents, step, text, return_dict=False)[0]

    with torch.no_grad():
        pipe = models.load(workload.model, "cpu", "float32")
        inputs = example(workload, pipe)
        graph = openvino.convert_model(Bare(anatomy.denoiser(pipe)), example_input=inputs)
    graph.reshape({port: list(value.shape) for port, value in zip(graph.inputs, inputs, strict=True)})
    openvino.save_model(graph, file, compress_to_fp16=False)


def their_call(workload: Workload, file: Path, precision: str) -> Subject:
    """A call of the graph in that precision, on as many threads as torch uses."""
    import openvino
    import torch

    from optsd import models

    core = openvino.Core()
    graph = core.read_model(file)
    arrays = [value.numpy() for value in example(workload, models.load(workload.model, "cpu", "float32"))]
    hint = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}[precision]
    if precision == "int8":
        import nncf

        graph = nncf.quantize(
            graph,
            nncf.Dataset([arrays]),
            subset_size=1,
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(graph, "CPU", options).create_infer_request()
    return lambda: request.infer(arrays), torch.device("cpu")

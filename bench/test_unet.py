"""One guided UNet call: each variant beside the baseline, and OpenVINO beside both, in one session.

    pytest bench/test_unet.py -m unet --model sd15-random --size 256
    pytest bench/test_unet.py -m unet --model sd15-random --size 512 --variant flash -k ours

A round is one call of the baseline, then one of the other, on the same inputs and threads; `speedup` is their ratio
with its interval. On a shared machine two such ratios, taken minutes apart, are a poor measure of each other: variants
of int8 also run in turn with OpenVINO's int8 itself (`-k beside`). `added_bytes` is what one call adds to
the process's memory, and `operators_ms` where its time goes, each in a pass of its own (OpenVINO takes its memory when
it compiles, before the call). Each subject lives in a process of its own, as it would at its user's: in one process
with others, the memory that they had freed made the baseline faster, whose large tensors no longer came from fresh
pages. OpenVINO needs the `peers` extra (openvino, nncf) and a CPU; its int8 is NNCF's post-training quantization of
Linear and Conv2d layers, whose scales come from one random input: that decides the quality of pictures but not the
time.
"""

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conftest_plugins.options import DEVICE, MODEL, VARIANTS, chosen_preset, resolve
from optsd.errors import OptsdError
from optsd.judge.statistics import FEWEST_ROUNDS, median_interval, ratio_interval
from optsd.measure.memory import reset_peak, resident_bytes
from optsd.measure.time import seconds
from optsd.records import Workload

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.unet

OURS = ("baseline", "sdpa", "int8", "int4", "int8+flash", "int4+flash")
THEIRS = ("float32", "bfloat16", "int8")
MOST_OPERATORS = 15
Call = Callable[[], object]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ours" in metafunc.fixturenames:
        config = metafunc.config
        ours = config.stash[VARIANTS] if config.getoption("--variant") else OURS
        beside = "beside" in metafunc.function.__name__
        metafunc.parametrize("ours", [name for name in ours if not beside or "int8" in name])


@pytest.fixture(scope="module")
def workload(pytestconfig: pytest.Config) -> Workload:
    """This run's, with the model's place instead of its name: nothing here records it, and other processes load it."""
    return replace(resolve(pytestconfig), model=pytestconfig.stash[MODEL])


@pytest.fixture(scope="module")
def device(pytestconfig: pytest.Config) -> str:
    return pytestconfig.stash[DEVICE]


@pytest.fixture(scope="module")
def rounds(pytestconfig: pytest.Config) -> int:
    return max(chosen_preset(pytestconfig).rounds, FEWEST_ROUNDS)


@pytest.fixture(scope="module")
def baseline(workload: Workload, device: str) -> Iterator[Executor]:
    with apart(our_call, workload, device, "baseline") as process:
        yield process


@pytest.fixture(scope="module")
def openvino_graph(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The UNet as an OpenVINO graph of its own shapes, with torch's default attention, which OpenVINO fuses."""
    pytest.importorskip("openvino")
    if workload.device != "cpu":
        pytest.skip("OpenVINO is timed on the CPU")
    file = tmp_path_factory.mktemp("openvino") / "unet.xml"
    with apart() as process:
        process.submit(write_graph, workload, file).result()
    return file


@pytest.mark.parametrize("precision", THEIRS)
def test_openvino(
    precision: str, openvino_graph: Path, workload: Workload, baseline: Executor, rounds: int, benchmark
) -> None:
    """Seconds of one call in OpenVINO."""
    with theirs(workload, openvino_graph, precision) as process:
        compare(process, baseline, workload, benchmark, rounds)


def test_ours(ours: str, workload: Workload, device: str, baseline: Executor, rounds: int, benchmark) -> None:
    """Seconds of one call of a variant."""
    with apart(our_call, workload, device, ours) as process:
        compare(process, baseline, workload, benchmark, rounds)
        benchmark.extra_info["operators_ms"] = process.submit(operators_ms).result()


def test_beside_openvino_int8(
    ours: str, openvino_graph: Path, workload: Workload, device: str, rounds: int, benchmark
) -> None:
    """Seconds of one call of a variant, in turn with OpenVINO's int8, which is the baseline here."""
    with theirs(workload, openvino_graph, "int8") as baseline, apart(our_call, workload, device, ours) as process:
        compare(process, baseline, workload, benchmark, rounds)


def theirs(workload: Workload, graph: Path, precision: str) -> AbstractContextManager[Executor]:
    if precision == "int8" and importlib.util.find_spec("nncf") is None:
        pytest.skip("OpenVINO's int8 needs nncf; pip install 'optsd[peers]'")
    return apart(their_call, workload, graph, precision)


def compare(process: Executor, baseline: Executor, workload: Workload, benchmark, rounds: int) -> None:
    """Time both in turn; the figures go to the benchmark's `extra_info`."""
    if workload.device == "cpu":
        benchmark.extra_info["added_bytes"] = process.submit(added_bytes).result()
    before: list[float] = []
    after: list[float] = []
    benchmark.pedantic(
        lambda: after.append(process.submit(call_seconds).result()),
        setup=lambda: before.append(baseline.submit(call_seconds).result()),
        rounds=rounds,
    )
    benchmark.extra_info["readings"] = {"baseline": before, "other": after}
    benchmark.extra_info["seconds"] = median_interval(after)
    benchmark.extra_info["speedup"] = ratio_interval(before, after)
    took, speedup = benchmark.extra_info["seconds"], benchmark.extra_info["speedup"]
    added = benchmark.extra_info.get("added_bytes")
    print(
        f"{took.value:.3f} s [{took.low:.3f}, {took.high:.3f}], {speedup.value:.2f}x the baseline "
        f"[{speedup.low:.2f}, {speedup.high:.2f}]" + (f", adds {added / 2**20:.0f} MiB" if added else "")
    )


@contextmanager
def apart(make: Callable[..., tuple[Call, "torch.device"]] | None = None, *arguments: Any) -> Iterator[Executor]:
    """A process of its own, in which `make(*arguments)` has made the call, which has been run once."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        if make:
            process.submit(prepare, make, *arguments).result()
        yield process


# What follows runs in those processes.

subject: "tuple[Call, torch.device]"


def prepare(make: Callable[..., tuple[Call, "torch.device"]], *arguments: Any) -> None:
    global subject
    subject = make(*arguments)
    subject[0]()


def call_seconds() -> float:
    return seconds(*subject)


def added_bytes() -> int:
    reset_peak()
    before = resident_bytes()
    subject[0]()
    return resident_bytes("VmHWM") - before


def operators_ms() -> dict[str, float]:
    """The milliseconds of the operators that take the most, their own without those inside, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = subject[1].type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        call_seconds()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # On a GPU an operator has its kernels' time too: the kernels alone are counted.
    seen = [event for event in profiled.key_averages() if (event.device_type.name == "CUDA") == on_gpu]
    times = {event.key: round(getattr(event, own) / 1e3, 3) for event in seen}
    return dict(sorted(times.items(), key=lambda item: -item[1])[:MOST_OPERATORS])


def our_call(workload: Workload, device: str, variant: str) -> "tuple[Call, torch.device]":
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


def their_call(workload: Workload, file: Path, precision: str) -> "tuple[Call, torch.device]":
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

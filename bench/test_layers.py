"""The layer view: milliseconds and achieved operations a second of SD v1.5's own layer shapes, kernel by kernel.

    pytest bench/test_layers.py -m layers --benchmark-columns=min,median,rounds

One group a shape. Random numbers: what a layer holds does not change how long it takes. Attention and the quantizing
of activations have groups of their own, of the type that passes between quantized layers: float16 on a GPU, bfloat16 on
a CPU that has instructions for it, float32 on another.
Pictures lie channels last, as quantized layers give them; "channels first" is float16 as diffusers lays it, so that
what the order gains is not taken for int8's. On a GPU a round is one call and the wait for it, launches included;
`device_us` is one call among many that were queued before, without them. Weights stay in the cache in either, where
they fit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.layers


@dataclass(frozen=True)
class Shape:
    """A layer of SD v1.5's UNet; `side` is that of its picture, where the latents' side is 32 (256×256 pixels)."""

    layer: str
    inputs: int
    outputs: int
    kernel_size: int  # 0: a Linear layer
    side: int

    def __str__(self) -> str:
        kind = f"conv{self.kernel_size}x{self.kernel_size}" if self.kernel_size else "linear"
        return f"{kind} {self.inputs}-{self.outputs} at {self.side}x{self.side}"


SHAPES = (
    Shape("down_blocks.0.resnets.0.conv1", 320, 320, 3, 32),
    Shape("down_blocks.1.resnets.1.conv1", 640, 640, 3, 16),
    Shape("down_blocks.2.resnets.1.conv1", 1280, 1280, 3, 8),
    Shape("mid_block.resnets.0.conv1", 1280, 1280, 3, 4),
    Shape("up_blocks.3.resnets.0.conv1", 960, 320, 3, 32),
    Shape("up_blocks.1.resnets.0.conv1", 2560, 1280, 3, 8),
    Shape("down_blocks.0.attentions.0.proj_in", 320, 320, 1, 32),
    Shape("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 320, 320, 0, 32),
    Shape("down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj", 320, 2560, 0, 32),
    Shape("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj", 640, 5120, 0, 16),
    Shape("down_blocks.2.attentions.0.transformer_blocks.0.ff.net.2", 5120, 1280, 0, 8),
)
FIRST = "float16 channels first"
FLOATS = ("float32", "bfloat16", "float16", FIRST)
QUEUED = 20
AHEAD_CYCLES = 20_000_000  # about 10 ms: longer than Python needs to queue the calls
LATENTS = {"cpu": 2, "cuda": 8}  # one picture with guidance; the guide's batch of 4 with guidance
SCALE = {"cpu": 1, "cuda": 2}  # 256×256 pixels, and the guide's 512×512


@pytest.fixture(scope="module")
def device(pytestconfig: pytest.Config) -> "torch.device":
    from optsd.models import resolve_device

    return resolve_device(pytestconfig.getoption("--device"))


def make(shape: Shape, how: str, device: "torch.device") -> tuple[Callable[[], object], int]:
    """A call of the layer and its operations: two for each multiplication and addition."""
    import torch

    from optsd.quantization.layers import quantize_layer

    side = shape.side * SCALE[device.type]
    batch = LATENTS[device.type]
    order = torch.contiguous_format if how == FIRST else torch.channels_last
    layer: torch.nn.Linear | torch.nn.Conv2d
    if shape.kernel_size:
        layer = torch.nn.Conv2d(shape.inputs, shape.outputs, shape.kernel_size, padding=shape.kernel_size // 2)
        x = torch.randn(batch, shape.inputs, side, side).contiguous(memory_format=order)
        layer = layer.to(memory_format=order)
    else:
        layer, x = torch.nn.Linear(shape.inputs, shape.outputs), torch.randn(batch, side * side, shape.inputs)
    operations = 2 * batch * side * side * layer.weight.numel()
    half = torch.float16 if device.type == "cuda" else torch.float32
    dtype = getattr(torch, how.partition(" ")[0]) if how in FLOATS else half
    layer, x = layer.requires_grad_(False).to(device, dtype), x.to(device, dtype)
    if how in FLOATS:
        return (lambda: layer(x)), operations
    bits, _, kernel = how.partition(" ")
    quantized = quantize_layer(layer, int(bits.removeprefix("int")), 32, kernel)
    return (lambda: quantized(x)), operations


def measure(call: Callable[[], object], device: "torch.device", benchmark, how: str, operations: int = 0) -> None:
    """Time the call; how many operations a second it achieves, by the fastest round, goes to `extra_info`."""
    from optsd.measure.time import synchronize

    def run() -> None:
        call()
        synchronize(device)

    benchmark.extra_info["how"] = how
    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
    if not benchmark.stats:
        return
    seconds = benchmark.stats.stats.min
    if device.type == "cuda":
        seconds = min(queued_seconds(call, device) for _ in range(3))
        benchmark.extra_info["device_us"] = round(seconds * 1e6, 1)
    if operations:
        benchmark.extra_info["operations"] = operations
        benchmark.extra_info["gigaoperations_s"] = round(operations / seconds / 1e9, 1)


def queued_seconds(call: Callable[[], object], device: "torch.device") -> float:
    """Seconds of one call on the GPU, of many that wait there until all are queued."""
    import torch

    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD_CYCLES)
        begin.record()
        for _ in range(QUEUED):
            call()
        end.record()
        torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3 / QUEUED


# The keys of optsd.quantization.kernels.KERNELS, which imports torch: collecting must not.
KERNEL_NAMES = ("native", "triton", "int_mm", "reference")


@pytest.mark.parametrize("how", [*FLOATS, *(f"int{bits} {kernel}" for bits in (8, 4) for kernel in KERNEL_NAMES)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer(shape: Shape, how: str, device: "torch.device", benchmark) -> None:
    if how == FIRST and not shape.kernel_size:
        pytest.skip("tokens have no channels to order")
    if how.startswith("float16") and device.type == "cpu":
        pytest.skip("CPUs without AVX512-FP16 compute float16 by way of float32")
    kernel = how.partition(" ")[2]
    if kernel == "reference" and shape.kernel_size == 3:
        pytest.skip("the reference is for comparing numbers; its 1×1 and Linear times say how slow it is")
    from optsd.quantization.kernels import KERNELS

    if kernel and (reason := KERNELS[kernel].refusal(device, 8 if "int8" in how else 4, groups=1)):
        pytest.skip(reason)
    call, operations = make(shape, how, device)
    benchmark.group = f"{shape} ({shape.layer})"
    measure(call, device, benchmark, how, operations)


def between_layers(device: "torch.device") -> "torch.dtype":
    import torch

    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


@dataclass(frozen=True)
class Tokens:
    """An attention layer of SD v1.5's UNet, with `queries` where the latents' side is 32; 8 heads of `width`."""

    queries: int
    keys: int
    width: int

    def __str__(self) -> str:
        return f"attention {self.queries}x{self.keys} of 8x{self.width}"


TEXT = 77
TOKENS = (
    *(Tokens(side * side, side * side, width) for side, width in ((32, 40), (16, 80), (8, 160))),
    *(Tokens(side * side, TEXT, width) for side, width in ((32, 40), (16, 80))),
)


@pytest.mark.parametrize("name", ["flash-attn", "CPU flash", "CPU sage", "SDPA flash", "memory-efficient", "eager"])
@pytest.mark.parametrize("tokens", TOKENS, ids=str)
def test_attention(tokens: Tokens, name: str, device: "torch.device", benchmark) -> None:
    import torch

    from optsd.optimizations.flash_enhanced import FALLBACKS
    from optsd.optimizations.sage import SAGE_KERNELS

    kernel = next(kernel for kernel in (*FALLBACKS, *SAGE_KERNELS) if kernel.name == name)
    dtype = between_layers(device)
    if reason := kernel.refusal(device, dtype, tokens.width, masked=False):
        pytest.skip(reason)
    area = SCALE[device.type] ** 2
    queries, keys = tokens.queries * area, tokens.keys if tokens.keys == TEXT else tokens.keys * area

    def heads(count: int) -> torch.Tensor:
        return torch.randn(LATENTS[device.type], count, 8, tokens.width, dtype=dtype, device=device).transpose(1, 2)

    query, key, value = heads(queries), heads(keys), heads(keys)
    operations = 4 * LATENTS[device.type] * 8 * queries * keys * tokens.width
    benchmark.group = str(tokens)
    measure(lambda: kernel(query, key, value, None, tokens.width**-0.5), device, benchmark, name, operations)


@pytest.mark.parametrize("how", ["native", "torch"])
@pytest.mark.parametrize("channels", [320, 2560])
def test_quantizing(channels: int, how: str, device: "torch.device", benchmark, monkeypatch) -> None:
    """Range, scale and integers of what enters a Linear layer of 32×32 tokens."""
    import torch

    from optsd import native
    from optsd.quantization.schemes import quantize_activation

    if how == "torch":
        monkeypatch.setattr(native, "serves", lambda x: False)
    elif device.type != "cpu" or native.refusal():
        pytest.skip(native.refusal() or f"the native kernels do not run on {device}")
    dtype = between_layers(device)
    x = torch.randn(LATENTS[device.type], 1024 * SCALE[device.type] ** 2, channels, dtype=dtype, device=device)
    benchmark.group = f"quantizing {channels} channels"
    measure(lambda: quantize_activation(x, 2), device, benchmark, how)

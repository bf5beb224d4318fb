"""What one operation computes and moves: its kind, its precision, its arithmetic and its memory traffic."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from optsd.errors import Unsupported

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Operation:
    """One kernel of the traced run. `flops` are multiplications and additions on matrices, of floats or integers.

    `moved_bytes`: every input read once and every output written once. `weight_bytes`: the share of weights in it.
    `step` counts the denoiser's calls from 1; 0 is before the first.
    """

    name: str
    kind: str  # "convolution", "linear", "attention", "other"
    precision: str  # of the factors: "float16", "int8", …
    flops: float
    moved_bytes: int
    weight_bytes: int
    module: str  # "unet.down_blocks.0…", "" between the components
    step: int

    @property
    def stage(self) -> str:
        """The component that it runs in: `text_encoder`, `unet`, `vae`, or `pipeline` between them."""
        return self.module.partition(".")[0] or "pipeline"


_KINDS: dict[Any, str] = {
    aten.mm: "linear",
    aten.addmm: "linear",
    aten._scaled_mm: "linear",
    aten.bmm: "attention",
    aten.baddbmm: "attention",
}
_ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
_LOOKUPS = {aten.embedding, aten.index, aten.index_select, aten.gather}

Rule = Callable[..., tuple[str, str, float]]
RULES: dict[str, Rule] = {}
"""For operations that torch's FLOP counter does not know: kind, precision and flops from arguments and output."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the arithmetic of operations, by qualified names such as `aten::_int_mm`."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@rule("aten::_int_mm")
def _int_mm(left: Tensor, right: Tensor, *_: Any, out: Any, **__: Any) -> tuple[str, str, float]:
    return "linear", name_of(left.dtype), 2.0 * left.shape[0] * left.shape[1] * right.shape[1]


@rule("optsd::int8_linear", "optsd::int8_conv2d")
def _int8_product(image: Tensor, *parts: Any, out: Tensor) -> tuple[str, str, float]:
    return "linear", name_of(image.dtype), 2.0 * out.numel() * parts[2].shape[1]  # integers: outputs × inputs


@rule("optsd::quantized_layer")
def _quantized_layer(x: Tensor, *parts: Any, out: Tensor, **end: Any) -> tuple[str, str, float]:
    window = parts[5]
    inputs = x.shape[1] * window[0] * window[1] if window else x.shape[-1]
    return "linear", "int8", 2.0 * out.numel() * inputs * (2 if end.get("gated") else 1)


@rule("optsd::quantize", "optsd::geglu", "optsd::group_norm", "optsd::add_layer_norm")
@rule("optsd::channel_moments", "optsd::group_scales", "optsd::scaled")
@rule("optsd::normal_rows", "optsd::add_normal_rows", "optsd::geglu_rows")
@rule("optsd::int8_rows", "optsd::int8_ranges", "optsd::int8_pictures", "optsd::int4_integers")
def _elementwise(x: Tensor, *_: Any, **__: Any) -> tuple[str, str, float]:
    return "other", name_of(x.dtype), 0.0


@rule("optsd::flash_attention", "optsd::sage_attention")
def _flash_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, out: Tensor) -> tuple[str, str, float]:
    return "attention", name_of(query.dtype), attention_flops(query, key, value)


@rule("flash_attn::_flash_attn_forward")
def _flash_attn(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[str, str, float]:
    by_heads = (tensor.transpose(1, 2) for tensor in (query, key, value))  # from B×N×heads×d
    return "attention", name_of(query.dtype), attention_flops(*by_heads)


def name_of(dtype: torch.dtype) -> str:
    """`float16`, `int8`, …; uint8 has int8's rate on every device."""
    return str(dtype).removeprefix("torch.").replace("uint8", "int8")


def arithmetic(function: Any, args: tuple, kwargs: dict, output: Any) -> tuple[str, str, float]:
    """Kind, precision and flops of one call. Raises Unsupported for a matrix product that has no rule."""
    packet, name = function.overloadpacket, function.name().partition(".")[0]
    if name in RULES:
        return RULES[name](*args, out=output, **kwargs)
    operand = next(iter(tensors(args)), None)
    precision = name_of(operand.dtype) if operand is not None else ""
    if packet in flop_registry:
        kind = _KINDS.get(packet) or ("attention" if "attention" in name else "convolution")
        return kind, precision, float(flop_registry[packet](*args, **kwargs, out_val=output))
    multiplies = any(word in name for word in ("mm", "conv", "linear", "attention", "matmul", "dot"))
    if multiplies or function.namespace not in ("aten", "prims"):
        raise Unsupported(
            f"the operation {name} has no rule for its arithmetic", "add one with optsd.estimate.operations.rule"
        )
    return "other", precision, 0.0


def traffic(function: Any, args: tuple, kwargs: dict, outputs: Iterable[Tensor]) -> tuple[int, list[Tensor]]:
    """Bytes that the call reads and writes, and the tensors that it reads."""
    packet, written = function.overloadpacket, sum(map(moved, outputs))
    if packet in _ALLOCATIONS:
        return 0, []
    if packet in _LOOKUPS:  # only the rows that are asked for are read
        return 2 * written, []
    read = list(tensors((args, kwargs)))
    if packet is aten.copy_ or (packet is aten.baddbmm and kwargs.get("beta", 1) == 0):
        read = read[1:]  # overwritten, or multiplied by nothing
    return sum(map(moved, read)) + written, read


def attention_flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    """2·(B·H·L·S·E + B·H·L·S·V): the two products of attention, whatever kernel computes them."""
    return 2.0 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def moved(tensor: Tensor) -> int:
    """Bytes that reading or writing the tensor moves; an expanded tensor is no larger than its storage."""
    size = tensor.numel() * tensor.element_size()
    return size if tensor.layout != torch.strided else min(size, tensor.untyped_storage().nbytes())


def tensors(nested: Any) -> Iterable[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for item in nested:
            yield from tensors(item)
    elif isinstance(nested, dict):
        yield from tensors(tuple(nested.values()))

"""The CPU's own kernels (kernels.cpp): attention, quantized layers, GroupNorm with SiLU, LayerNorm, and GEGLU.

The machine's C++ compiler makes them the first time, in a few seconds, into `$OPTSD_HOME/native`, for the best of the
`InstructionSet`s that the processor has. Where they cannot run, `refusal` says why, and torch's operators take their
place: the same integers, the same attention, slower.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from optsd.errors import BadInput, Unsupported
from optsd.files import home, write_atomically

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fopenmp", "-fno-strict-aliasing", "-ffp-contract=off")
TYPES = (torch.float32, torch.bfloat16)
OUTPUTS = 16  # `pack` makes a multiple of them
GATED = 64  # what a gated layer gives is a multiple of it: kernels.cpp's PANEL


@dataclass(frozen=True)
class InstructionSet:
    """What the kernels are compiled for. Flags are named, not -march=native: several machines may share a home."""

    name: str  # of the compiled file too
    flags: tuple[str, ...]
    source: str  # its header
    tile: int  # the header's VECTORS × LANES: outputs whose weights `pack` puts side by side


AVX512 = InstructionSet(
    "AVX-512",
    ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx512bf16", "-mfma"),
    "avx512.h",
    64,
)
AVX_VNNI = InstructionSet("AVX-VNNI", ("-mavx2", "-mfma", "-mavxvnni"), "avx2.h", 16)
AVX2 = InstructionSet("AVX2", ("-mavx2", "-mfma"), "avx2.h", 16)


def compiler() -> list[str]:
    """The C++ compiler, `g++` or what CXX says: as make has it, with a launcher and flags (`ccache g++ -B folder`)."""
    given = os.environ.get("CXX", "")
    try:
        return shlex.split(given) or ["g++"]
    except ValueError:  # a quotation that does not end: the name of no program
        return [given]


def instruction_set() -> InstructionSet:
    """The best one of this processor. Raises Unsupported where it has none, or torch's own kernels use a better one."""
    if torch.cpu._is_vnni_supported():  # AVX-512's, which oneDNN uses
        if torch.cpu._is_avx512_bf16_supported():
            return AVX512
        raise Unsupported("the CPU has AVX512-VNNI without -BF16", "use another kernel")
    if not torch.cpu._is_avx2_supported():
        raise Unsupported("the CPU has no AVX2", "use another kernel")
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return AVX_VNNI if capabilities.get("avx_vnni") else AVX2


@functools.cache
def refusal() -> str:
    """Why these kernels cannot run on this machine, or an empty string."""
    try:
        _library()
    except Unsupported as error:
        return error.problem
    except FileNotFoundError as error:
        return f"there is no C++ compiler {error.filename} (install g++, or set CXX)"
    except subprocess.CalledProcessError as error:
        return f"the C++ compiler failed ({next(iter(error.stderr.splitlines()), error.returncode)})"
    except (OSError, BadInput) as error:  # a compiler's file, or no home directory to keep it in
        return f"they could not be kept or loaded ({error})"
    return ""


def serves(x: Tensor) -> bool:
    """Whether what quantizes can work on this tensor: on the CPU, without gaps, of `TYPES`."""
    is_dense = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    # A compiler fuses torch's own operators with what is around them, and cannot look into these.
    is_reachable = not torch.compiler.is_compiling() and x.device.type == "cpu" and not refusal()
    return x.dtype in TYPES and is_dense and is_reachable


def quantize(x: Tensor, shares: int, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes of x's shape and memory format, and scales and zero points of its `shares`, which lie one after the other.

    Raises BadInput where a share has no finite range.
    """
    return torch.ops.optsd.quantize(x, shares, signed)


def not_finite(lowest: float, highest: float) -> BadInput:
    """What is raised where an activation has no finite range."""
    return BadInput(
        f"activations reach {lowest:g} … {highest:g} before a quantized layer",
        "leave that layer in high precision, or compute in bfloat16 or float32",
    )


def pack(integers: Tensor) -> Tensor:
    """int8, outputs × inputs, as `quantized_layer` reads them: tiles of outputs, with four inputs side by side."""
    outputs, inputs = integers.shape
    padded = functional.pad(integers, (0, -inputs % 4, 0, -outputs % OUTPUTS))
    tiles = (part.reshape(-1, tile, padded.shape[1] // 4, 4) for part, tile in _tiles(padded))
    return torch.cat([each.transpose(1, 2).reshape(-1) for each in tiles])


def unpack(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The inverse of `pack`."""
    quarters = -(-inputs // 4)
    tiles = (part.view(-1, quarters, tile, 4) for part, tile in _tiles(packed.view(-1, 4 * quarters)))
    return torch.cat([each.transpose(1, 2).reshape(-1, 4 * quarters) for each in tiles])[:outputs, :inputs].contiguous()


def _tiles(rows: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The rows that make whole tiles, and the rest, which is one smaller tile: each with the rows of its tiles."""
    tile = instruction_set().tile
    whole = len(rows) // tile * tile
    for part, size in ((rows[:whole], tile), (rows[whole:], len(rows) - whole)):
        if len(part):
            yield part, size


_OPERATORS = torch.library.Library("optsd", "FRAGMENT")


def _operator(schema: str, empty: Callable[..., Any]) -> Callable[[Callable], Callable]:
    """Make the function an operator of torch: a profile shows it, an estimate knows what it gives by `empty`."""
    name = schema.partition("(")[0]

    def register(function: Callable) -> Callable:
        _OPERATORS.define(schema)
        _OPERATORS.impl(name, function, "CPU")
        torch.library.register_fake(f"optsd::{name}", empty, lib=_OPERATORS)
        return function

    return register


def _empty_quantized(x: Tensor, shares: int, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    values = torch.empty_like(x, dtype=torch.int8 if signed else torch.uint8)
    return values, x.new_empty(shares, dtype=torch.float32), x.new_empty(shares, dtype=torch.int32)


@_operator("quantize(Tensor x, int shares, bool signed) -> (Tensor, Tensor, Tensor)", _empty_quantized)
def _quantize(x: Tensor, shares: int, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    values, scale, zero_point = _empty_quantized(x, shares, signed)
    if x.numel() % max(shares, 1) or not serves(x) or not (x.is_contiguous() or shares in (1, len(x))):
        raise ValueError(f"quantize does not fit these: {x.dtype} {tuple(x.shape)} in {shares} shares")
    ends = (ctypes.c_float * 2)()
    sizes, lowest, threads = (shares, x.numel() // max(shares, 1)), -128 if signed else 0, torch.get_num_threads()
    results = (values.data_ptr(), scale.data_ptr(), zero_point.data_ptr())
    if not _library().optsd_quantize(x.data_ptr(), x.dtype == torch.bfloat16, *sizes, lowest, threads, *results, ends):
        raise not_finite(*ends)
    return values, scale, zero_point


def _empty_layer(x: Tensor, *others: Any, gated: bool = False) -> Tensor:
    _, _, weight_scale, _, _, window, *_ = others
    width, dtype = len(weight_scale) // (2 if gated else 1), x.dtype if x.dtype in TYPES else torch.float32
    if not window:
        return x.new_empty([*x.shape[:-1], width], dtype=dtype)
    shape = [len(x), width, *window[-2:]]
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


@_operator(
    "quantized_layer(Tensor x, Tensor weights, Tensor? multipliers, Tensor weight_scale, Tensor column_sums, "
    "Tensor? bias, int[] window, Tensor? scale, Tensor? zero_point, *, Tensor? plus=None, bool gated=False) -> Tensor",
    lambda *given, plus=None, gated=False: _empty_layer(*given, gated=gated),
)
def _quantized_layer(
    x: Tensor,
    weights: Tensor,
    multipliers: Tensor | None,
    weight_scale: Tensor,
    column_sums: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    scale: Tensor | None,
    zero_point: Tensor | None,
    *,
    plus: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """… × inputs to … × outputs; or, with a `window`, batch × channels × height × width, channels last, to the same.

    x of `TYPES` is quantized, each row or picture by its own range, and so is the result's type; uint8 stands for
    (x - zero_point) · scale, float32 and int32 of each row or picture, and the result is float32. `weights`: as `pack`
    gives them; or, with `multipliers`, an `Int4Weight`'s. `window`: kernel size, stride, dilation (rows, columns each),
    margins (left, right, top, bottom), size of the result (rows, columns). Inputs or channels: a multiple of 4. `plus`,
    of the result's shape or, for pictures, batch × channels × 1 × 1, is added. With `gated` the result is half as wide:
    the first half, a multiple of `GATED`, times GELU of the second. Raises BadInput where x is NaN or infinite.
    """
    out = _empty_layer(x, weights, multipliers, weight_scale, column_sums, bias, window, gated=gated)
    if window:
        batch, channels, height, width = x.shape
        moves = (*window[:6], window[8], window[6], *window[10:])
        is_dense = x.is_contiguous(memory_format=torch.channels_last)
    else:
        channels = x.shape[-1]
        batch, height, width = x.numel() // max(channels, 1), 1, 1
        moves = (1, 1, 1, 1, 1, 1, 0, 0, 1, 1)
        is_dense = x.is_contiguous()
    outputs, inputs = len(weight_scale), moves[0] * moves[1] * channels
    given: list[tuple[Tensor, torch.dtype, tuple[int, ...]]]
    given = [(weight_scale, torch.float32, (outputs,)), (column_sums, torch.int32, (outputs,))]
    if bias is not None:
        given.append((bias, torch.float32, (outputs,)))
    if multipliers is None:
        half, group = 0, 1
        given.append((weights, torch.int8, ((outputs + -outputs % OUTPUTS) * inputs,)))
    else:
        half, group = len(weights), max(2 * len(weights) // max(len(multipliers), 1), 1)
        given.append((multipliers, torch.int8, (2 * half // group, outputs)))
        given.append((weights, torch.int8, (max(half, (inputs - 2) // 2), outputs)))  # x may be padded by 3
    is_quantized = x.dtype == torch.uint8
    if scale is not None:
        given.append((scale, torch.float32, (batch,)))
    if zero_point is not None:
        given.append((zero_point, torch.int32, (batch,)))
    fits = is_quantized == (scale is not None) == (zero_point is not None) and not (gated and outputs % (2 * GATED))
    if plus is not None:
        of_pixels = not window or plus.shape[2:] != (1, 1)
        layout = torch.channels_last if window and of_pixels else torch.contiguous_format
        fits &= plus.dtype == out.dtype and plus.is_contiguous(memory_format=layout)
        fits &= plus.shape == (out.shape if of_pixels else (*out.shape[:2], 1, 1))
        by_pixel = out.shape[1] if window and of_pixels else 0
        apart = (plus.numel() // max(batch, 1), by_pixel)
    else:
        apart = (0, 0)
    fits &= all(each.shape == size and each.dtype == kind and each.is_contiguous() for each, kind, size in given)
    if not fits or not is_dense or not channels or channels % 4 or x.dtype not in (torch.uint8, *TYPES):
        raise ValueError(
            f"quantized_layer does not fit these: {x.dtype} {tuple(x.shape)}, weights {tuple(weights.shape)} for "
            f"{outputs} outputs, window {tuple(window)}"
        )
    ends = (ctypes.c_float * 2)()
    is_finite = _library().optsd_layer(
        None if is_quantized else x.data_ptr(),
        x.dtype == torch.bfloat16,
        x.data_ptr() if is_quantized else None,
        None if scale is None else scale.data_ptr(),
        None if zero_point is None else zero_point.data_ptr(),
        weights.data_ptr(),
        None if multipliers is None else multipliers.data_ptr(),
        weight_scale.data_ptr(),
        column_sums.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if plus is None else plus.data_ptr(),
        gated,
        (ctypes.c_int64 * 19)(batch, height, width, channels, outputs, *moves, half, group, *apart),
        torch.get_num_threads(),
        ends,
        out.data_ptr(),
    )
    if not is_finite:
        raise not_finite(*ends)
    return out


@_operator("geglu(Tensor x) -> Tensor", lambda x: x.new_empty(*x.shape[:-1], x.shape[-1] // 2))
def _geglu(x: Tensor) -> Tensor:
    """bfloat16, … × 2·n to … × n: the first half times GELU of the second (Shazeer, 2020)."""
    if x.dtype != torch.bfloat16 or x.shape[-1] % 2:
        raise ValueError(f"geglu wants bfloat16 and an even last dimension, not {x.dtype} and {x.shape[-1]}")
    x = x.contiguous()
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    _library().optsd_geglu(x.data_ptr(), out.numel() // max(width, 1), width, torch.get_num_threads(), out.data_ptr())
    return out


@_operator(
    "group_norm(Tensor x, int groups, Tensor weight, Tensor bias, float eps, bool silu) -> Tensor",
    lambda x, *_: torch.empty_like(x),
)
def _group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """group_norm(x), or SiLU of it; bfloat16, batch × channels × height × width, which comes out channels last."""
    batch, channels, height, width = x.shape
    given = ((x, x.shape), (weight, (channels,)), (bias, (channels,)))
    if channels % groups or any(each.dtype != torch.bfloat16 or each.shape != shape for each, shape in given):
        shapes = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each, _ in given)
        raise ValueError(f"group_norm does not fit these: {shapes}, {groups} groups")
    x, weight, bias = x.contiguous(memory_format=torch.channels_last), weight.contiguous(), bias.contiguous()
    out = torch.empty_like(x)
    if not out.numel():
        return out
    sizes = (batch, height * width, channels, groups)
    addresses, threads = (weight.data_ptr(), bias.data_ptr()), torch.get_num_threads()
    _library().optsd_group_norm(x.data_ptr(), *sizes, *addresses, eps, silu, threads, out.data_ptr())
    return out


@_operator(
    "add_layer_norm(Tensor x, Tensor plus, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
    lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
)
def _add_layer_norm(x: Tensor, plus: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + plus of bfloat16, … × width, and the layer normalization of that."""
    width = x.shape[-1]
    given = ((plus, x.shape), (weight, (width,)), (bias, (width,)))
    if any(each.dtype != torch.bfloat16 or each.shape != shape for each, shape in ((x, x.shape), *given)):
        shapes = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in (x, plus, weight, bias))
        raise ValueError(f"add_layer_norm does not fit these: {shapes}")
    x, plus, weight, bias = (each.contiguous() for each in (x, plus, weight, bias))
    sums, out = torch.empty_like(x), torch.empty_like(x)
    sizes, addresses = (x.numel() // max(width, 1), width), (weight.data_ptr(), bias.data_ptr())
    results, threads = (sums.data_ptr(), out.data_ptr()), torch.get_num_threads()
    _library().optsd_add_layer_norm(x.data_ptr(), plus.data_ptr(), *sizes, *addresses, eps, threads, *results)
    return sums, out


def _empty_attention(query: Tensor, *_: Any) -> Tensor:
    # heads side by side in memory, as the projection after them reads them
    return query.new_empty(query.transpose(1, 2).shape).transpose(1, 2)


@_operator("flash_attention(Tensor query, Tensor key, Tensor value, float scale) -> Tensor", _empty_attention)
def _flash_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale · Q Kᵀ) V of B×heads×N×d queries and B×heads×M×d keys of one of `TYPES`; scale > 0.

    Online softmax over tiles of keys (Dao et al., 2022), with sums in float32.
    """
    return _attend("flash_attention", query, key, value, None, scale)


@_operator(
    "sage_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor", _empty_attention
)
def _sage_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same with a mask, which broadcasts to B×heads×N×M, by scores of INT8 (`optsd.optimizations.sage`)."""
    return _attend("sage_attention", query, key, value, mask, scale)


def _attend(name: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    fits = key.shape == value.shape and (*query.shape[:2], query.shape[3]) == (*key.shape[:2], key.shape[3])
    if not fits or query.dtype not in TYPES or {key.dtype, value.dtype} != {query.dtype} or scale <= 0:
        shapes = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in (query, key, value))
        raise ValueError(f"{name} does not fit these: {shapes}, scale {scale}")
    out = _empty_attention(query)
    if not out.numel():
        return out
    batch, heads, queries, width = query.shape
    sizes = (batch, heads, queries, key.shape[2], width)
    query, key, value = map(_side_by_side, (query, key, value))
    if mask is not None:
        mask = _side_by_side(mask.float()).expand(batch, heads, queries, key.shape[2])
        mask = _side_by_side(mask)  # one number for all keys
    with_strides = [part for each in (query, key, value, mask, out) for part in _address_and_strides(each)]
    kinds = (query.dtype == torch.bfloat16, name == "sage_attention")
    _library().optsd_attention(*with_strides, *kinds, (ctypes.c_int64 * 5)(*sizes), scale, torch.get_num_threads())
    return out


def _no_backward(*_: Any) -> None:
    raise Unsupported("the CPU's own kernels have no backward pass", "train with sdpa, and without quantization")


for _name in ("geglu", "group_norm", "add_layer_norm", "flash_attention", "sage_attention"):
    torch.library.register_autograd(f"optsd::{_name}", _no_backward, lib=_OPERATORS)


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _address_and_strides(x: Tensor | None) -> tuple[int | None, ctypes.Array | None]:
    return (None, None) if x is None else (x.data_ptr(), (ctypes.c_int64 * 3)(*x.stride()[:3]))


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled kernels. Raises FileNotFoundError, CalledProcessError, OSError or Unsupported."""
    instructions = instruction_set()
    flags, sources = (*FLAGS, *instructions.flags), (SOURCE, SOURCE.with_name(instructions.source))
    run = functools.partial(subprocess.run, capture_output=True, check=True, encoding="utf-8", errors="replace")
    texts = (source.read_text(encoding="utf-8") for source in sources)
    made_from = "\0".join((*texts, *compiler(), run([*compiler(), "--version"]).stdout, *flags))
    file = home() / "native" / f"{instructions.name.lower()}-{hashlib.sha256(made_from.encode()).hexdigest()[:32]}.so"
    if file.is_file():
        library = ctypes.CDLL(str(file))
    else:
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / "kernels.so"
            run([*compiler(), *flags, str(SOURCE), "-o", str(built)])
            library = ctypes.CDLL(str(built))
            with contextlib.suppress(BadInput):  # a home that is read-only or full: the next process compiles anew
                write_atomically(file, built.read_bytes())
    address, count, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    threads = flag
    arguments: dict[str, list[Any]] = {
        "optsd_quantize": [address, flag, count, count, flag, threads, *[address] * 4],
        "optsd_layer": [address, flag, *[address] * 9, flag, address, threads, address, address],
        "optsd_geglu": [address, count, count, threads, address],
        "optsd_group_norm": [address, *[count] * 4, address, address, number, flag, threads, address],
        "optsd_add_layer_norm": [address, address, count, count, address, address, number, threads, address, address],
        "optsd_attention": [*[address] * 10, flag, flag, address, number, threads],
    }
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, flag if name in ("optsd_quantize", "optsd_layer") else None
    return library

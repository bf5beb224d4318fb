"""The GPU's kernels compiled for GPUs that are not there: Triton needs none for that."""

import importlib.metadata
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

triton = pytest.importorskip("triton")
if Version(importlib.metadata.version("triton")) < Version("3.5"):
    pytest.skip("Triton before 3.5 compiles by other means", allow_module_level=True)

POINTERS = {
    **{"image": "*i8", "integers": "*i8", "scale": "*fp32", "column_sums": "*i32", "bias": "*fp32"},
    **{"image_scale": "*fp32", "zero_point": "*i32", "plus": "*fp16", "out": "*fp16"},
}
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, "gfx90a": 64, "gfx942": 64}
"""What a block may have of each, as the data sheets have it."""
MULTIPLIES = {
    **dict.fromkeys((80, 86, 89, 120), r"mma\.sync\.aligned\.m16n8k32\.row\.col\.satfinite\.s32\.s8\.s8\.s32"),
    **{90: r"wgmma\.mma_async\.\S*\.s32\.s8\.s8", 100: r"tcgen05\.mma\.\S*kind::i8"},
    **{"gfx90a": r"v_mfma_i32_\w*i8", "gfx942": r"v_mfma_i32_\w*i8"},
}


PICTURE = {"PIXELS": 32, "CHANNELS": 64, "by_channel": 1}
SMALL_KERNELS = {  # module, function, what the compiler knows, warps
    "rows": ("quantize", "_rows", {"TOGETHER": 1, "BLOCK": 16_384}, 8),
    "short rows": ("quantize", "_rows", {"TOGETHER": 2, "BLOCK": 512}, 1),
    "ranges": ("quantize", "_ranges", {"BLOCK": 4096}, 8),
    "pictures": ("quantize", "_pictures", {"COLUMNS": 1024, **PICTURE}, 4),
    "moments": ("between", "_moments", PICTURE, 4),
    "scaled": ("between", "_scaled", {"SILU": True, "HAS_RANGES": True, **PICTURE, "PIXELS": 128}, 8),
    "layer norm": ("between", "_layer_norm", {"ADDS": True, "TOGETHER": 1, "BLOCK": 512}, 1),
    "wide layer norm": ("between", "_layer_norm", {"ADDS": True, "TOGETHER": 1, "BLOCK": 4096}, 8),
    "geglu": ("between", "_geglu", {"ROWS": 4, "WIDTH": 256}, 4),
    "geglu rows": ("between", "_geglu_rows", {"TOGETHER": 1, "BLOCK": 8192}, 8),
    "unpack": ("kernels", "_unpack", {"BLOCK": 64}, 4),
}
SIXTEENS = (
    *("length", "part", "channels", "by_picture", "by_row", "by_column", "by_pixel", "pixels", "width"),
    *("outputs", "inputs", "half", "group_size"),
)
BYTES = ("values", "packed", "multipliers")
WHOLE = {"zero_point": "*i32"}
NUMBERS = {"eps": "fp32"}
HALVES = ("x", "added", "weight", "bias", "total", "normal", "out")


@pytest.mark.parametrize("architecture", SHARED_KIB)
def test_the_product(architecture: Any, tmp_path: Path) -> None:
    """Integer matrix instructions and wide asynchronous loads, with each tile that is tried there."""
    from optsd.quantization import tiles

    fitting = 0
    for tile in (*tiles.suited(128, architecture), tiles.SMALL):
        made = product(architecture, tile)
        if made.metadata.shared > SHARED_KIB[architecture] * 1024:  # refused when it is launched, and left out
            continue
        fitting += 1
        check_fits(made, architecture, tile.warps, tmp_path)
        if isinstance(architecture, str):
            text = made.asm["amdgcn"]
        else:
            text = made.asm["ptx"]
            # 16 bytes at a time: the other width that goes past the registers is 4.
            assert re.search(r"cp\.async\.cg\.shared\.global", text)
            assert not re.search(r"ld\.global\S*\.[bsu]8\b", text)
        assert re.search(MULTIPLIES[architecture], text)
    assert fitting > 3


@pytest.mark.parametrize("name", SMALL_KERNELS)
@pytest.mark.parametrize("architecture", [80, 90, 120, "gfx942"])
def test_the_others(architecture: Any, name: str, tmp_path: Path) -> None:
    """They read, and write, nothing but wide words and what there is one of."""
    from optsd.quantization import triton_between, triton_kernels, triton_quantize

    modules = {"quantize": triton_quantize, "between": triton_between, "kernels": triton_kernels}
    module, function, known, warps = SMALL_KERNELS[name]
    kernel = getattr(modules[module], function)
    kinds = {**dict.fromkeys(HALVES, "*fp16"), **dict.fromkeys(BYTES, "*i8"), **WHOLE}
    kinds |= dict.fromkeys(("scale", "found", "moments", "scales", "ranges"), "*fp32")
    pointers = {each: kinds[each] for each in kernel.arg_names if each in kinds}
    made = compiled(kernel, architecture, pointers, known, SIXTEENS, warps)
    check_fits(made, architecture, warps, tmp_path)
    if not isinstance(architecture, str):
        assert not re.search(r"(?:ld|st)\.global\S*\.[bsu](?:8|16)\b", made.asm["ptx"])


def test_what_is_older_does_not_compile() -> None:
    """Why a T4 is refused (`kernels.Triton.refusal`): when this fails, Triton has learned it."""
    from optsd.quantization import tiles

    with pytest.raises(RuntimeError, match="PassManager::run failed"):
        product(75, tiles.SMALL)


@pytest.mark.parametrize("architecture", [80, 86, 90])
def test_the_product_with_a_sum_in_its_end(architecture: int, tmp_path: Path) -> None:
    """What is spilled for it is a few numbers a thread, once, where the sum is and not where it multiplies."""
    from optsd.quantization import tiles

    for tile in (*tiles.suited(128, architecture), tiles.SMALL):
        made = product(architecture, tile, added=1)
        if made.metadata.shared <= SHARED_KIB[architecture] * 1024:
            assert resources(made.asm["cubin"], tmp_path)["STACK"] <= 48


def product(architecture: Any, tile: Any, added: int = 0) -> Any:
    """As it is launched for a convolution of SD v1.5: addresses and channels in sixteens."""
    from optsd.quantization import triton_kernels

    known = {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.depth, "GROUP": triton_kernels.GROUP}
    known |= {"POINTWISE": False, "HAS_BIAS": True, "ADDED": added, "EVEN": True}
    ones = ("stride_y", "stride_x", "dilation_y", "dilation_x")
    known |= dict.fromkeys(ones, 1)
    sixteens = ("channels", "outputs")
    return compiled(triton_kernels._conv2d, architecture, POINTERS, known, sixteens, tile.warps, tile.stages)


def compiled(
    function: Any,
    architecture: Any,
    pointers: dict[str, str],
    known: dict[str, int],
    sixteens: tuple[str, ...],
    warps: int,
    stages: int = 3,
) -> Any:
    """`pointers` and the numbers named in `sixteens` are multiples of 16; `known` are those of the compiler."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    signature = {name: "constexpr" if name in known else pointers.get(name, NUMBERS.get(name, "i32")) for name in names}
    wide = [place for place, name in enumerate(names) if name in pointers or name in sixteens]
    attributes = {(place,): [["tt.divisibility", 16]] for place in wide}
    source = ASTSource(function, signature, {(names.index(name),): value for name, value in known.items()}, attributes)
    kind, threads = ("hip", 64) if isinstance(architecture, str) else ("cuda", 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about floating-point fusion, which no integer meets
        return triton.compile(
            source, target=GPUTarget(kind, architecture, threads), options={"num_warps": warps, "num_stages": stages}
        )


def check_fits(made: Any, architecture: Any, warps: int, folder: Path) -> None:
    """Nothing is spilled, and a block has what it takes."""
    assert made.metadata.shared <= SHARED_KIB[architecture] * 1024
    if isinstance(architecture, str):
        text = made.asm["amdgcn"]
        assert re.findall(r"\.(?:vgpr|sgpr)_spill_count:\s*(\d+)", text) == ["0", "0"]
        assert re.search(r"ScratchSize: 0\b", text)
        assert re.search(r"(?:buffer|global)_load_dwordx[24]", text)  # of 64 threads side by side
        return
    used = resources(made.asm["cubin"], folder)
    assert used["LOCAL"] == 0
    # Tensor memory (10.0) takes a few bytes of stack, in which nothing is spilled.
    assert used["STACK"] == 0 or not spilled(made.asm["ptx"], architecture, folder)
    assert used["REG"] * 32 * warps <= 65_536


def spilled(ptx: str, architecture: int, folder: Path) -> int:
    """Bytes that are written to memory for want of registers."""
    file, knobs = folder / "kernel.ptx", triton.knobs.nvidia
    file.write_text(ptx)
    tool = (knobs.ptxas_blackwell if architecture >= 100 else knobs.ptxas).path
    (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    command = [tool, "-v", f"--gpu-name={target}", file, "-o", folder / "kernel.o"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(each) for each in re.findall(r"(\d+) bytes spill (?:stores|loads)", told))


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers a thread, and bytes of stack and local memory, to which registers are spilled."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    told = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}

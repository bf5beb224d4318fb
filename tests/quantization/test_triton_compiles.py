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

TILES = ((128, 128, 64, 8), (64, 64, 64, 8))  # rows, columns, depth, warps
POINTERS = {
    **{"image": "*i8", "integers": "*i8", "scale": "*fp32", "column_sums": "*i32", "bias": "*fp32"},
    **{"image_scale": "*fp32", "zero_point": "*i32", "out": "*fp16"},
}
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, "gfx90a": 64, "gfx942": 64}
"""What a block may have of each, as the data sheets have it."""
MULTIPLIES = {
    **dict.fromkeys((80, 86, 89, 120), r"mma\.sync\.aligned\.m16n8k32\.row\.col\.satfinite\.s32\.s8\.s8\.s32"),
    **{90: r"wgmma\.mma_async\.\S*\.s32\.s8\.s8", 100: r"tcgen05\.mma\.\S*kind::i8"},
    **{"gfx90a": r"v_mfma_i32_\w*i8", "gfx942": r"v_mfma_i32_\w*i8"},
}


QUANTIZERS = {
    "rows": ("_rows", {"BLOCK": 16_384}, 8),
    "short rows": ("_rows", {"BLOCK": 512}, 1),
    "ranges": ("_ranges", {"BLOCK": 4096}, 8),
    "integers": ("_integers", {"COLUMNS": 1024, "BLOCK": 4096}, 8),
}


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile[0]}x{tile[1]}")
@pytest.mark.parametrize("architecture", SHARED_KIB)
def test_the_convolution(architecture: Any, tile: tuple[int, int, int, int], tmp_path: Path) -> None:
    """Integer matrix instructions and wide asynchronous loads."""
    from optsd.quantization import triton_kernels

    assert triton_kernels.TILES == TILES
    made = convolution(architecture, tile)
    check_fits(made, architecture, tile[3], tmp_path)
    if isinstance(architecture, str):
        text = made.asm["amdgcn"]
    else:
        text = made.asm["ptx"]
        # 16 bytes at a time: the other width that goes past the registers is 4.
        assert re.search(r"cp\.async\.cg\.shared\.global", text)
        assert not re.search(r"ld\.global\S*\.[bsu]8\b", text)
    assert re.search(MULTIPLIES[architecture], text)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("architecture", SHARED_KIB)
def test_the_quantizer(architecture: Any, name: str, tmp_path: Path) -> None:
    """It reads, and writes, nothing but wide words and what there is one of."""
    from optsd.quantization import triton_quantize

    function, known, warps = QUANTIZERS[name]
    pointers = {"x": "*fp16", "values": "*i8", "scale": "*fp32", "zero_point": "*i32", "found": "*fp32"}
    made = compiled(getattr(triton_quantize, function), architecture, pointers, known, ("length", "part"), warps)
    check_fits(made, architecture, warps, tmp_path)
    if not isinstance(architecture, str):
        assert not re.search(r"(?:ld|st)\.global\S*\.[bsu](?:8|16)\b", made.asm["ptx"])


def test_what_is_older_does_not_compile() -> None:
    """Why a T4 is refused (`kernels.Triton.refusal`): when this fails, Triton has learned it."""
    with pytest.raises(RuntimeError, match="PassManager::run failed"):
        convolution(75, TILES[1])


def convolution(architecture: Any, tile: tuple[int, int, int, int]) -> Any:
    """As it is launched for a layer of SD v1.5: addresses and channels in sixteens, inputs side by side."""
    from optsd.quantization import triton_kernels

    known = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), tile, strict=False))
    known |= {"KERNEL_ROWS": 3, "KERNEL_COLUMNS": 3, "HAS_BIAS": True, "by_input": 1}
    sixteens = ("channels", "outputs", "by_output")
    return compiled(triton_kernels._conv2d, architecture, POINTERS, known, sixteens, tile[3])


def compiled(
    function: Any,
    architecture: Any,
    pointers: dict[str, str],
    known: dict[str, int],
    sixteens: tuple[str, ...],
    warps: int,
) -> Any:
    """`pointers` and the numbers named in `sixteens` are multiples of 16; `known` are those of the compiler."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    signature = {name: "constexpr" if name in known else pointers.get(name, "i32") for name in names}
    wide = [place for place, name in enumerate(names) if name in pointers or name in sixteens]
    attributes = {(place,): [["tt.divisibility", 16]] for place in wide}
    source = ASTSource(function, signature, {(names.index(name),): value for name, value in known.items()}, attributes)
    kind, threads = ("hip", 64) if isinstance(architecture, str) else ("cuda", 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about floating-point fusion, which no integer meets
        return triton.compile(source, target=GPUTarget(kind, architecture, threads), options={"num_warps": warps})


def check_fits(made: Any, architecture: Any, warps: int, folder: Path) -> None:
    """Nothing is spilled, and a block has what it takes."""
    assert made.metadata.shared <= SHARED_KIB[architecture] * 1024
    if isinstance(architecture, str):
        text = made.asm["amdgcn"]
        assert re.findall(r"\.(?:vgpr|sgpr)_spill_count:\s*(\d+)", text) == ["0", "0"]
        assert re.search(r"ScratchSize: 0\b", text)
        assert re.search(r"(?:buffer|global)_load_dwordx4", text)
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

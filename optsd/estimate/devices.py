"""What a device can do at best, from its maker's data sheet. Imports no torch."""

import re
from dataclasses import dataclass

from optsd.errors import BadInput, Unsupported

DEFAULT = "a100"
_PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")


@dataclass(frozen=True)
class Device:
    """Peak rates without structured sparsity, as its data sheet states them.

    `operations_s`: multiplications and additions a second on matrices, by the type that is multiplied. `float32` is
    the TF32 rate where there is one: torch convolves in it by default, and a bound must not be too strict. `float16` is
    the rate with float32 accumulation, which torch's kernels use. Empty: no data sheet, so memory alone is estimated.
    """

    name: str
    title: str
    kind: str  # torch's device type: "cuda" or "cpu"
    capability: tuple[int, int] | None  # of CUDA: which kernels it can run
    memory_bytes: int | None
    bytes_s: float | None
    operations_s: dict[str, float]
    source: str

    @property
    def granularity(self) -> int:
        """Bytes that an allocation is rounded up to: 512 in torch's CUDA caching allocator."""
        return 512 if self.kind == "cuda" else 1

    @property
    def has_data_sheet(self) -> bool:
        return self.bytes_s is not None

    @property
    def float16_accumulation(self) -> float:
        """How much faster float16 is multiplied where the sums are float16 too: twice, on GeForce cards.

        torch's kernels add up in float32; other programs may not.
        """
        return 2.0 if self.title.startswith("GeForce RTX") else 1.0

    def rate(self, precision: str) -> float:
        """Operations a second in that type. Raises Unsupported where the data sheet has none."""
        if precision not in self.operations_s:
            known = ", ".join(self.operations_s) or "none"
            raise Unsupported(
                f"{self.title} has no arithmetic rate for {precision} in its data sheet",
                f"choose a dtype or device that has ({known})",
            )
        return self.operations_s[precision]


_AMPERE = "NVIDIA A100 data sheet 1758950-r4 (2021)"
_HOPPER = "NVIDIA H100 data sheet (2023), half of its rates with sparsity; no INT4 matrix units"
_GA102 = "NVIDIA GA102 whitepaper v2"
_GA102_PRO = "NVIDIA's data sheet (2021), half of its rates with sparsity"
_TURING = "NVIDIA Turing whitepaper (2018)"
_ADA = "NVIDIA Ada whitepaper v2"
_PASCAL = "NVIDIA's specification (2017); no matrix units: float16 is multiplied in float32"
_TABLE = (
    # name, title, capability, GB, GB/s, then 10¹² operations a second: float32, float16, bfloat16, int8, int4; source
    ("a100", "A100 80 GB SXM", (8, 0), 80, 2039, 156, 312, 312, 624, 1248, _AMPERE),
    ("a100-40gb", "A100 40 GB SXM", (8, 0), 40, 1555, 156, 312, 312, 624, 1248, _AMPERE),
    ("h100", "H100 80 GB SXM", (9, 0), 80, 3350, 494.7, 989.4, 989.4, 1978.9, None, _HOPPER),
    ("h200", "H200 141 GB SXM", (9, 0), 141, 4800, 494.7, 989.4, 989.4, 1978.9, None, "NVIDIA H200 data sheet (2024)"),
    ("a800", "A800 80 GB SXM", (8, 0), 80, 2039, 156, 312, 312, 624, 1248, "NVIDIA A800 data sheet (2022)"),
    ("l40s", "L40S", (8, 9), 48, 864, 183, 362, 362, 733, None, "NVIDIA L40S data sheet (2023)"),
    (
        "rtx6000-ada",
        "RTX 6000 Ada",
        (8, 9),
        48,
        960,
        182.1,
        364.2,
        364.2,
        728.5,
        1457,
        "NVIDIA Ada pro whitepaper (2022)",
    ),
    ("rtx4090", "GeForce RTX 4090", (8, 9), 24, 1008, 82.6, 165.2, 165.2, 660.6, 1321.2, _ADA),
    ("rtx4080", "GeForce RTX 4080", (8, 9), 16, 716.8, 48.7, 97.5, 97.5, 389.9, 779.8, _ADA),
    ("a10", "A10", (8, 6), 24, 600, 62.5, 125, 125, 250, 500, "NVIDIA A10 data sheet (2021)"),
    ("a10g", "A10G", (8, 6), 24, 600, 35, 70, 70, 140, 280, "NVIDIA A10G data sheet (2021)"),
    ("a40", "A40", (8, 6), 48, 696, 74.8, 149.7, 149.7, 299.3, 598.7, "NVIDIA A40 data sheet (2021)"),
    ("rtxa5000", "RTX A5000", (8, 6), 24, 768, 55.6, 111.1, 111.1, 222.2, 444.4, _GA102_PRO),
    ("rtxa6000", "RTX A6000", (8, 6), 48, 768, 77.4, 154.8, 154.8, 309.7, 619.3, _GA102_PRO),
    ("rtx3090ti", "GeForce RTX 3090 Ti", (8, 6), 24, 1008, 40, 80, 80, 320, 640, "NVIDIA GA102 whitepaper v2.1"),
    ("rtx3090", "GeForce RTX 3090", (8, 6), 24, 936, 35.6, 71, 71, 284, 568, _GA102),
    ("rtx3080", "GeForce RTX 3080 10 GB", (8, 6), 10, 760, 29.8, 59.5, 59.5, 238, 476, _GA102),
    ("titan-rtx", "TITAN RTX", (7, 5), 24, 672, 16.3, 130.5, None, 261, 522, _TURING),
    ("rtx2080", "GeForce RTX 2080", (7, 5), 8, 448, 10.6, 42.4, None, 169.6, 339.1, _TURING + ", Founders Edition"),
    ("t4", "Tesla T4", (7, 5), 16, 320, 8.1, 65, None, 130, 260, "NVIDIA T4 data sheet (2019)"),
    ("v100", "Tesla V100 SXM2", (7, 0), 32, 900, 15.7, 125, None, None, None, "NVIDIA V100 data sheet (2020)"),
    ("p100", "Tesla P100 SXM2", (6, 0), 16, 732, 10.6, 21.2, None, None, None, "NVIDIA P100 data sheet (2016)"),
    ("gtx1080ti", "GeForce GTX 1080 Ti", (6, 1), 11, 484, 11.3, 11.3, None, None, None, _PASCAL),
)
DEVICES = {
    name: Device(
        name,
        title,
        "cuda",
        capability,
        gigabytes * 10**9,
        gigabytes_s * 1e9,
        {kind: tera * 1e12 for kind, tera in zip(_PRECISIONS, rates, strict=True) if tera},
        source,
    )
    for name, title, capability, gigabytes, gigabytes_s, *rates, source in _TABLE
} | {"cpu": Device("cpu", "CPU", "cpu", None, None, None, {}, "no data sheet: memory alone is estimated")}


def find(name: str) -> Device:
    """The device of that name; `""` is the default. Raises BadInput, with the names that are known."""
    key = name.strip().lower().replace("_", "-") or DEFAULT
    if key not in DEVICES:
        raise BadInput(f"no data sheet for device {name!r}", f"choose one of {', '.join(DEVICES)}")
    return DEVICES[key]


_NVML_NAMES = {
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "Tesla T4": "t4",
}


def recognize(name: str) -> str:
    """The device that NVIDIA's driver calls so, or nothing: other boards of the same chip have other rates."""
    return _NVML_NAMES.get(name, "")


_SAID = (
    # how people name a GPU -> its data sheet, and what was taken to be meant where a name means several boards
    (r"a100.*40 ?gb", "a100-40gb", ""),
    (r"a100.*80 ?gb", "a100", ""),
    (r"\ba100\b", "a100", "the A100 with 80 GB, the fastest"),
    (r"\ba800\b", "a800", ""),
    (r"h100.*(96|94) ?gb|h200", "", ""),
    (r"\bh100\b", "h100", "the SXM board, the fastest"),
    (r"\bl40s\b", "l40s", ""),
    (r"6000 ada", "rtx6000-ada", ""),
    (r"laptop|mobile|max-q", "", ""),
    (r"\b4090\b", "rtx4090", ""),
    (r"\b4080\b(?! ?super)", "rtx4080", ""),
    (r"\ba10g\b", "a10g", ""),
    (r"\ba10\b", "a10", ""),
    (r"\ba40\b", "a40", ""),
    (r"\ba5000\b", "rtxa5000", ""),
    (r"\ba6000\b", "rtxa6000", ""),
    (r"\b3090 ?ti\b", "rtx3090ti", ""),
    (r"\b3090\b", "rtx3090", ""),
    (r"\b3080\b(?! ?ti)", "rtx3080", ""),
    (r"titan rtx", "titan-rtx", ""),
    (r"\b2080\b(?! ?(ti|super))", "rtx2080", ""),
    (r"\bt4\b", "t4", ""),
    (r"\bv100\b", "v100", "the SXM2 board, the fastest"),
    (r"\bp100\b", "p100", "the SXM2 board, the fastest"),
    (r"1080 ?ti", "gtx1080ti", ""),
)


def said(text: str) -> tuple[str, str]:
    """(device, assumption) of a GPU as people name it: `A100` → ("a100", "the A100 with 80 GB, …"), or ("", "")."""
    plain = re.sub(r"\b(rtx|gtx)(?=\d)", r"\1 ", re.sub(r"[-_\s]+", " ", text.lower()))
    if "/" in plain or re.search(r"\bx ?[2-9]\b|\b[2-9] ?[x×] |several", plain):
        return "", ""
    return next(((name, meant) for words, name, meant in _SAID if re.search(words, plain)), ("", ""))

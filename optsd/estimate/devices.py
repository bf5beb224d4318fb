"""What a device can do at best, from its maker's data sheet. Imports no torch."""

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
_TABLE = (
    # name, title, capability, GB, GB/s, then 10¹² operations a second: float32, float16, bfloat16, int8, int4; source
    ("a100", "A100 80 GB SXM", (8, 0), 80, 2039, 156, 312, 312, 624, 1248, _AMPERE),
    ("a100-40gb", "A100 40 GB SXM", (8, 0), 40, 1555, 156, 312, 312, 624, 1248, _AMPERE),
    ("h100", "H100 80 GB SXM", (9, 0), 80, 3350, 494.7, 989.4, 989.4, 1978.9, None, _HOPPER),
    ("h200", "H200 141 GB SXM", (9, 0), 141, 4800, 494.7, 989.4, 989.4, 1978.9, None, "NVIDIA H200 data sheet (2024)"),
    ("rtx4090", "GeForce RTX 4090", (8, 9), 24, 1008, 82.6, 165.2, 165.2, 660.6, 1321.2, "NVIDIA Ada whitepaper v2"),
    ("rtx3090", "GeForce RTX 3090", (8, 6), 24, 936, 35.6, 71, 71, 284, 568, "NVIDIA GA102 whitepaper v2"),
    ("t4", "Tesla T4", (7, 5), 16, 320, 8.1, 65, None, 130, 260, "NVIDIA T4 data sheet (2019)"),
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

"""Every metric that a result may carry: its unit, which way is better, and which tolerance it is judged by."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    unit: str
    better: Literal["lower", "higher"]
    kind: Literal["performance", "quality"]
    label: str
    """What a table's column is called."""


METRICS: dict[str, Metric] = {
    # speed
    "latency_s": Metric("s", "lower", "performance", "s / image"),
    "throughput_images_s": Metric("images/s", "higher", "performance", "images / s"),
    "speedup": Metric("×", "higher", "performance", "speedup"),
    # of an estimate: each operation a kernel of its own, as today's kernels are; `latency_s` and `speedup` are at best
    "latency_unfused_s": Metric("s", "lower", "performance", "s / image, today's kernels"),
    "speedup_unfused": Metric("×", "higher", "performance", "speedup, today's kernels"),
    "speedup_against": Metric("×", "higher", "performance", "speedup over the other build"),
    "text_encoder_s": Metric("s", "lower", "performance", "text encoder"),
    "unet_step_s": Metric("s", "lower", "performance", "denoiser step"),
    "vae_decode_s": Metric("s", "lower", "performance", "VAE decode"),
    "compile_s": Metric("s", "lower", "performance", "compile"),
    # memory and size
    "peak_memory_bytes": Metric("B", "lower", "performance", "peak memory"),
    "peak_process_bytes": Metric("B", "lower", "performance", "peak of the process"),
    "memory_reduction": Metric("fraction", "higher", "performance", "memory saved"),
    "weight_bytes": Metric("B", "lower", "performance", "weights"),
    "unet_weight_bytes": Metric("B", "lower", "performance", "denoiser weights"),
    "disk_bytes": Metric("B", "lower", "performance", "on disk"),
    # by the chip's own counter
    "energy_j": Metric("J", "lower", "performance", "J / image"),
    "energy_reduction": Metric("fraction", "higher", "performance", "energy saved"),
    # a measured time beside the device's data sheet
    "roofline_share": Metric("fraction", "higher", "performance", "of the roofline"),
    "mfu": Metric("fraction", "higher", "performance", "MFU"),
    # counted in a trace, without noise
    "flops": Metric("", "lower", "performance", "operations"),
    "flops_16bit": Metric("", "lower", "performance", "operations in 16 bits or more"),
    "flops_32bit": Metric("", "lower", "performance", "operations in 32 bits or more"),
    "moved_bytes": Metric("B", "lower", "performance", "bytes moved"),
    "kernel_launches": Metric("", "lower", "performance", "kernels"),
    "kept_bytes": Metric("B", "lower", "performance", "kept after the picture"),
    # quality, standard networks
    "fid": Metric("", "lower", "quality", "FID"),
    "kid": Metric("", "lower", "quality", "KID"),
    "is": Metric("", "higher", "quality", "IS"),
    "precision": Metric("fraction", "higher", "quality", "precision"),
    "recall": Metric("fraction", "higher", "quality", "recall"),
    "fd_dinov2": Metric("", "lower", "quality", "FD-DINOv2"),
    "cmmd": Metric("", "lower", "quality", "CMMD"),
    "clip": Metric("cosine", "higher", "quality", "CLIP"),
    "lpips": Metric("", "lower", "quality", "LPIPS"),
    # quality, the shipped model's own networks: never to be compared with those above
    "fid_shapes": Metric("", "lower", "quality", "FID (shapes)"),
    "kid_shapes": Metric("", "lower", "quality", "KID (shapes)"),
    "is_shapes": Metric("", "higher", "quality", "IS (shapes)"),
    "precision_shapes": Metric("fraction", "higher", "quality", "precision (shapes)"),
    "recall_shapes": Metric("fraction", "higher", "quality", "recall (shapes)"),
    "cmmd_shapes": Metric("", "lower", "quality", "CMMD (shapes)"),
    "clip_shapes": Metric("cosine", "higher", "quality", "CLIP (shapes)"),
    "lpips_shapes": Metric("", "lower", "quality", "LPIPS (shapes)"),
    "objects_right": Metric("fraction", "higher", "quality", "objects right"),
    # quality, paired with the baseline's image of the same prompt and seed; no network needed
    "psnr_db": Metric("dB", "higher", "quality", "PSNR"),
    "ssim": Metric("", "higher", "quality", "SSIM"),
}
"""`*_retention` (optimized ÷ baseline, as the guide defines it) exists for every quality metric; see `metric`."""

MAX_PSNR_DB = 100.0
"""What equal pictures count as; a single value that differs by 1 in 512×512×3 gives 107."""


def zero_is_a_figure(name: str) -> bool:
    """Whether a metric can rightly be zero or below; no time, size or speed can. Raises KeyError as `metric` does."""
    signed = ("memory_reduction", "energy_reduction", "flops_16bit", "flops_32bit", "kept_bytes")
    return name in signed or metric(name).kind == "quality"


def metric(name: str) -> Metric:
    """The table's row for a metric, and for `<quality metric>_retention`. Raises KeyError for any other name."""
    base = name.removesuffix("_retention")
    if base != name and METRICS[base].kind == "quality":
        return Metric("fraction", "higher", "quality", f"{METRICS[base].label} kept")
    return METRICS[name]

"""INT8 and INT4 numerics: schemes, kernels, layers, and quantized pipelines on disk."""

from optsd.quantization.store import load, save

__all__ = ["load", "save"]

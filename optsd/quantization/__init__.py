"""INT8 and INT4 numerics: schemes, kernels, layers, and quantized pipelines on disk. Imports no torch by itself."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optsd.quantization.store import load, save

__all__ = ["INDEX", "WEIGHTS", "load", "save"]

INDEX = "optsd_quantization.json"
"""The file by which a folder that `save` wrote is known: what is quantized, and how."""
WEIGHTS = "quantized.safetensors"
"""The weights of a quantized component, in its folder."""


def __getattr__(name: str) -> Any:
    if name not in ("load", "save"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from optsd.quantization import store

    return getattr(store, name)

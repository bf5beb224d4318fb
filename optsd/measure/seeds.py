"""The guide's seeds, and one source of noise per picture."""

import os
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GLOBAL, TORCH, NUMPY, PYTHON = 42, 12345, 67890, 54321
"""As the guide fixes them. `GLOBAL` is the default of `--seed`: the noise of the pictures."""


def fix_seeds() -> None:
    """Seed every generator of the process and ask torch for deterministic algorithms."""
    import numpy as np
    import torch

    random.seed(PYTHON)
    np.random.seed(NUMPY)
    torch.manual_seed(TORCH)
    # cuBLAS is deterministic only with a fixed workspace, set before CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode also fills every new tensor with NaN, to unmask programs that read before they write. That
    # would be timed, and changes no picture.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def noise_seeds(seed: int, first: int, count: int) -> list[int]:
    """The seed of the noise of each of the pictures `first`, …, `first + count - 1` of a run with `seed`.

    Any seed of 64 bits will do: torch has no larger ones, so the product wraps around.
    """
    return [(seed * 1_000_003 + index) % 2**64 for index in range(first, first + count)]


def generators(seed: int, first: int, count: int) -> "list[torch.Generator]":
    """A CPU generator for each of those: the same noise on every device, in every batch and in every shard."""
    import torch

    return [torch.Generator("cpu").manual_seed(each) for each in noise_seeds(seed, first, count)]

"""Launching a Triton kernel again with next to no Python.

`kernel[grid](…)` works out in every call what it was compiled for, which takes longer than most kernels here do: on an
H200's host some 70 µs. All that it looks at is given once here; a call brings the tensors.
"""

from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes: Triton compiles one kernel for addresses that are multiples of it, and another one for the rest."""
LAUNCHES = 4096
"""Kept of each kernel: one for each shape that it meets."""


class Launch:
    """One kernel, for one kind of tensors: the same types on the same device in every call.

    `numbers`: what the kernel takes after its tensors, in its order, constants included. `options`: Triton's own.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], *numbers: Any, **options: int) -> None:
        self.kernel, self.grid, self.numbers, self.options = kernel, grid, numbers, options
        self.device = -1
        self.made: Any = None  # what was compiled, which is unloaded with the last who holds it
        self.again: Any = None  # launches it at addresses

    def __call__(self, *tensors: Tensor) -> None:
        places, together = [], 0
        for tensor in tensors:
            place = tensor.data_ptr()
            places.append(place)
            together |= place
        aligned = together % ALIGNMENT == 0
        if aligned and self.again is not None and torch._C._cuda_getDevice() == self.device:
            self.again(places)
            return
        with torch.cuda.device_of(tensors[0]):  # Triton launches on the current GPU, whichever one holds the tensors
            made = self.kernel[self.grid](*tensors, *self.numbers, **self.options)
        if aligned and made is not None:  # an interpreter gives nothing back
            self.made, self.device = made, tensors[0].get_device()
            self.again = self._again(made, self.device)

    def _again(self, made: Any, device: int) -> Any:
        from triton.runtime import driver

        # What `kernel[grid](…)` does in the end. No hooks: torch's profiler sees launches where the driver makes them.
        run, grid = made.run, (*self.grid, 1, 1)[:3]
        before, after = (made.function, made.packed_metadata, None, None, None), self.numbers
        stream = driver.active.get_current_stream
        return lambda places: run(*grid, stream(device), *before, *places, *after)

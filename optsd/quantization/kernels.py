"""How quantized integers are multiplied: one small interface, several kernels, the same result to the last integer."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from optsd.errors import BadInput, Unsupported


class Kernel(Protocol):
    """Integer multiplication with exact int32 sums."""

    name: str

    def refusal(self, device: torch.device) -> str:
        """Why it cannot run there, or an empty string."""

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """int8 M×K times int8 K×N: int32 M×N."""


class Reference:
    """float64, which holds every int32 sum exactly. For any device; slow."""

    name = "reference"

    def refusal(self, device: torch.device) -> str:
        return ""

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        return (left.double() @ right.double()).to(torch.int32)


class IntMM:
    """`torch._int_mm`: oneDNN on the CPU (VNNI or AMX where there is one), cuBLASLt's tensor cores on a GPU."""

    name = "int_mm"

    def refusal(self, device: torch.device) -> str:
        if device.type == "cpu":
            return ""
        if device.type != "cuda":
            return f"torch._int_mm does not run on {device.type}"
        if torch.cuda.get_device_capability(device) < (7, 5):
            return "the GPU has no int8 tensor cores (compute capability 7.5)"
        return ""

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        if left.device.type == "cpu":
            return torch._int_mm(left, right)
        # cuBLASLt wants more than 16 rows, and inputs and outputs in multiples of 8.
        rows, inputs = left.shape
        outputs = right.shape[1]
        more = (max(17 - rows, 0), -inputs % 8, -outputs % 8)
        if any(more):
            left = functional.pad(left, (0, more[1], 0, more[0]))
            right = functional.pad(right, (0, more[2], 0, more[1]))
        return torch._int_mm(left, right)[:rows, :outputs]


KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in (IntMM(), Reference())}
"""In the order in which `choose` tries them."""


def choose(device: torch.device, name: str = "auto") -> Kernel:
    """The first kernel that runs on the device, or the one that is asked for. Raises BadInput or Unsupported."""
    if name not in ("auto", *KERNELS):
        raise BadInput(f"unknown kernel {name!r}", f"choose from auto, {', '.join(KERNELS)}")
    if name == "auto":
        return next(kernel for kernel in KERNELS.values() if not kernel.refusal(device))
    if reason := KERNELS[name].refusal(device):
        raise Unsupported(f"kernel {name} cannot run on {device}: {reason}", "use auto")
    return KERNELS[name]


def windows(
    x: Tensor, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """The windows of a convolution as rows, batch·height·width × rows·columns·channels, and the output's size.

    `x` is batch × height × width × channels, padded already. Raises BadInput where not one window fits.
    """
    batch, height, width, channels = x.shape
    size = tuple(
        (length - step * (extent - 1) - 1) // hop + 1
        for length, extent, hop, step in zip((height, width), kernel_size, stride, dilation, strict=True)
    )
    if min(size) < 1:
        raise BadInput(f"a picture of {height}×{width} is smaller than the convolution's window", "use a larger one")
    if kernel_size == (1, 1):
        return x[:, :: stride[0], :: stride[1]].reshape(-1, channels), (size[0], size[1])
    x = x.contiguous()
    by_image, by_row, by_column, by_channel = x.stride()
    view = x.as_strided(
        (batch, *size, *kernel_size, channels),
        (
            by_image,
            by_row * stride[0],
            by_column * stride[1],
            by_row * dilation[0],
            by_column * dilation[1],
            by_channel,
        ),
    )
    return view.reshape(batch * size[0] * size[1], -1), (size[0], size[1])

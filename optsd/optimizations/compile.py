"""torch.compile of the UNet, with its weights channels last; the seconds that it takes are measured apart."""

import importlib.util
import shutil
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.callback import callback_handler

from optsd import native
from optsd.errors import Unsupported
from optsd.optimizations.attention import check_unet
from optsd.patching import Patch, Pipeline, Stage, in_reverse, replace_attribute


@dataclass(frozen=True)
class Compile:
    """Compile the UNet at its first call, and again for a new size or batch. 80-90 s for SD v1.5 on two CPU cores."""

    backend: str = "inductor"
    name: str = "compile"
    exact: bool = True
    stage: Stage = Stage.EXECUTION
    slot: str = "compilation"

    def check(self, pipe: Pipeline) -> None:
        check_unet(pipe, self.name)
        if self.backend != "inductor":
            return
        if pipe.unet.device.type == "cuda" and importlib.util.find_spec("triton") is None:
            raise Unsupported("compile needs triton on a GPU, and it is not installed", "pip install triton")
        if pipe.unet.device.type == "cpu" and not shutil.which(native.compiler()[0]):
            raise Unsupported("compile needs a C++ compiler on the CPU, and there is none", "install g++, or set CXX")

    def apply(self, pipe: Pipeline) -> Patch:
        unet = pipe.unet
        compiled = _Compiled(unet, self.backend)
        restores = [_channels_last(unet), replace_attribute(unet, "forward", compiled.forward)]
        return Patch(self.name, ("unet",), compiled.proof, in_reverse(restores))


def _channels_last(unet: nn.Module) -> Any:
    kernels = [each for each in (*unet.parameters(), *unet.buffers()) if each.ndim == 4]
    rows_first = [each for each in kernels if not each.is_contiguous(memory_format=torch.channels_last)]
    for each in rows_first:
        each.data = each.data.contiguous(memory_format=torch.channels_last)

    def restore() -> None:
        for each in rows_first:
            each.data = each.data.contiguous()

    return restore


class _Compiled:
    """The UNet's `forward`, compiled; `compile_s` is the time that torch spent compiling inside its calls."""

    def __init__(self, unet: nn.Module, backend: str) -> None:
        self.compiled = torch.compile(unet.forward, backend=backend)
        self.compilations, self.compile_s, self.started_s = 0, 0.0, 0.0

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)
        try:
            return self.compiled(sample.contiguous(memory_format=torch.channels_last), *args, **kwargs)
        finally:
            callback_handler.remove_start_callback(self._begin)
            callback_handler.remove_end_callback(self._end)

    def _begin(self, _: Any) -> None:
        self.started_s = time.perf_counter()

    def _end(self, _: Any) -> None:
        self.compile_s += time.perf_counter() - self.started_s
        self.compilations += 1

    def proof(self) -> dict[str, Any]:
        return {"compilations": self.compilations, "compile_s": round(self.compile_s, 3)}

"""torch.compile of the UNet, with its weights channels last; the seconds that it takes are measured apart."""

import importlib.util
import shutil
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._dynamo.callback import callback_handler

from optsd import anatomy, native
from optsd.calls import Call
from optsd.errors import Unsupported
from optsd.patching import Interposed, Patch, Pipeline, Stage


@dataclass(frozen=True)
class Compile:
    """Compile the UNet at its first call, and again for a new size or batch. 80-90 s for SD v1.5 on two CPU cores."""

    backend: str = "inductor"
    name: str = "compile"
    exact: bool = True
    stage: Stage = Stage.EXECUTION
    slot: str = "execution"

    def check(self, pipe: Pipeline) -> None:
        device = anatomy.device(anatomy.denoiser(pipe))
        if self.backend != "inductor":
            return
        if device.type == "cuda" and importlib.util.find_spec("triton") is None:
            raise Unsupported("compile needs triton on a GPU, and it is not installed", "pip install triton")
        if device.type == "cpu" and not shutil.which(native.compiler()[0]):
            raise Unsupported("compile needs a C++ compiler on the CPU, and there is none", "install g++, or set CXX")

    def apply(self, pipe: Pipeline) -> Patch:
        unet = anatomy.denoiser(pipe)
        compiled = Compiled(self.backend)
        changes = (ChannelsLast(unet), Interposed(unet, "", compiled))
        return Patch(self.name, (anatomy.denoiser_name(pipe),), compiled.proof, changes)


class ChannelsLast:
    """The order of a convolution's weights that compilers want."""

    def __init__(self, module: nn.Module) -> None:
        self.moved = [
            each
            for each in (*module.parameters(), *module.buffers())
            if each.ndim == 4 and not each.is_contiguous(memory_format=torch.channels_last)
        ]
        for each in self.moved:
            each.data = each.data.contiguous(memory_format=torch.channels_last)

    def holds(self) -> bool:
        return True  # what others lay in another order is slower, and the same

    def revert(self) -> None:
        for each in self.moved:
            each.data = each.data.contiguous()


class Compiled:
    """Before the denoiser's calls: runs what stands behind it compiled; `compile_s` is what torch spent compiling."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.compiled: Any = None
        self.compilations, self.compile_s, self.started_s = 0, 0.0, 0.0

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        if self.compiled is None:
            self.compiled = torch.compile(call.run, backend=self.backend)
        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)
        try:
            # torch keeps compiled code for all networks that are alike, and does not ask by itself whether they have
            # the same hooks: one with a user's hooks would run code that was compiled for one without them.
            with dynamo.patch(skip_nnmodule_hook_guards=False):
                return self.compiled(*_laid(args), **kwargs)
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

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, (self.backend,)  # compiled code neither travels nor serves another module


def _laid(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The latents in the order that the weights have; where they are given by name, the compiler copies them."""
    if args and isinstance(args[0], Tensor) and args[0].ndim == 4:
        return args[0].contiguous(memory_format=torch.channels_last), *args[1:]
    return args

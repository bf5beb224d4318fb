"""Follows a pipeline while it runs: which memory is live, and what every operation computes and moves.

The same tracer runs over fake tensors (an estimate: no weights, no GPU) and over real ones (a measurement of the
same thing), which is how the estimates are tested.
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from optsd.anatomy import DENOISERS
from optsd.estimate.operations import Operation, arithmetic, attention_flops, moved, name_of, tensors, traffic

STAND_INS = {
    "aten::all": True,
    "aten::any": False,
    "aten::amin": -1.0,
    "aten::amax": 1.0,
    "aten::min": 1.0,
}
"""What Python reads from a fake tensor, by the operation that made it: weights are finite, activations within ±1, and
latents are like those of the step before."""


@dataclass(eq=False, slots=True)
class Allocation:
    """One live piece of memory, and what made it."""

    size: int  # bytes, rounded up as the device's allocator does
    shape: tuple[int, ...]
    dtype: str
    operation: str
    module: str
    owner: str = ""  # for weights: the component that holds them


@dataclass(frozen=True)
class Peak:
    """The most that was live at one time. Bytes."""

    total: int
    weights: dict[str, int]  # by component
    activations: tuple[Allocation, ...]  # largest first
    cause: Allocation  # the allocation that made it the peak
    scores: frozenset[tuple[int, int]]  # (elements, last dimension) of what softmax works on

    def by_kind(self) -> dict[str, int]:
        """Bytes of weights, of attention's score matrices, and of all other activations."""
        sizes = {"weights": sum(self.weights.values()), "scores": 0, "activations": 0}
        for allocation in self.activations:
            sizes["scores" if _score_key(allocation.shape) in self.scores else "activations"] += allocation.size
        return sizes

    def by_module(self) -> dict[str, int]:
        """Bytes of activations by the module that made them, largest first."""
        sizes: Counter[str] = Counter()
        for allocation in self.activations:
            sizes[allocation.module or "pipeline"] += allocation.size
        return dict(sizes.most_common())


@dataclass(frozen=True, slots=True)
class Event:
    """What happened during a trace: an operation, an allocation, or, with neither, the end of one."""

    key: int = 0  # of the memory
    allocation: Allocation | None = None
    operation: Operation | None = None


class Tracer(TorchDispatchMode):
    """Enter it before the pipeline is built; call `start` when all weights are there; then run the pipeline.

    `fake`: follow fake tensors only (the host's own small tensors are then no part of the device's memory).
    """

    def __init__(self, device_type: str, granularity: int = 1, fake: bool = False) -> None:
        super().__init__()
        self.device_type, self.granularity, self.fake = device_type, granularity, fake
        self.operations: list[Operation] = []
        self.log: list[Event] = []
        self.step = 0
        self.live_bytes = 0
        self.live: dict[int, Allocation] = {}
        self._watched: dict[int, weakref.ref] = {}
        self._names: dict[int, str] = {}
        self._convolutions: set[str] = set()
        self._modules: list[str] = []
        self._weights: Counter[str] = Counter()
        self._best: dict[str, tuple] = {}
        self._scores: set[tuple[int, int]] = set()
        self._started = self._paused = False

    def start(self, components: dict[str, Any]) -> None:
        """From here on peaks and operations are recorded; all that is live now counts as weights."""
        for component, module in components.items():
            if not isinstance(module, nn.Module):
                continue
            for name, part in module.named_modules(prefix=component):
                self._names[id(part)] = name
                if "Conv" in type(part).__name__:
                    self._convolutions.add(name)
            for tensor in (*module.parameters(), *module.buffers()):
                if self._follows(tensor):
                    self._allocate(tensor, "weight")
                    self.live[key_of(tensor)].owner = component
        for allocation in self.live.values():
            allocation.owner = allocation.owner or "pipeline"
            self._weights[allocation.owner] += allocation.size
        self._started = True

    def own(self, tensor: Tensor, module: nn.Module) -> None:
        """A tensor that a running pipeline gave to a module: a weight too."""
        allocation = self.live.get(key_of(tensor))
        if self._started and allocation and not allocation.owner:
            allocation.owner = self._names.get(id(module), "").partition(".")[0] or "pipeline"
            self._weights[allocation.owner] += allocation.size

    @property
    def weight_bytes(self) -> dict[str, int]:
        """What the components hold now."""
        return dict(self._weights)

    @property
    def peaks(self) -> dict[str, Peak]:
        """By stage: a component's name, or `pipeline` between components."""
        return {
            stage: Peak(total, weights, tuple(sorted(live, key=lambda one: -one.size)), cause, frozenset(self._scores))
            for stage, (total, weights, live, cause) in self._best.items()
        }

    @property
    def kept(self) -> tuple[Allocation, ...]:
        """What is live now and is no weight: after a run, what it has left behind. Largest first."""
        found = (allocation for allocation in self.live.values() if not allocation.owner)
        return tuple(sorted(found, key=lambda one: (-one.size, one.module, one.operation)))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is neither followed nor counted."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Operations are named by the module that they run in."""
        hooks = nn.modules.module
        handles = (
            hooks.register_module_forward_pre_hook(self._enter_module),
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # every second call of all; through torch's modes it takes as long as any other
        if self._paused:
            return function(*args, **kwargs)
        if self.fake and (known_value := self._host_value(function, args, kwargs)) is not None:
            return known_value
        output = function(*args, **kwargs)
        outputs = [tensor for tensor in tensors(output) if self._follows(tensor)]
        inputs = [tensor for tensor in tensors((args, kwargs)) if self._follows(tensor)]
        known = {key_of(tensor) for tensor in inputs}
        name = function.name().partition(".")[0]
        for tensor in inputs:  # made before the tracer was entered, or by code that torch does not dispatch
            self._allocate(tensor, "input")
        for tensor in outputs:
            self._allocate(tensor, name)
        if name == "aten::convolution" and (scratch := self._turned(inputs[0], outputs[0])) is not None:
            self._allocate(scratch, "cudnn::workspace")
            del scratch
        if "softmax" in name:
            self._scores.update(_score_key(tensor.shape) for tensor in (*inputs, *outputs))
        is_view = not function._schema.is_mutable and all(key_of(tensor) in known for tensor in outputs)
        if self._started and outputs and not is_view:
            self._record(function, name, args, kwargs, output, outputs)
        return output

    def _turned(self, x: Tensor, out: Tensor) -> Tensor | None:
        """What cuDNN takes besides: a copy of a picture in half precision, and of the result, with channels last.

        Its tensor-core kernels want that order. Measured on an H200: 0.6 GB at the end of SD v1.5's decoder.
        """
        is_half = self.device_type == "cuda" and x.dtype in (torch.float16, torch.bfloat16)
        if not is_half or x.ndim != 4 or x.is_contiguous(memory_format=torch.channels_last):
            return None
        with self.paused():
            return x.new_empty(x.nbytes + out.nbytes, dtype=torch.int8)

    def _host_value(self, function: Any, args: tuple, kwargs: dict) -> Any:
        """The result of an operation on the host's own tensors (timesteps, token ids), which are real in an estimate
        too; and what Python reads from a fake one to decide how to go on. None: neither of the two.
        """
        inputs = list(tensors((args, kwargs)))
        if inputs and not any(isinstance(tensor, FakeTensor) for tensor in inputs):
            if torch.device(kwargs.get("device") or "cpu").type == "cpu":
                with unset_fake_temporarily():
                    return function(*args, **kwargs)
        elif function is torch.ops.aten._local_scalar_dense.default and key_of(inputs[0]) in self.live:
            return STAND_INS.get(self.live[key_of(inputs[0])].operation)
        return None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention as a fused kernel runs it: the output and a row of log-sums, and no score matrix.

        query B×H×L×E, key B×H×S×E, value B×H×S×V -> B×H×L×V, laid out as the query is, so that merging the heads
        is a view, as after torch's kernels (Dao, "FlashAttention-2", 2023).
        """
        same = query.shape[-1] == value.shape[-1]
        result = torch.empty_like(query) if same else query.new_empty((*query.shape[:-1], value.shape[-1]))
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        traffic_bytes = sum(map(moved, (query, key, value, result, sums)))
        self._append(
            "fused_attention",
            ("attention", name_of(query.dtype), attention_flops(query, key, value)),
            traffic_bytes,
            0,
        )
        return result

    def _record(self, function: Any, name: str, args: tuple, kwargs: dict, output: Any, outputs: list[Tensor]) -> None:
        size, read = traffic(function, args, kwargs, outputs)
        if size == 0:
            return
        weights = sum(moved(tensor) for tensor in read if self._follows(tensor) and self.live[key_of(tensor)].owner)
        self._append(name, arithmetic(function, args, kwargs, output), size, weights)

    def _append(self, name: str, computed: tuple[str, str, float], moved_bytes: int, weight_bytes: int) -> None:
        if self._started and not self._paused:
            kind, precision, flops = computed
            if kind == "linear" and self.module in self._convolutions:  # multiplied as a matrix of windows
                kind = "convolution"
            self.append(Operation(name, kind, precision, flops, moved_bytes, weight_bytes, self.module, self.step))

    def append(self, operation: Operation) -> None:
        """One more operation of the run."""
        self.operations.append(operation)
        self.log.append(Event(operation=operation))

    @property
    def module(self) -> str:
        """The name of the module that runs; "" between components."""
        return self._modules[-1] if self._modules else ""

    def _follows(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device_type and isinstance(tensor, FakeTensor) == self.fake

    def _allocate(self, tensor: Tensor, operation: str) -> None:
        key = key_of(tensor)
        if key in self.live:
            return
        storage = tensor.untyped_storage()
        size = -(-storage.nbytes() // self.granularity) * self.granularity
        allocation = Allocation(size, tuple(tensor.shape), name_of(tensor.dtype), operation, self.module)
        self.follow(tensor, allocation)

    def follow(self, tensor: Tensor, allocation: Allocation) -> None:
        """Hold the tensor's memory as this allocation, for as long as it lives."""
        key, storage = key_of(tensor), tensor.untyped_storage()
        self._watched[key] = weakref.ref(storage, lambda _: self.free(key))
        self.hold(key, allocation)

    def hold(self, key: int, allocation: Allocation) -> None:
        """Count it as live, until `free`."""
        self.live[key] = allocation
        self.log.append(Event(key, allocation))
        self.live_bytes += allocation.size
        stage = self.module.partition(".")[0] or "pipeline"
        if self._started and self.live_bytes > self._best.get(stage, (0,))[0]:
            active = [one for one in self.live.values() if not one.owner]
            self._best[stage] = (self.live_bytes, dict(self._weights), active, allocation)

    def free(self, key: int) -> None:
        """It is live no more."""
        allocation = self.live.pop(key)
        self._watched.pop(key, None)
        self.log.append(Event(key))
        self.live_bytes -= allocation.size
        if self._started and allocation.owner:
            self._weights[allocation.owner] -= allocation.size

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        name = self._names.get(id(module), self.module)
        if name in DENOISERS:
            self.step += 1
        self._modules.append(name)

    def _leave_module(self, *_: Any) -> None:
        self._modules.pop()


class TargetKernels(TorchFunctionMode):
    """Runs attention as the target's kernel does, where the host would decompose it; gives NumPy stand-ins."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and _fused_allowed():
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
            return self.tracer.attend(query, key, value)
        if function is Tensor.numpy and isinstance(args[0], FakeTensor):
            import numpy as np

            return np.zeros(args[0].shape, name_of(args[0].dtype))
        return function(*args, **kwargs)


def _fused_allowed() -> bool:
    """False inside `sdpa_kernel(MATH)`, which asks for the score matrix. One of the two others serves every dtype."""
    return torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()


def key_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _score_key(shape: tuple[int, ...]) -> tuple[int, int]:
    return (torch.Size(shape).numel(), shape[-1] if shape else 1)

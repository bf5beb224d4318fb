"""The denoiser's step recorded as a CUDA graph and replayed: one launch in place of hundreds. Exact, to the bit.

A step is computed as ever when it is met for the first time, recorded the second time and replayed from then on. What
is replayed runs no Python. So whatever decides which kernels run, and which memory they read, is looked at before each
step: the arguments' shapes, the weights' places, LoRA scales, torch's flags, and what other techniques say of theirs.
Where it differs the step is another one, and is recorded anew.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from optsd import anatomy
from optsd.calls import Call, parts, plain_class
from optsd.errors import Unsupported
from optsd.optimizations.attention import is_out_of_memory
from optsd.patching import Interposed, Patch, Pipeline, Stage
from optsd.state import Tally, Turn

MOST_RECORDINGS = 8
"""Each keeps its arguments and its output; the memory in between is one pool for all. The oldest one goes."""


class Recorder(Protocol):
    """Records what a device does. Tests have one that needs no GPU."""

    def record(self, run: Callable[[], Any], device: torch.device) -> tuple[Callable[[], Any], Any]:
        """Run it, recorded: what replays it, and its result, whose tensors each replay fills anew."""


class CudaGraphs:
    """CUDA's own, which share their memory: a result is copied before another one is replayed."""

    def __init__(self) -> None:
        self.living: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def record(self, run: Callable[[], Any], device: torch.device) -> tuple[Callable[[], Any], Any]:
        with torch.cuda.device(device):
            # A pool ends with the last graph in it, and torch fails at one that has ended.
            kept = next(iter(self.living), None)  # and is held until the end
            pool = kept.pool() if kept is not None else None
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the GPU meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                result = run()
        self.living.add(graph)
        return graph.replay, result


@dataclass(frozen=True)
class Graph:
    """Replay the denoiser's steps. Pays where launching takes longer than computing: small batches, fast GPUs."""

    recorder: Callable[[], Recorder] = CudaGraphs
    name: str = "graph"
    exact: bool = True
    stage: Stage = Stage.EXECUTION
    slot: str = "execution"

    def check(self, pipe: Pipeline) -> None:
        device = anatomy.device(anatomy.denoiser(pipe))
        if self.recorder is CudaGraphs and device.type != "cuda":
            raise Unsupported(
                f"graph records what a GPU does, and this denoiser is on the {device.type}",
                "move the pipeline to a GPU, or leave graph out",
            )

    def apply(self, pipe: Pipeline) -> Patch:
        recorded = Recorded(self.recorder)
        change = Interposed(anatomy.denoiser(pipe), "", recorded)
        return Patch(self.name, (anatomy.denoiser_name(pipe),), recorded.proof, (change,))


class Stateful(Protocol):
    """A part in front of the denoiser on whose state it depends what runs inside.

    `features` is what it gives to the layers inside, and what they leave there for a later step.
    """

    features: Tensor | None

    def kind(self, text: Tensor | None) -> Hashable:
        """What is equal where the same kernels read the same memory."""


@dataclass
class Recording:
    """A step as it was recorded."""

    arguments: list[Any]  # the flat arguments: tensors of its own, which each replay fills
    features: list[Tensor | None]  # those of stateful parts that go in
    replay: Callable[[], Any]
    results: list[Any]
    structure: TreeSpec
    left: list[Tensor | None]  # those that it leaves


class Recorded:
    """Before the denoiser's calls: replays its `forward`. Hooks on it, and the parts behind this one, run as ever."""

    def __init__(self, recorder: Callable[[], Recorder]) -> None:
        self.make = recorder
        self.recorder = recorder()
        self.turn, self.tally = Turn(), Tally()
        self.weights: Hashable = None
        self.recordings: OrderedDict[Hashable, Recording | None] = OrderedDict()

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # training: each pass needs its own graph
            return call(*args, **kwargs)
        with self.turn.lock:
            if "forward" in vars(call.module):  # of accelerate, say: it moves the weights, and is recorded as well
                return self._step(call, call.module, *args, **kwargs)
            return call(*args, **kwargs, instead_of_forward=partial(self._step, partial(_forward, call.module)))

    def _step(self, run: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        sample = anatomy.argument(module, anatomy.SAMPLE, args, kwargs)
        text = anatomy.argument(module, anatomy.TEXT, args, kwargs)
        stateful: list[Any] = [part for part in parts(module) if hasattr(part, "kind")]
        own = text if any(getattr(part, "keeps_text", False) for part in stateful) else None
        if torch.is_autocast_enabled(sample.device.type):  # the weights that it casts lie in the recording alone
            raise Unsupported("graph cannot record a step under autocast", "load the model in the type that is wanted")
        flat, structure = tree_flatten(_timestep_as_tensor(module, sample.device, args, kwargs))
        weights = state_of(module)
        if weights != self.weights:
            self.weights, self.recordings = weights, OrderedDict()
        key = (
            str(structure),
            tuple(map(_shape, flat)),
            tuple(part.kind(text) for part in stateful),
            tuple(_shape(part.features) for part in stateful),
            _flags(module),
        )
        if key not in self.recordings:
            self.recordings[key] = None
            while len(self.recordings) > MOST_RECORDINGS:
                self.recordings.popitem(last=False)
            self.tally.add("eager")
            return run(*args, **kwargs)
        self.recordings.move_to_end(key)
        recording = self.recordings[key]
        if recording is None:
            check_replayable(module, sample.device)
            recording = self.recordings[key] = self._record(run, flat, structure, stateful, own, sample.device)
        return self._replay(recording, flat, stateful, own)

    def _record(
        self,
        run: Callable[..., Any],
        flat: list[Any],
        structure: TreeSpec,
        stateful: list[Any],
        own: Tensor | None,
        device: torch.device,
    ) -> Recording:
        arguments = [_own(each, device) if isinstance(each, Tensor) and each is not own else each for each in flat]
        features = [None if part.features is None else part.features.clone() for part in stateful]
        args, kwargs = tree_unflatten(arguments, structure)
        for part, taken in zip(stateful, features, strict=True):
            part.features = taken
        try:
            replay, result = self.recorder.record(lambda: run(*args, **kwargs), device)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Unsupported(f"graph cannot record this denoiser's step ({reason})", "leave graph out") from error
        self.tally.add("recorded")
        results, shape = tree_flatten(result)
        return Recording(arguments, features, replay, results, shape, [part.features for part in stateful])

    def _replay(self, recording: Recording, flat: list[Any], stateful: list[Any], own: Tensor | None) -> Any:
        for mine, given in zip(recording.arguments, flat, strict=True):
            if isinstance(mine, Tensor) and given is not own:
                mine.copy_(given)
        for taken, part in zip(recording.features, stateful, strict=True):
            if taken is not None:
                taken.copy_(part.features)
        recording.replay()
        self.tally.add("replayed")
        for left, part in zip(recording.left, stateful, strict=True):
            part.features = None if left is None else left.clone()
        # The next step of any recording writes over what this one gave.
        copies = [each.clone() if isinstance(each, Tensor) else each for each in recording.results]
        return tree_unflatten(copies, recording.structure)

    def proof(self) -> dict[str, Any]:
        """Counters of other techniques stand still while a step is replayed, as it runs no Python."""
        return {
            "graphs_recorded": self.tally["recorded"],
            "steps_replayed": self.tally["replayed"],
            "steps_eager": self.tally["eager"],
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorded, (self.make,)  # recordings are of one module's memory


def check_replayable(module: nn.Module, device: torch.device) -> None:
    """Raise Unsupported where something inside decides by Python in every step, or weights come and go."""
    for place, each in module.named_modules():
        if not place:
            continue
        unknown = next((part for part in parts(each) if not getattr(part, "replayable", False)), None)
        hooked = each._forward_hooks or each._forward_pre_hooks or hasattr(each, "_diffusers_hook")
        if unknown is not None or hooked or "forward" in vars(each):
            raise Unsupported(
                f"graph cannot replay {place}: {'a technique' if unknown else 'a hook'} decides there in every step",
                "leave one of them out (offloading layer by layer, a step cache)",
            )
    away = {str(tensor.device) for tensor in (*module.parameters(), *module.buffers()) if tensor.device != device}
    if away:
        raise Unsupported(
            f"graph needs all weights on {device}, and some are on {', '.join(sorted(away))}",
            "leave graph out, or do not offload layer by layer",
        )


def state_of(module: nn.Module) -> Hashable:
    """Where every weight lies, what computes attention, and what adapters are scaled by: equal where all are.

    A walk through SD v1.5's UNet takes about a millisecond, while the GPU is busy with the step before.
    """
    found: list[Hashable] = []
    for each in module.modules():
        for tensor in (*each._parameters.values(), *each._buffers.values()):
            if tensor is not None:
                found.append((tensor.device, tensor.dtype, tensor.is_meta or tensor.data_ptr(), tensor.stride()))
        known = vars(each)
        found.append((id(each), id(known.get("processor")), tuple(map(id, parts(each)))))
        if "scaling" in known:  # peft's layers
            active = (str(getattr(each, name, None)) for name in ("active_adapters", "merged", "disable_adapters"))
            found.append((str(known["scaling"]), *active))
    return tuple(found)


def _flags(module: nn.Module) -> Hashable:
    return (
        module.training,
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )


def _forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    kind: Any = plain_class(module)
    return kind.forward(module, *args, **kwargs)


def _timestep_as_tensor(
    module: nn.Module, device: torch.device, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A number becomes the tensor that diffusers would make of it, so that it can differ from step to step."""

    def convert(name: str, value: Any) -> Any:
        if name not in anatomy.TIMESTEP or not isinstance(value, int | float):
            return value
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64, device=device)

    names = anatomy.arguments(plain_class(module))
    return (
        tuple(convert(name, value) for name, value in zip(names, args, strict=False)),
        {name: convert(name, value) for name, value in kwargs.items()},
    )


def _shape(value: Any) -> Hashable:
    """What must be equal of an argument: a tensor's shape, and anything else itself."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype, value.stride(), value.device)
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return type(value), value
    raise Unsupported(f"graph cannot replay a step that is given a {type(value).__name__}", "leave graph out")


def _own(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that stays where it is, on the GPU: one that lies on the CPU would be read there once and for all."""
    return torch.empty_like(tensor, device=device).copy_(tensor)

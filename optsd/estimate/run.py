"""Runs a pipeline under fake tensors, with the target device's kernels, and hands back what was traced."""

import contextlib
import dataclasses
import gc
import inspect
from collections.abc import Callable, Hashable, Iterator
from functools import partial, wraps
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)

from optsd import anatomy
from optsd.errors import BadInput, OptsdError, Unsupported
from optsd.estimate import architectures
from optsd.estimate.devices import Device
from optsd.estimate.repeated import Repeated
from optsd.estimate.trace import Allocation, TargetKernels, Tracer
from optsd.quantization import kernels, schemes
from optsd.quiet import without_talk
from optsd.records import Workload
from optsd.variants import against_eager


@dataclasses.dataclass(frozen=True)
class Traced:
    """One traced call of a pipeline; `calls` is how often the whole workload runs the denoiser."""

    tracer: Tracer
    denoiser: str
    calls: int
    parameters: dict[str, int]  # by component
    weight_bytes: dict[str, int]  # by component
    touched: tuple[str, ...]
    proof: dict[str, Any]
    kept: tuple[Allocation, ...]  # what is live when the call has ended, without the weights


def trace_fake(model: str, variant: str, workload: Workload, device: Device, steps: int) -> Traced:
    """Build, patch and run `model` under fake tensors, with `steps` denoising steps. Needs no weights and no GPU.

    Raises Unsupported, naming it, for an operation that has no shape rule or whose result depends on values.
    """
    technique = against_eager(variant)
    executed = next((step.name for step in technique.steps if step.slot == "execution"), "")
    if executed == "compile":
        raise Unsupported(
            f"{variant} cannot be estimated: what its compiler fuses is decided when it runs", "leave compile out"
        )
    if executed:
        raise Unsupported(
            f"{variant} cannot be estimated: it computes the same, and how long launches take is not counted",
            f"leave {executed} out",
        )
    tracer = Tracer(device.kind, device.granularity, fake=True)
    kernels.choose(torch.device("cpu"), bits=4)  # tries the CPU's arithmetic, once in a process: with real numbers
    with (
        _collecting_by_hand(),
        without_talk("diffusers|transformers|torch"),
        torch.no_grad(),
        _target(device),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.device(device.kind),
        tracer,
        _convertible(tracer),
        _clear_errors(),
    ):
        with tracer.paused(), _without_initial_values():
            pipe = architectures.build(model, getattr(torch, workload.dtype))
        parameters = {
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in pipe.components.items()
            if isinstance(part, nn.Module)
        }
        with _integers_once():
            patch = technique.apply(pipe)
        place = partial(_on_the_device, torch.device(device.kind))
        anatomy.denoiser(pipe).register_forward_pre_hook(place, with_kwargs=True)
        calls = _run_scheduler_on_real_tensors(pipe, tracer, workload.steps)
        tracer.start(pipe.components)
        weight_bytes, idle = tracer.weight_bytes, patch.proof
        repeated = Repeated(tracer)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                repeated.watch(part)
        with tracer.following_modules(), TargetKernels(tracer):
            gc.collect()
            run(pipe, workload, steps)
            gc.collect()
            kept = tracer.kept
        name = anatomy.denoiser_name(pipe)
        # What is played back runs nothing: what rose during the run counts a part of the calls, and is left out.
        proof = {what: value for what, value in patch.proof.items() if value == idle.get(what) or not _counts(value)}
        return Traced(tracer, name, calls, parameters, weight_bytes, patch.touched, proof, kept)


def _counts(value: Any) -> bool:
    """Whether a line of a proof is a number, or numbers by name."""
    return all(isinstance(each, int) for each in value.values()) if isinstance(value, dict) else isinstance(value, int)


def trace_real(pipe: Any, workload: Workload, steps: int) -> Tracer:
    """The same tracing of a pipeline that has its weights: the live tensors that it really has."""
    tracer = Tracer(pipe.device.type)
    with torch.no_grad(), tracer:
        tracer.start(pipe.components)
        with tracer.following_modules():
            run(pipe, workload, steps)
    return tracer


def run(pipe: Any, workload: Workload, steps: int) -> None:
    """One call of any text- or class-conditioned pipeline, with the inputs that its signature has."""
    accepted = inspect.signature(pipe.__call__).parameters
    inputs = {
        "prompt": ["a picture"] * workload.batch_size,
        "class_labels": [0] * workload.batch_size,
        "height": workload.height,
        "width": workload.width,
        "num_inference_steps": steps,
        "guidance_scale": workload.guidance,
        "output_type": "pt",
    }
    if "height" not in accepted:
        _check_size(pipe, workload)
    pipe(**{name: value for name, value in inputs.items() if name in accepted})


def _check_size(pipe: Any, workload: Workload) -> None:
    halvings = len(anatomy.decoder(pipe).config.block_out_channels) - 1
    side = anatomy.denoiser(pipe).config.sample_size * 2**halvings
    if (workload.height, workload.width) != (side, side):
        raise BadInput(
            f"{type(pipe).__name__} draws {side}×{side} pixels only, not {workload.width}×{workload.height}",
            f"give --size {side}",
        )


def _on_the_device(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """The scheduler computes on the CPU here; its timestep goes where it would be."""

    def placed(value: Any) -> Any:
        return (
            value.to(device) if isinstance(value, Tensor) and value.ndim and value.device.type != device.type else value
        )

    return tuple(map(placed, args)), {name: placed(value) for name, value in kwargs.items()}


def _run_scheduler_on_real_tensors(pipe: Any, tracer: Tracer, steps: int) -> int:
    """Let the scheduler compute with real numbers, which decide how it goes on; how often `steps` call the denoiser.

    Its tensors are latents, thousands of times smaller than the denoiser's activations: they are not counted.
    """

    def real(value: Any) -> Any:
        return torch.ones(value.shape, dtype=value.dtype) if isinstance(value, FakeTensor) else value

    def wrapped(method: Callable) -> Callable:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            fake = next((each for each in (*args, *kwargs.values()) if isinstance(each, FakeTensor)), None)
            if "device" in kwargs:
                kwargs["device"] = "cpu"
            with tracer.paused(), unset_fake_temporarily(), torch.device("cpu"):
                result = method(*map(real, args), **{name: real(value) for name, value in kwargs.items()})
            return result if fake is None else _like(result, fake)

        return call

    with tracer.paused(), unset_fake_temporarily(), torch.device("cpu"):
        scheduler = pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        # A flow's shift, which the pipeline takes from the picture's size, moves the timesteps and adds none.
        shifted = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(steps, **shifted)
        calls = len(scheduler.timesteps)
    for name in ("set_timesteps", "scale_model_input", "step"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, wrapped(getattr(scheduler, name)))
    return calls


def _like(result: Any, fake: Tensor) -> Any:
    """A scheduler's result with fake tensors in place of the real ones."""
    if isinstance(result, Tensor):
        return torch.empty(result.shape, dtype=result.dtype, device=fake.device) if result.ndim else result
    if isinstance(result, tuple):
        return tuple(_like(each, fake) for each in result)
    if hasattr(result, "prev_sample"):
        return type(result)(**{key: _like(value, fake) for key, value in result.items()})
    return result


@contextlib.contextmanager
def _convertible(tracer: Tracer) -> Iterator[None]:
    """Let modules change their type in mid-run, as SDXL's VAE does: torch's own way swaps tensors, fake ones refuse."""

    def apply(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(convert)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                changed = convert(tensor)
                tracer.own(changed, module)
                if name in module._parameters:
                    module._parameters[name] = nn.Parameter(changed, requires_grad=False)
                else:
                    module._buffers[name] = changed
        return module

    with mock.patch.object(nn.Module, "_apply", apply):
        yield


@contextlib.contextmanager
def _without_initial_values() -> Iterator[None]:
    """Fake weights have no values: to draw them is half of the time that a pipeline takes to be built."""
    with contextlib.ExitStack() as stack:
        for name in vars(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                stack.enter_context(mock.patch.object(nn.init, name, lambda tensor, *_, **__: tensor))
        yield


@contextlib.contextmanager
def _integers_once() -> Iterator[None]:
    """Weights of one form become integers of one form, which is all that is asked: the search for them is run once."""

    def like(made: Any) -> Any:
        if isinstance(made, Tensor):
            return torch.empty_like(made)
        parts = {name: like(part) for name, part in vars(made).items() if isinstance(part, Tensor)}
        return dataclasses.replace(made, **parts)

    def once(function: Callable) -> Callable:
        known: dict[Hashable, Any] = {}

        def call(*args: Any) -> Any:
            kind = tuple((each.shape, each.stride(), each.dtype) if isinstance(each, Tensor) else each for each in args)
            if kind not in known:
                known[kind] = function(*args)
                return known[kind]
            return like(known[kind])

        return call

    with contextlib.ExitStack() as stack:
        for name in ("quantize_int8", "quantize_int4", "unpack_int4"):
            stack.enter_context(mock.patch.object(schemes, name, once(getattr(schemes, name))))
        yield


@contextlib.contextmanager
def _collecting_by_hand() -> Iterator[None]:
    """Python's collector runs after so many new objects: what it frees, and so the peak, would be chance.

    Objects that are there already are left out: to go through all that torch and diffusers made takes a second.
    """
    enabled, is_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    if not is_frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not is_frozen:
            gc.unfreeze()
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _target(device: Device) -> Iterator[None]:
    """Techniques that ask which GPU there is hear of the one that is modelled."""
    if device.kind != "cuda":
        yield
        return
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=device.capability),
        mock.patch.object(torch.cuda, "get_device_name", return_value=device.title),
    ):
        yield


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """torch's exceptions of fake tensors as one line that names the operation."""
    try:
        yield
    except OptsdError:
        raise
    except (UnsupportedOperatorException, DynamicOutputShapeException, NotImplementedError) as error:
        name = getattr(error, "func", None) or str(error).splitlines()[0][:120]
        raise Unsupported(
            f"the operation {name} has no shape rule, so its memory cannot be estimated",
            "give it one with torch.library.register_fake",
        ) from error
    except DataDependentOutputException as error:
        raise Unsupported(
            f"a decision depends on the values that {error.func} reads, which an estimate does not have",
            "let the technique decide by shapes and types",
        ) from error

"""Blocks that are alike are traced once.

A network repeats a block dozens of times, and its steps are alike too; a trace takes a third of a millisecond an
operation, nearly all of it inside torch's fake tensors. So a block's call is written down as what it did (operations,
allocations, frees, the form of its result) and played back for a call of the same kind: a block of the same classes,
settings and forms of weights, with arguments of the same form. What is not understood (an object of an unknown kind, a
tensor that is kept somewhere) is compared by identity: nothing matches that might differ. A call that left something
behind, in memory or in the block's attributes, is not played back: it filled a cache, or counts steps.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from itertools import count
from types import BuiltinFunctionType, CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from optsd.calls import plain_class
from optsd.estimate.trace import Event, Tracer, key_of
from optsd.state import Tally

SMALL = 2
"""Modules of a block that is not worth it."""

Form = tuple[tuple[int, ...], tuple[int, ...], int, torch.dtype, int]
"""Of a tensor: shape, strides, offset, type, bytes of the memory that it looks at."""


@dataclass(frozen=True)
class Made:
    """A tensor of a result. `memory` is a key of the call that was written down."""

    memory: int
    form: Form
    argument: int | None  # the place of the argument that is this very tensor


@dataclass(frozen=True)
class Written:
    """One call: its events in order, and its result."""

    name: str  # the module's
    events: tuple[Event, ...]
    memories: tuple[int | None, ...]  # of the flat arguments
    parts: tuple[Any, ...]  # of the flat result: Made, or a value as it is
    structure: TreeSpec


class Repeated:
    """The calls that one trace has written down."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer, self.written, self.keys = tracer, dict[Hashable, Written](), count(-1, -1)

    def watch(self, component: nn.Module) -> None:
        """Stand in the place of `forward` in the blocks of the component's lists."""
        lists = [each for each in component.modules() if isinstance(each, nn.ModuleList)]
        for block in {id(block): block for each in lists for block in each}.values():
            # The layers of a feed-forward lie in a list too. One at which somebody stands is called by itself, where a
            # block would have what follows it computed in the same pass (`boundary._is_bare`).
            if len(list(block.modules())) <= SMALL:
                continue
            block.forward = partial(self._run, block, block.forward)

    def _run(self, block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tracer = self.tracer
        flat, structure = tree_flatten((args, kwargs))
        memories = tuple(key_of(each) if isinstance(each, Tensor) else None for each in flat)
        if any(key is not None and key not in tracer.live for key in memories):
            return forward(*args, **kwargs)  # the host's, or not met before
        before = _state(block)
        first = {key: place for place, key in reversed(list(enumerate(memories)))}
        given = tuple(
            _look(each, {}, {}) if key is None else (_form(each), first[key], bool(tracer.live[key].owner))
            for each, key in zip(flat, memories, strict=True)
        )
        kind = (before, structure, given)
        if kind in self.written:
            return self._play(self.written[kind], flat)
        start, live = len(tracer.log), set(tracer.live)
        result = forward(*args, **kwargs)
        written = self._write(start, live, flat, memories, result)
        if written and _state(block) == before:
            self.written[kind] = written
        return result

    def _write(
        self, start: int, live: set[int], flat: list[Any], memories: tuple[int | None, ...], result: Any
    ) -> Written | None:
        """None for a call that left something behind, or whose result lies in memory that is not followed."""
        now, parts = set(self.tracer.live), list[Any]()
        values, structure = tree_flatten(result)
        for value in values:
            if isinstance(value, Tensor):
                if key_of(value) not in now:
                    return None
                same = next((place for place, argument in enumerate(flat) if argument is value), None)
                value = Made(key_of(value), _form(value), same)
            parts.append(value)
        made = {part.memory for part in parts if isinstance(part, Made)}
        arguments = {key for key in memories if key is not None}
        if now - live - made or live - now or made & live - arguments:
            return None
        return Written(self.tracer.module, tuple(self.tracer.log[start:]), memories, tuple(parts), structure)

    def _play(self, written: Written, flat: list[Any]) -> Any:
        """Do to the tracer what the call did; a result of the same form."""
        tracer, name = self.tracer, self.tracer.module
        held = {key: each for key, each in zip(written.memories, flat, strict=True) if key is not None}
        results = {part.memory: part for part in written.parts if isinstance(part, Made) and part.memory not in held}
        # A freed place may be given out again: what a result lies in was allocated last.
        last = {event.key: index for index, event in enumerate(written.events) if event.allocation}
        keys: dict[int, int] = {}
        for index, event in enumerate(written.events):
            if event.operation:
                renamed = _renamed(event.operation.module, written.name, name)
                tracer.append(replace(event.operation, module=renamed, step=tracer.step))
            elif event.allocation:
                again = replace(event.allocation, module=_renamed(event.allocation.module, written.name, name))
                if event.key in results and last[event.key] == index:
                    with tracer.paused():
                        held[event.key] = _memory(results[event.key].form, tracer.device_type)
                    tracer.follow(held[event.key], again)
                else:
                    keys[event.key] = next(self.keys)
                    tracer.hold(keys[event.key], again)
            else:
                tracer.free(keys.pop(event.key))

        def part_of(part: Any) -> Any:
            if not isinstance(part, Made):
                return part
            shape, strides, offset, dtype, _ = part.form
            own = held[part.memory]
            if part.argument is not None:
                return flat[part.argument]
            return (own if own.dtype == dtype else own.view(dtype)).as_strided(shape, strides, offset)

        with tracer.paused():
            return tree_unflatten([part_of(part) for part in written.parts], written.structure)


def _memory(form: Form, device: str) -> Tensor:
    return torch.empty(form[-1] // form[3].itemsize, dtype=form[3], device=device)


def _form(tensor: Tensor) -> Form:
    offset, size = int(tensor.storage_offset()), tensor.untyped_storage().nbytes()
    return tuple(tensor.shape), tensor.stride(), offset, tensor.dtype, size


def _renamed(module: str, old: str, new: str) -> str:
    inside = module == old or module.startswith(f"{old}.")
    return new + module[len(old) :] if inside else module


_BY_VALUE = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.layout, Enum)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_APART = {*vars(nn.Module()), "forward", "kernel_calls"}
"""What is looked at by itself: what torch keeps in every module. And what counts, and decides nothing."""


def _state(block: nn.Module) -> Hashable:
    """Equal for blocks that compute the same of arguments of the same form."""
    inside = {id(part): name for name, part in block.named_modules(remove_duplicate=False)}
    seen: dict[int, int] = {}
    return tuple(_state_of(part, name, inside, seen) for name, part in block.named_modules())


def _state_of(part: nn.Module, name: str, inside: dict[int, str], seen: dict[int, int]) -> Hashable:
    own = vars(part)
    weights = tuple(
        (key, None if tensor is None else (_form(tensor), tensor.device))
        for key, tensor in (*part._parameters.items(), *part._buffers.items())
    )
    hooks = tuple(_look(hook, inside, seen) for kind in _HOOKS for hook in own[kind].values()) if name else ()
    rest = tuple((key, _look(value, inside, seen)) for key, value in own.items() if key not in _APART)
    return name, plain_class(part), part.training, weights, hooks, _look(_forward(part), inside, seen), rest


def _forward(part: nn.Module) -> Any:
    """What computes the module: its class's method, or what others put in its place."""
    forward = part.forward
    if isinstance(forward, partial) and getattr(forward.func, "__func__", None) is Repeated._run:
        return forward.args[1]
    return forward


def _look(value: Any, inside: dict[int, str], seen: dict[int, int]) -> Hashable:
    """A value as something that can be compared; `inside` names the block's own modules."""
    if isinstance(value, _BY_VALUE):
        return type(value), value
    if isinstance(value, nn.Module):
        return "module", inside.get(id(value), id(value))
    if isinstance(value, Tally):
        return Tally  # it counts, and decides nothing
    if isinstance(value, BuiltinFunctionType):
        return value
    if isinstance(value, tuple):
        return type(value), *(_look(each, inside, seen) for each in value)
    if isinstance(value, MethodType):  # made anew at each look
        return _look(value.__func__, inside, seen), _look(value.__self__, inside, seen)
    if id(value) in seen:
        return "again", seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, FunctionType):
        filled = (cell for cell in value.__closure__ or () if cell != CellType())  # one that is empty cannot be read
        captured = tuple(_look(cell.cell_contents, inside, seen) for cell in filled)
        return value.__code__, captured, _look(value.__defaults__, inside, seen)
    if isinstance(value, partial):
        return partial, *(_look(each, inside, seen) for each in (value.func, value.args, value.keywords))
    if isinstance(value, list):
        return type(value), *(_look(each, inside, seen) for each in value)
    if isinstance(value, dict):
        return type(value), *(_look(each, inside, seen) for pair in value.items() for each in pair)
    if not isinstance(value, Tensor) and hasattr(value, "__dict__"):
        return type(value), _look(vars(value), inside, seen)
    return type(value), id(value)

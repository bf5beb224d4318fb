"""How a technique stands before a module's calls: parts in a row, the last one first, the module's own call at the end.

A part replaces neither `forward` nor the module. So it stays where it is when others (accelerate's offloading,
diffusers' hooks, `torch.compile`, adapters) put something of theirs in and out, and it comes out whatever came later.
The module gets a subclass of its class, of the same name and equal to it, whose `__call__` goes through the parts;
copies and pickles carry parts of their own.
"""

from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, Protocol

from torch import nn

_PARTS = "_optsd_parts"


@dataclass(frozen=True, eq=False)  # the compiler of torch 2.11 asks for the hash of one that has no fields yet
class Call:
    """What a part passes a call on to: the parts that stand behind it, and the module."""

    module: nn.Module
    depth: int  # how many parts are left

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.depth == 0:
            kind: Any = plain_class(self.module)
            return kind.__call__(self.module, *args, **kwargs)
        return vars(self.module)[_PARTS][self.depth - 1](Call(self.module, self.depth - 1), *args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The same as a method, for compilers, which take functions."""
        return self(*args, **kwargs)


class Part(Protocol):
    """Stands before the calls of one module. It keeps no reference to it: `call.module` is the one that is called.

    It passes the call on, or gives `call(…, instead_of_forward=function)`: hooks and the parts behind it then meet the
    call as ever, and `function(module, …)` computes what `forward` would. Where it has `converting`, that stands before
    what `module.to(…)` does; where it has `copying`, that is asked before the module is copied or pickled. Where it is
    `replayable`, what it does in one step holds for the next (`optimizations/graph.py`).
    """

    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any: ...


class _Interposed:
    """Mixed into the class of a module that has parts."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Call(self, len(parts(self)))(*args, **kwargs)  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        for part in parts(self):  # type: ignore[arg-type]
            if hasattr(part, "copying"):
                part.copying()
        # The subclass is made here and has no place from which it could be imported.
        state = self.__getstate__() if hasattr(self, "__getstate__") else vars(self)
        return _empty, (plain_class(self),), state

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for part in parts(self):  # type: ignore[arg-type]
            if hasattr(part, "converting"):
                fn = part.converting(self, fn)
        return super()._apply(fn, recurse)  # type: ignore[misc]


def interpose(module: nn.Module, part: Part) -> None:
    """Put a part before the module's calls, in front of those that are there."""
    vars(module).setdefault(_PARTS, []).append(part)
    become(module, plain_class(module))


def withdraw(module: nn.Module, part: Part) -> None:
    """Take the part out again, wherever it stands; nothing happens where it is gone already."""
    left = [each for each in parts(module) if each is not part]
    kind = plain_class(module)
    if left:
        vars(module)[_PARTS] = left
    else:
        vars(module).pop(_PARTS, None)
    become(module, kind)


def parts(module: nn.Module) -> list[Part]:
    """The parts before the module's calls; the last one is asked first."""
    return vars(module).get(_PARTS, [])


def plain_class(module: Any) -> type:
    """The module's class as it was before any part was put there."""
    kind = type(module)
    return kind.__mro__[2] if issubclass(kind, _Interposed) else kind


def become(module: nn.Module, kind: type) -> None:
    """Give the module this class, and keep its parts."""
    module.__class__ = _with_parts(kind) if parts(module) else kind


def take_over(new: nn.Module, old: nn.Module) -> None:
    """What stood before the calls of `old` stands before those of `new`, which takes its place."""
    if parts(old):
        vars(new)[_PARTS] = parts(old)
        become(new, plain_class(new))


class _Alike(type):
    """Makes such a subclass equal to the class that it stands for, as others compare: `type(unet) in (UNet,)`."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or cls.__mro__[2] is other

    def __hash__(cls) -> int:
        return hash(cls.__mro__[2])


@cache
def _with_parts(kind: type) -> type:
    plain: Any = kind

    @wraps(plain.forward)  # diffusers reads the signature
    def forward(self: nn.Module, *args: Any, instead_of_forward: Any = None, **kwargs: Any) -> Any:
        return (instead_of_forward or plain.forward)(self, *args, **kwargs)

    known = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "forward": forward}
    return _Alike(kind.__name__, (_Interposed, kind), known)


def _empty(kind: type) -> Any:
    made: Any = _with_parts(kind)
    return made.__new__(made)

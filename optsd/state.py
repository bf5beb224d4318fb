"""What a technique remembers while a pipeline runs: counts, and values that live exactly as long as a prompt.

Copies and pickles of a patched module begin anew: they take over neither counts nor what was kept.
"""

import threading
import weakref
from collections import Counter
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary


class Tally:
    """Counts events from any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, event: str) -> None:
        # A compiled graph runs no Python: what it does is seen in a profile, not here.
        if torch.compiler.is_compiling():
            return
        with self._lock:
            self._counts[event] += 1

    def __getitem__(self, event: str) -> int:
        return self._counts[event]

    @property
    def total(self) -> int:
        return sum(self._counts.values())

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tally, ()


class Turn:
    """A lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Turn, ()


class LastPrompt:
    """Knows whether a prompt tensor is another than in the call before: once a pipeline call, not once a step."""

    def __init__(self) -> None:
        self._last: weakref.ref[torch.Tensor] | None = None

    def is_new(self, prompt: torch.Tensor | None) -> bool:
        if torch.compiler.is_compiling():
            return False
        if prompt is not None and self._last is not None and self._last() is prompt:
            return False
        self._last = None if prompt is None else weakref.ref(prompt)
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        return LastPrompt, ()


class PerPrompt:
    """A dictionary for each living prompt tensor, forgotten when the tensor dies or is changed in place.

    A pipeline makes a new tensor of text embeddings in every call and passes that one tensor to every step, so what
    is kept here lives with one call. The tensor itself is the key, held weakly: an address that is used again, another
    prompt, another thread's call never find it. Changes in place are seen by the tensor's version counter; tensors
    made under `torch.inference_mode` have none and are compared with a copy. (Writing through `.data` or from outside
    torch is seen by neither.)
    """

    def __init__(self) -> None:
        self._entries = WeakTensorKeyDictionary()
        self._lock = threading.Lock()

    @torch.compiler.disable
    def of(self, prompt: torch.Tensor) -> dict[Any, Any]:
        """The dictionary of this prompt as it is now: empty at the first look and after every change of the tensor."""
        with self._lock:
            entry = self._entries.get(prompt)
            if entry is None or not _unchanged(prompt, entry[0]):
                entry = (prompt.clone() if prompt.is_inference() else prompt._version, {})
                self._entries[prompt] = entry
            return entry[1]

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[Any, ...]:
        return PerPrompt, ()


def _unchanged(tensor: torch.Tensor, seen: "int | torch.Tensor") -> bool:
    if isinstance(seen, torch.Tensor):
        return torch.equal(tensor, seen)
    return tensor._version == seen

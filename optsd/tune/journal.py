"""Every reading of a search, a line of JSON each: what was measured is not measured again, whoever was killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from optsd.errors import BadInput
from optsd.files import cannot_write, read_text, write_atomically


class Journal:
    """Readings by their key, a list of words and numbers. `identity` is all that makes them comparable.

    One process at a time has it: raises BadInput where another does, and for a file of another identity.
    """

    def __init__(self, file: Path, identity: dict[str, Any]) -> None:
        self.file, self.added = file, 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(file.with_suffix(".lock"), timeout=0)
            self._lock.acquire()
        except Timeout:
            raise BadInput(f"another search writes {file}", "wait for it, or name another --output") from None
        except OSError as error:
            raise cannot_write(file, error) from error
        head = json.dumps({"schema": 1, "of": identity}, sort_keys=True)
        lines = read_text(file, "name another --output").split("\n") if file.exists() else []
        whole = lines[:-1]  # what comes after the last end of a line is what a kill has left of one
        if whole and whole[0] != head:
            self.close()
            raise BadInput(f"{file} holds the readings of another search", "name another --output, or remove it")
        self._known: dict[str, Any] = {}
        for line in whole[1:]:
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):  # damaged: it is measured again
                continue
            self._known[json.dumps(key)] = value
        if lines != [*whole, ""] or not whole:
            write_atomically(file, "".join(f"{line}\n" for line in whole or [head]))

    def reading(self, key: list[Any], make: Callable[[], Any]) -> Any:
        """The value under this key; made, and written before it is used, where there is none."""
        name = json.dumps(key)
        if name not in self._known:
            self.put(key, make())
        return self._known[name]

    def get(self, key: list[Any]) -> Any:
        return self._known.get(json.dumps(key))

    def put(self, key: list[Any], value: Any) -> None:
        # As it will be read again: what is a pair now is a list then.
        text = json.dumps([key, value], allow_nan=False)
        try:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")  # what a power failure takes of it is measured again
        except OSError as error:
            raise cannot_write(self.file, error) from error
        self._known[json.dumps(key)] = json.loads(text)[1]
        self.added += 1

    def close(self) -> None:
        self._lock.release()

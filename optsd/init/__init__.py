"""`optsd init`: write into a repository what it needs to be benched and gated; `--check` says what is out of date.

Nothing is overwritten. Each file has a line `optsd init 0123456789ab`, which stands for the text that it was written
from: `--check` compares it with that of this version. What you change in a file is yours.
"""

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from optsd.files import read_text, write_atomically

TEMPLATES = Path(__file__).parent / "files"
FILES = {
    # where it goes -> what it is made of
    "bench/variants": "variants",
    "bench/args": "args",
    "bench/subjects.py": "subjects.py",
    "bench/README.md": "README.md",
    "expected/README.md": "expected.md",
    ".github/workflows/optsd-cpu.yml": "github/cpu.yml",
    ".github/workflows/optsd-gpu.yml": "github/gpu.yml",
}
_WORDS = ("args", "variants")
"""pytest reads every line of these as a word: there is no room for a stamp."""
_MARK = "@STAMP@"
_STAMP = re.compile(r"optsd init ([0-9a-f]{12})")
_NEXT = """
next:
  1. put your pipeline into bench/subjects.py, or a model's name or folder into bench/variants
  2. optsd bench @bench/args                                      see what it does
  3. optsd bench @bench/args --expected-update                    record this machine; commit expected/
  4. optsd bench @bench/args --gate                               from then on: red when it has become worse
  5. the first lines of .github/workflows/optsd-cpu.yml           two gates for any runner: record what they compare
bench/README.md explains the rest."""


@dataclass(frozen=True)
class State:
    """One file, and whether it is `current`, `missing`, `out of date`, or `without its stamp`, so not comparable."""

    file: str
    status: str


def main(arguments: list[str]) -> int:
    """0; with `--check` 1 where a file is missing or out of date. Raises BadInput for what cannot be written."""
    parser = argparse.ArgumentParser(
        prog="optsd init", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="of the repository (default: this one)")
    parser.add_argument("--check", action="store_true", help="write nothing, and say what is missing or out of date")
    given = parser.parse_args(arguments)
    states = check(given.folder)
    if given.check:
        for state in states:
            print(f"{state.status:<18}{state.file}")
        stale = [state for state in states if state.status in ("missing", "out of date")]
        if stale:
            print("write what is missing with: optsd init; rename or remove what is out of date first")
        return bool(stale)
    for state in states:
        if state.status == "missing":
            write_atomically(given.folder / state.file, _text(state.file))
            print(f"wrote  {state.file}")
        else:
            print(f"kept   {state.file} ({state.status})")
    print(_NEXT)
    return 0


def check(folder: Path) -> list[State]:
    """What is there of the files, and of which text it was made."""
    return [State(file, _status(folder / file, template)) for file, template in FILES.items()]


def _status(file: Path, template: str) -> str:
    if not file.exists():
        return "missing"
    stamp = _STAMP.search(read_text(file, "give permission to read it, or move it away"))
    if template in _WORDS:
        return "current"
    return "without its stamp" if stamp is None else "current" if stamp[1] == _stamp(template) else "out of date"


def _text(file: str) -> str:
    template = FILES[file]
    return (TEMPLATES / template).read_text(encoding="utf-8").replace(_MARK, f"optsd init {_stamp(template)}")


def _stamp(template: str) -> str:
    return hashlib.sha256((TEMPLATES / template).read_bytes()).hexdigest()[:12]

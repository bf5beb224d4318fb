"""Another build of the code beside this one: a git ref in a work tree, or a wheel, each in a process of its own."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from optsd.errors import BadInput, OptsdError, Unsupported
from optsd.records import Workload

PATIENCE_S = 900.0
"""A process that gives no answer for so long hangs: the longest answer is that of loading a model and compiling it."""
_TOO_OLD = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError", "KeyError")
"""What a build raises that lacks what the worker asks of it, or knows it under another signature."""


@dataclass(frozen=True)
class Build:
    """Code that can be put first on Python's path."""

    name: str  # as a verdict has it: `main (1a2b3c4d)`, `this build`, `optsd-0.2-py3-none-any.whl`
    folder: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where its packages are: under `src`, where it has one, and in the folder itself."""
        return tuple(path for path in (self.folder / "src", self.folder) if path.is_dir())


def this_build(root: Path) -> Build:
    """The checkout that holds `root`, with the files as they are now; `root` itself outside a checkout."""
    top = _git(root, "rev-parse", "--show-toplevel")
    return Build("this build", Path(top) if top else root)


@contextmanager
def other_build(given: str, root: Path) -> Iterator[Build]:
    """A git ref of the repository that holds `root`, checked out, or a wheel, unpacked; removed again afterwards.

    Raises BadInput for what is neither, and where there is no repository.
    """
    with tempfile.TemporaryDirectory(prefix="optsd-against-") as temporary:
        folder = Path(temporary) / "build"
        if given.endswith(".whl"):
            _unpack(root / given, given, folder)
            yield Build(Path(given).name, folder)
            return
        commit = _commit(given, root)
        _git(root, "worktree", "prune")  # of runs that were killed
        done = _run_git(root, "worktree", "add", "--detach", "--force", str(folder), commit)
        if done is None or done.returncode:
            said = (done.stderr if done else "git is not there").strip().splitlines()
            raise BadInput(f"git cannot check out {given} ({said[-1] if said else 'no reason given'})", "make room")
        try:
            yield Build(f"{given} ({commit[:8]})", folder)
        finally:
            _git(root, "worktree", "remove", "--force", str(folder))


def check_build(given: str, root: Path) -> None:
    """Raise BadInput for what `other_build` would refuse. Checks nothing out."""
    if given.endswith(".whl"):
        if not zipfile.is_zipfile(root / given):
            raise BadInput(f"--against {given} is no wheel that is there", "give the path of a .whl, or a git ref")
    else:
        _commit(given, root)


class Worker:
    """A process that runs one build and answers when it is asked. Raises OptsdError, naming the build, where not."""

    def __init__(self, build: Build, patience_s: float = PATIENCE_S) -> None:
        self.build, self.patience_s = build, patience_s
        path = os.pathsep.join(map(str, filter(None, (*build.paths, os.environ.get("PYTHONPATH")))))
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        source = Path(__file__).with_name("worker.py").read_text(encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=build.folder,
            env={**os.environ, "PYTHONPATH": path},
            encoding="utf-8",
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            own = build.folder / "optsd" / "__init__.py"
            loaded = Path(self.ask("hello")["file"])
            if own.is_file() and loaded.resolve() != own.resolve():
                raise OptsdError(f"{build.name} runs {loaded} and not its own code", "unset PYTHONSAFEPATH")
        except BaseException:
            self.close()
            raise

    def make(self, model: str, variant: str, device: str, workload: Workload) -> None:
        """Load the model, apply the variant and draw once. Raises Unsupported where the build says that it cannot."""
        self.ask("build", model=model, variant=variant, device=device, dtype=workload.dtype, workload=asdict(workload))

    def seconds(self) -> float:
        """Of one batch."""
        return float(self.ask("run")["seconds"])

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        name = self.build.name
        try:
            stream = self._process.stdin
            if stream is not None:
                stream.write(json.dumps({"do": do, **what}) + "\n")
                stream.flush()
            line = self._answers.get(timeout=self.patience_s)
        except queue.Empty:
            self.close()
            raise OptsdError(
                f"{name} has not answered for {self.patience_s:g} s", "choose a smaller --size or --batch-size"
            ) from None
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            raise OptsdError(f"the process of {name} died ({self._last_words()})", "free memory, or see what it says")
        try:
            answer = json.loads(line)
        except ValueError:
            raise OptsdError(
                f"{name} answers what is no answer: {line!r:.80}", "let nothing else write there"
            ) from None
        if "error" not in answer:
            return answer
        said = str(answer["error"]).splitlines()[0]
        if answer.get("kind") in _TOO_OLD:
            raise OptsdError(f"{name} cannot be driven by this build ({said})", "compare with a newer one")
        if answer.get("kind") in ("Unsupported", "BadInput"):
            raise Unsupported(f"{name}: {said.rpartition('; ')[0] or said}", said.rpartition("; ")[2])
        raise OptsdError(f"{name} failed: {said}", "run it by itself to see more")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream:
                try:
                    stream.close()
                except OSError:
                    continue  # the pipe to a process that has died with something unread in it

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put("")

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        return f"exit code {status}" + (f": {lines[-1]:.160}" if lines else "")


def _commit(given: str, root: Path) -> str:
    if _git(root, "rev-parse", "--git-dir") is None:
        raise BadInput(f"--against {given}: {root} is in no git repository", "run it in a checkout, or name a wheel")
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{given}^{{commit}}")
    if not commit:
        raise BadInput(
            f"--against {given}: no such commit, branch or tag here", "fetch it (git fetch), or see git branch -a"
        )
    return commit


def _unpack(file: Path, given: str, folder: Path) -> None:
    try:
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"--against {given} cannot be unpacked ({error})", "give the path of a wheel") from error


def _git(root: Path, *arguments: str) -> str | None:
    done = _run_git(root, *arguments)
    return done.stdout.strip() if done is not None and done.returncode == 0 else None


def _run_git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str] | None":
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return None

"""A git repository with a made-up `optsd` that a worker can drive: seconds to make, no torch in it."""

import subprocess
from pathlib import Path

FILES = {
    "optsd/__init__.py": "",
    "optsd/measure/__init__.py": "",
    "optsd/measure/seeds.py": "def fix_seeds(): pass\n",
    "optsd/errors.py": "class Unsupported(Exception): pass\n",
    "optsd/records.py": "class Workload:\n    def __init__(self, **known): self.__dict__.update(known)\n",
    "optsd/measure/run.py": (
        "import time\n\n"
        "def timing_prompts(model, count): return ['a'] * count\n\n"
        "def run_batch(pipe, workload, prompts):\n"
        "    end = time.perf_counter() + pipe.seconds\n"
        "    while time.perf_counter() < end: pass\n"
    ),
}

MODELS = """
print("what libraries print is no answer")

class Pipe:
    class device: type = "cpu"
    seconds = {seconds}

class Patch: touched = ("unet",)

def build(model, variant, device, dtype):
    {before}
    return Pipe(), Patch()
"""


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def write(folder: Path, seconds: float = 0.002, before: str = "pass", without: str = "") -> Path:
    """A build whose batch takes so long. `before` is run before a variant is built; one file may be left out."""
    for name, text in {**FILES, "optsd/models.py": MODELS.format(seconds=seconds, before=before)}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if without:
        (folder / without).unlink()
    return folder


def repository(folder: Path, **build: object) -> Path:
    """The same, committed on `main`."""
    write(folder, **build)  # type: ignore[arg-type]
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a build")
    return folder

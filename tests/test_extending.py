"""The worked examples of docs/extending.md, applied to a copy of this repository and run there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRIED = """
import json
from unittest import mock
import numpy as np, optsd, torch
from optsd.models import check, published
from optsd.quality import measure, metrics, pixels
from optsd.testing import TechniqueContract
from optsd.variants import parse

class Contract(TechniqueContract):
    technique = parse("hardswish").steps[0]

contract, pipe = Contract(), lambda: optsd.load("shapes", "cpu", "float32")
contract.test_it_keeps_the_protocol()
contract.test_it_touches_what_is_there_and_proves_it(pipe, contract.drawn)
made = pipe()
plain = contract.drawn(made)
patch = optsd.apply(made, "flash+hardswish")
drawn, proof = contract.drawn(made), patch.proof
patch.undo()
assert (contract.drawn(made) == plain).all()

rng = np.random.default_rng(0)
colourful = rng.integers(0, 256, (4, 64, 64, 3), np.uint8)
faded, grey = colourful // 2, colourful[0, :, :, :1].repeat(3, -1)
features = lambda images: (rng.normal(size=(len(images), 8)).astype(np.float32),) * 2
networks = mock.Mock(suffix="_shapes", features=features)
judge = measure.Judge(colourful, ["a"] * 4, optsd.errors.BadInput("no", "reference"), networks)
with mock.patch.object(measure, "_try", lambda compute: optsd.errors.BadInput("no", "network")):
    found = {row.metric: row.value for row in judge.measure("faded", faded)}

with torch.device("meta"):
    parameters = sum(weight.numel() for weight in published.BUILDERS["bk-sdm-small"]().unet.parameters())
print(json.dumps({
    "loss": float(abs(drawn - plain).mean()), "calls": proof["hard_calls"], "grey": pixels.colourfulness(grey),
    "kept": found["colourfulness_retention"], "of noise": pixels.colourfulness(colourful[0]),
    "parameters": parameters, "side": check("bk-sdm-small-random").size[0],
}))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's code with every example of the page in it."""
    copy = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "optsd", copy / "optsd", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (copy / "optsd/models/shapes/weights").symlink_to(ROOT / "optsd/models/shapes/weights")
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    for place, text in re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (copy / place).parent.mkdir(parents=True, exist_ok=True)
        (copy / place).write_text(text, encoding="utf-8")
    for change in re.findall(r"^```diff\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        applied = subprocess.run(
            ["git", "apply", "-"],
            cwd=copy, input=change, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert applied.returncode == 0, applied.stderr + change
    return copy


def test_a_technique_a_metric_and_a_model(extended: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TRIED], cwd=extended, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loss"] > 0.1  # it is on
    assert found["calls"] > 0
    assert found["grey"] == 0 < 100 < found["of noise"]
    assert found["kept"] == pytest.approx(0.5, abs=0.01)
    assert (found["parameters"], found["side"]) == (482_346_884, 512)


def test_a_claim(extended: Path) -> None:
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    shown = re.search(r"claims check mine --no-bounds\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    command = [sys.executable, "-m", "optsd.cli", "claims", "check", "mine", "--no-bounds"]
    done = subprocess.run(command, cwd=extended, text=True, capture_output=True, check=False)
    assert shown
    assert shown[1].split() == done.stdout.partition("3 claims:")[0].split(), done.stdout + done.stderr

"""A model that draws NaN fails every bench by name; its record says so, and not whose machine it was."""

import json
import os
import shutil
from pathlib import Path

import pytest
from benched import run_pytest
from safetensors.numpy import load_file, save_file

from optsd.errors import OptsdError
from optsd.generate import main as generate


@pytest.fixture
def broken(untrained_folder: Path, tmp_path: Path) -> Path:
    """A model whose VAE gives NaN: its pictures are black where they are written as PNG."""
    folder = Path(shutil.copytree(untrained_folder, tmp_path / "broken"))
    file = next((folder / "vae").glob("*.safetensors"))
    weights = load_file(file)
    weights["post_quant_conv.bias"] = weights["post_quant_conv.bias"] * float("nan")
    save_file(weights, file)
    return folder


def test_it_fails_in_its_warm_up_by_name(broken: Path, tmp_path: Path) -> None:
    benches = ("bench/test_size.py", "bench/test_speed.py", "--variant", "sdpa", "--preset", "smoke")
    where = ("--model", "~/broken/", "--output", tmp_path / "out")
    home = os.environ | {"HOME": str(tmp_path), "USER": tmp_path.parent.name}
    done = run_pytest("-p", "no:cacheprovider", *benches, *where, env=home)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "4 failed" in done.stdout
    text = (tmp_path / "out" / "results.json").read_text()
    results = json.loads(text)
    reasons = {(row["variant"], row["stage"]): row["reason"] for row in results["failures"]}
    assert set(reasons) == {(name, stage) for name in ("baseline", "sdpa") for stage in ("test_size", "test_speed")}
    for (variant, stage), reason in reasons.items():
        name = variant if stage == "test_size" else "baseline"
        assert reason.startswith(f"{name} draws no pictures: they are NaN or infinite; use --dtype float32")
    assert results["workload"]["model"].startswith("broken@")
    page = (tmp_path / "out" / "index.html").read_text()
    for place in (str(tmp_path), tmp_path.parent.name):
        assert place not in text
        assert place not in page


def test_nothing_is_drawn_with_it(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(OptsdError, match="int8 draws no pictures: they are NaN"):
        generate(["a circle", "--model", str(broken), "--steps", "1", "--variant", "int8", "--output", str(tmp_path)])
    assert not list(tmp_path.glob("*.png"))

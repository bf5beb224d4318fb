"""The quality benches: their options, and a whole run on a model with random weights."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from benched import run_pytest

from conftest_plugins import quality
from conftest_plugins.options import OUTPUT, VARIANTS
from conftest_plugins.quality import image_count
from optsd.errors import BadInput
from optsd.files import without_user


def _run(*options: object) -> subprocess.CompletedProcess:
    return run_pytest("bench", "-p", "no:cacheprovider", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds 0 is too small; give 1 or more"),
        (["--images", "1"], "--images 1 is no sample; give 2 to 1000"),
        (["--images", "1001"], "--images 1001 is no sample; give 2 to 1000"),
        (["--images", "5001", "--model", "sd15", "--prompts", "mlperf"], "--images 5001 is no sample; give 2 to 5000"),
        (["--prompts", "nobody"], "no prompt set 'nobody'; choose from standard, coco2017, coco2014, mlperf, parti"),
        (["--prompts", "parti"], "shapes cannot draw the prompts of parti; leave --prompts out, or choose a --model"),
        (["--quality", "95"], "--quality 95 is no share; give a number between 0 and 1, such as 0.95"),
        (["--quality", "0.98"], "128 pictures cannot show that 0.98 is kept; give --images 241 or more"),
        (["--quality", "0.9", "--model", "sd15-random"], "sd15-random has random weights: nothing can judge its pic"),
        (["--worst", "-1"], "--worst -1 is too small; give 0 or more"),
        (["--coco", "nowhere"], "--coco nowhere is no folder; give the path of a folder"),
        (["--reference", "nowhere"], "--reference nowhere is no folder; give the path of a folder"),
        (["--prompts", "nowhere.csv"], "nowhere.csv; give one prompt a line, JSON lines, a table"),
        (["--metric-weights", "nowhere"], "--metric-weights nowhere is no folder"),
        (["--ray", "auto"], "--ray needs Ray; pip install 'optsd[ray]'"),
    ],
)
def test_a_wrong_option_is_one_line(options: list[str], message: str) -> None:
    if "--ray" in options and importlib.util.find_spec("ray"):
        pytest.skip("Ray is installed")
    result = _run("-m", "quality", *options)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("images", "marks", "count"), [(None, "", 32), (None, "quality", 128), (7, "quality", 7), (None, "speed", 32)]
)
def test_quality_alone_has_time_for_more_images(monkeypatch, images: int | None, marks: str, count: int) -> None:
    monkeypatch.setattr(quality, "chosen_preset", lambda config: SimpleNamespace(images=images or 32))
    config = SimpleNamespace(getoption={"--images": images, "-m": marks}.get)
    assert image_count(config) == count


@pytest.mark.parametrize(
    ("pictures", "marks", "is_said"), [(500, ["quality"], True), (500, [], False), (4, ["quality"], False)]
)
def test_a_long_run_says_where_its_progress_is(monkeypatch, pictures: int, marks: list[str], is_said: bool) -> None:
    monkeypatch.setattr(quality, "image_count", lambda config: pictures)
    stash = {VARIANTS: ("baseline", "int8"), OUTPUT: Path("reports/now")}
    items = [SimpleNamespace(get_closest_marker=lambda name: name in marks or None)]
    said = quality.pytest_report_collectionfinish(SimpleNamespace(getoption=lambda name: 1, stash=stash), items)
    assert bool(said) == is_said
    assert not is_said or said.endswith("reports/now/progress.html")


@pytest.mark.slow
def test_workers_find_what_one_finds(untrained_folder: Path, tmp_path: Path, shared: Path, coco_captions: Path) -> None:
    """Two workers that share the work, one with a store of its own, and a cluster of Ray: the same results.

    The model is a stranger with random weights, so it is asked for COCO's prompts and judged by the standard networks.
    """
    options = [
        "-m",
        "quality",
        "--model",
        untrained_folder,
        "--size",
        64,
        "--steps",
        1,
        "--batch-size",
        2,
        "--images",
        6,
    ]
    options += ["--coco", shared / "coco", "--metric-weights", shared / "lpips", "--variant", "sdpa", "--device", "cpu"]
    results = {}
    for name, more in {
        "two": ["-n", 2, "--image-store", tmp_path / "shared"],
        "one": ["--image-store", tmp_path / "own"],
        **({"ray": ["--ray", "auto", "--image-store", tmp_path / "nodes"]} if importlib.util.find_spec("ray") else {}),
    }.items():
        done = _run(*options, *more, "--output", tmp_path / name)
        assert done.returncode == 0, done.stdout + done.stderr
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
    rows = {name: _rows(found) for name, found in results.items()}
    for name in results:
        assert rows[name] == rows["one"], name
    assert {metric for variant, metric in rows["one"] if variant == "sdpa"} >= {
        "lpips",
        "ssim",
        "psnr_db",
        "fid",
        "clip",
    }
    assert rows["one"]["sdpa", "ssim"]["value"] > 0.9
    assert "optsd coco fetch inception" in rows["one"]["sdpa", "fid"]["note"]
    pictures = [row for row in results["one"]["images"] if row["variant"] == "sdpa"]
    assert [row["index"] for row in pictures] == list(range(6))
    for row in pictures:
        assert len({(tmp_path / name / row["file"]).read_bytes() for name in results}) == 1
        assert row["prompt"].startswith("a ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "2"], "--ray and -n both share the work; take -n on one machine, --ray on many"),
        (["--device", "cuda:1"], "--ray gives each worker a GPU of its own, not cuda:1; write --device cuda"),
        (["-m", "audit"], "audits draw with a model that no node has; leave --ray out"),
    ],
)
def test_what_does_not_go_with_a_cluster_is_one_line(monkeypatch, options: list[str], message: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    given = {"--device": "auto", "-m": "quality"} | dict(zip(options[::2], options[1::2], strict=True))
    given["numprocesses"] = given.pop("-n", None)
    config = SimpleNamespace(getoption=lambda name, default=None: given.get(name, default))
    with pytest.raises(BadInput, match=f"^{re.escape(message)}$"):
        quality._check_ray(config)


@pytest.mark.slow
def test_without_prompts_nothing_is_measured_and_the_file_is_named(untrained_folder: Path, tmp_path: Path) -> None:
    options = ["-m", "quality", "--model", untrained_folder, "--size", 64, "--variant", "sdpa", "--device", "cpu"]
    options += ["--steps", 1, "--batch-size", 1]
    done = _run(*options, "--coco", tmp_path, "--output", tmp_path / "out", "-rs")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = _rows(json.loads((tmp_path / "out" / "results.json").read_text()))
    assert rows["sdpa", "fid"]["value"] is None
    assert f"there is no caption file {without_user(str(tmp_path))}" in rows["sdpa", "fid"]["note"]
    assert "optsd coco fetch captions" in rows["sdpa", "ssim"]["note"]


def _rows(results: dict) -> dict[tuple[str, str], dict]:
    return {(row["variant"], row["metric"]): row for row in results["measurements"]}

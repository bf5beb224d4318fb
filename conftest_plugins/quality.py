"""What the quality benches share: prompts, real pictures, networks and the store of images."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conftest_plugins.options import DEVICE, MODEL, OUTPUT, chosen_preset
from conftest_plugins.progress import Say
from conftest_plugins.results import Recorder
from optsd import models
from optsd.data import sets
from optsd.errors import BadInput
from optsd.files import check_writable, home, write_atomically
from optsd.records import Results, Workload
from optsd.workloads import at_least

if TYPE_CHECKING:
    from optsd.quality.pictures import Pictures
    from optsd.quality.session import Session

QUALITY_ALONE_IMAGES = 128
FEWEST_IMAGES = 2  # one image has no spread


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("optsd quality", "prompts, seeds, and where data and images lie")
    group.addoption("--seeds", type=int, default=1, help="images of each prompt, a seed each (default: %(default)s)")
    group.addoption("--worst", type=int, default=4, help="pictures that lost most, to be marked (default: %(default)s)")
    group.addoption(
        "--prompts",
        default="standard",
        metavar="SET",
        help=f"whose first --images prompts are drawn: {', '.join(sets.SETS)} (default: %(default)s); not for shapes",
    )
    group.addoption(
        "--coco",
        type=Path,
        metavar="FOLDER",
        help="holds annotations/captions_val2017.json, val2017/*.jpg and what --prompts needs "
        "(default: $OPTSD_HOME/coco)",
    )
    group.addoption(
        "--metric-weights",
        type=Path,
        metavar="FOLDER",
        help="looked into for Inception, AlexNet and CLIP before $OPTSD_HOME/weights and other programs' caches",
    )
    group.addoption(
        "--image-store",
        metavar="FOLDER|URL",
        help="images are taken from here when everything that made them is the same; a folder, or the URL of one that "
        "fsspec knows, such as s3://bucket/folder (default: $OPTSD_HOME/images)",
    )


@pytest.hookimpl(trylast=True)  # after the preset and the number of images were checked
def pytest_configure(config: pytest.Config) -> None:
    try:
        own = sets.find(config.getoption("--prompts"))
        if own.name != "standard" and config.getoption("--model") == "shapes":
            raise BadInput(f"shapes cannot draw the prompts of {own.name}", "leave --prompts out, or choose a --model")
        if not FEWEST_IMAGES <= image_count(config) <= own.count:
            raise BadInput(f"--images {image_count(config)} is no sample", f"give {FEWEST_IMAGES} to {own.count}")
        at_least("--seeds", config.getoption("--seeds"), 1)
        at_least("--worst", config.getoption("--worst"), 0)
        for option in ("--coco", "--metric-weights"):
            folder = config.getoption(option)
            if folder is not None and not folder.is_dir():
                raise BadInput(f"{option} {folder} is no folder", "give the path of a folder")
    except BadInput as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    config = session.config
    if config.option.collectonly or not any(item.get_closest_marker("quality") for item in session.items):
        return
    from optsd.quality.store import is_url

    try:
        folder = config.getoption("--image-store") or home() / "images"
        if not is_url(folder):
            check_writable(Path(folder), "--image-store")
    except BadInput as error:
        raise pytest.UsageError(str(error)) from None


def image_count(config: pytest.Config) -> int:
    """`--images`, or the preset's; a run of quality alone has time for more than a quick run of everything."""
    if config.getoption("--images") is None and config.getoption("-m") in ("quality", "audit"):
        return max(chosen_preset(config).images, QUALITY_ALONE_IMAGES)
    return chosen_preset(config).images


def worker_device(device: str, worker: str | None, count: int) -> str:
    """The GPU of an xdist worker (`gw0`, …): one each, in turn. Anything but plain `cuda` stays as it is."""
    if device != "cuda" or not worker or count < 2:
        return device
    return f"cuda:{int(worker.removeprefix('gw')) % count}"


@pytest.fixture(scope="session")
def quality(pytestconfig: pytest.Config, workload: Workload, progress: Say) -> "Session | BadInput":
    """The session's prompts, reference, networks and images; or why there are no prompts."""
    from optsd.quality.generate import fingerprint
    from optsd.quality.session import Session, setting
    from optsd.quality.store import Store

    option = pytestconfig.getoption
    store = Store(option("--image-store") or home() / "images")
    try:
        chosen = setting(
            workload,
            image_count(pytestconfig),
            option("--coco"),
            option("--metric-weights"),
            store,
            option("--prompts"),
        )
    except BadInput as error:
        return error
    # Of the model as it is before any variant is applied.
    weights = fingerprint(models.load(pytestconfig.stash[MODEL], "cpu", workload.dtype, text_to_image=True))
    baseline = builder(pytestconfig, workload, "baseline")
    return Session(workload, chosen, weights, store, baseline, option("--seeds"), progress)


def builder(config: pytest.Config, workload: Workload, variant: str) -> Callable[[], Any]:
    """What builds a variant's pipeline, should images of it be missing."""

    def build() -> Any:
        import torch

        device = worker_device(config.stash[DEVICE], os.environ.get("PYTEST_XDIST_WORKER"), torch.cuda.device_count())
        return models.build(config.stash[MODEL], variant, device, workload.dtype)[0]

    return build


def record(config: pytest.Config, recorder: Recorder, quality: "Session", variant: str, images: "Pictures") -> None:
    """Add a variant's figures and pictures to the results, and write its pictures; `worst` ranks those that lost most.

    A row's `index` counts through all prompts of the first seed, then of the next: as the figures' samples do.
    """
    from optsd.quality.store import to_png

    texts, workload = quality.setting.texts, quality.workload
    worst = quality.judge.worst(images, config.getoption("--worst"))
    ranks = {row: {"worst": rank, "loss": loss} for rank, (row, loss) in enumerate(worst, start=1)}
    rows = []
    for index, image in enumerate(images):
        seed, prompt = divmod(index, len(texts))
        file = f"images/{variant}/{index:04d}.png"
        write_atomically(config.stash[OUTPUT] / file, to_png(image))
        row = {"variant": variant, "prompt": texts[prompt], "seed": workload.seed + seed, "index": index, "file": file}
        rows.append(row | ranks.get(index, {}))
    figures = tuple(quality.judge.measure(variant, images))
    # In one go: every addition to the recorder rewrites results.json.
    recorder.merge(Results(machine={}, workload=workload, measurements=figures, images=tuple(rows)))

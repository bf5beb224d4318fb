"""What the quality benches share: prompts, real pictures, networks and the store of images."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from optsd import models
from optsd.data import prompt_files, reference_files, sets
from optsd.data.prompts import Prompt
from optsd.errors import BadInput
from optsd.files import check_writable, home, plain_name, write_atomically
from optsd.metrics import metric
from optsd.models import shapes
from optsd.records import Measurement, Results, Workload
from optsd.report import course
from optsd.subjects import Folder
from optsd.workloads import at_least

from .options import DEVICE, MODEL, OUTPUT, PROMPTS, REFERENCE, SUBJECTS, VARIANTS, chosen_preset
from .pipelines import FOLDER_TELLS, free_memory
from .progress import Say
from .results import Recorder

if TYPE_CHECKING:
    from optsd.quality.pictures import Pictures
    from optsd.quality.session import Session

QUALITY_ALONE_IMAGES = 128
OWN_PROMPTS = pytest.StashKey[Sequence[Prompt]]()
NOT_OF_FOLDERS = ("latency_s", "speedup", "peak_memory_bytes", "memory_reduction", "weight_bytes", "disk_bytes")
MANY_PICTURES = 1000
"""Of all variants together: from so many on a run says, before it begins, where its progress can be seen."""
FEWEST_IMAGES = 2  # one image has no spread


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("optsd quality", "prompts, seeds, and where data and images lie")
    group.addoption("--seeds", type=int, default=1, help="images of each prompt, a seed each (default: %(default)s)")
    group.addoption("--worst", type=int, default=4, help="pictures that lost most, to be marked (default: %(default)s)")
    group.addoption(
        "--prompts",
        default="standard",
        metavar="SET|FILE",
        help=f"whose first --images prompts are drawn: {', '.join(sets.SETS)} (default: %(default)s; not for shapes), "
        "or a file: one prompt a line, JSON lines, a table with a header, or COCO's captions",
    )
    group.addoption(
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="of pictures that fid and kid compare with (default: the photographs that belong to the prompts)",
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
    group.addoption(
        "--ray",
        metavar="auto|ADDRESS",
        help="draw and read pictures on a cluster of Ray: the one at ADDRESS, or for auto that of $RAY_ADDRESS, the "
        "one that runs here, or a new one of this machine (docs/quality.md)",
    )


@pytest.hookimpl(trylast=True)  # after the preset and the number of images were checked
def pytest_configure(config: pytest.Config) -> None:
    try:
        most = _read_prompts(config)
        if most < FEWEST_IMAGES:
            raise BadInput(f"--prompts {config.getoption('--prompts')} has {most} prompt", "quality needs 2 or more")
        if not FEWEST_IMAGES <= image_count(config) <= most:
            raise BadInput(f"--images {image_count(config)} is no sample", f"give {FEWEST_IMAGES} to {most}")
        at_least("--seeds", config.getoption("--seeds"), 1)
        at_least("--worst", config.getoption("--worst"), 0)
        for option in ("--coco", "--metric-weights", "--reference"):
            folder = config.getoption(option)
            if folder is not None and not folder.is_dir():
                raise BadInput(f"{option} {folder} is no folder", "give the path of a folder")
        if folder := config.getoption("--reference"):
            config.stash[REFERENCE] = reference_files.identity(folder)
        if config.getoption("--ray") is not None:
            _check_ray(config)
    except BadInput as error:
        raise pytest.UsageError(str(error)) from None


def _check_ray(config: pytest.Config) -> None:
    if importlib.util.find_spec("ray") is None:
        raise BadInput("--ray needs Ray", "pip install 'optsd[ray]'")
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        raise BadInput("--ray and -n both share the work", "take -n on one machine, --ray on many")
    if config.getoption("-m") == "audit":
        raise BadInput("audits draw with a model that no node has", "leave --ray out")
    if ":" in (device := config.getoption("--device")):
        raise BadInput(f"--ray gives each worker a GPU of its own, not {device}", "write --device cuda")


def _read_prompts(config: pytest.Config) -> int:
    """How many there are: of a set of the field, or in a file, which are read now. Raises BadInput, NotFound."""
    given = config.getoption("--prompts")
    file = config.invocation_params.dir / given
    if given not in sets.SETS and (file.is_file() or "/" in given or "." in given):
        rows = prompt_files.read(file)
        config.stash[OWN_PROMPTS], config.stash[PROMPTS] = prompt_files.prompts(rows), prompt_files.identity(rows)
        return len(rows)
    own = sets.find(given)
    if own.name != "standard":
        config.stash[PROMPTS] = own.name
        if (model := config.getoption("--model")) in shapes.PIPELINES:
            raise BadInput(f"{model} cannot draw the prompts of {own.name}", "leave --prompts out, or choose a --model")
    return own.count


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
        if address := config.getoption("--ray"):
            from optsd.quality import cluster

            connection = ExitStack()
            connection.enter_context(cluster.connected(address))
            config.add_cleanup(connection.close)
    except BadInput as error:
        raise pytest.UsageError(str(error)) from None


def _extent(config: pytest.Config) -> tuple[int, int]:
    """How many variants are judged, and by how many pictures each."""
    return len(config.stash[VARIANTS]), image_count(config) * config.getoption("--seeds")


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    variants, pictures = _extent(config)
    if variants * pictures < MANY_PICTURES or not any(item.get_closest_marker("quality") for item in items):
        return None
    return f"progress, while pictures are drawn and judged: {config.stash[OUTPUT] / course.PAGE}"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        course.remove(session.config.stash[OUTPUT])


def image_count(config: pytest.Config) -> int:
    """`--images`, or the preset's; a run of quality alone has time for more than a quick run of everything.

    Of one's own prompts no more than there are.
    """
    count = chosen_preset(config).images
    if config.getoption("--images") is not None:
        return count
    if config.getoption("-m") in ("quality", "audit"):
        count = max(count, QUALITY_ALONE_IMAGES)
    stash = getattr(config, "stash", {})
    return min(count, len(stash[OWN_PROMPTS])) if OWN_PROMPTS in stash else count


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
            pytestconfig.stash.get(OWN_PROMPTS, ()),
            option("--reference"),
            pytestconfig.stash[DEVICE],
        )
    except BadInput as error:
        return error
    # Of the model as it is before any variant is applied.
    weights = fingerprint(models.load(pytestconfig.stash[MODEL], "cpu", workload.dtype, text_to_image=True))
    device, say = pytestconfig.stash[DEVICE], progress
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    store.watch = course.Course(pytestconfig.stash[OUTPUT], worker, *_extent(pytestconfig)).told
    if option("--ray"):
        from optsd.quality import cluster

        store = cluster.ClusterStore(store.folder, store.watch, device=workload.device, say=progress)
        say = cluster.silent
    baseline = builder(pytestconfig, workload, "baseline", weights)
    return Session(workload, chosen, weights, store, baseline, option("--seeds"), say, device)


def builder(config: pytest.Config, workload: Workload, variant: str, weights: str) -> Callable[[], Any]:
    """What builds a variant's pipeline, should images of it be missing: here, or on a node of a cluster."""
    if config.getoption("--ray"):
        from optsd.quality import cluster

        return partial(cluster.build, config.stash[MODEL], variant, workload.device, workload.dtype, weights)
    return partial(_build, config.stash[MODEL], variant, config.stash[DEVICE], workload.dtype)


def _build(*what: str) -> Any:
    return models.build(*what)[0]


@pytest.fixture(scope="session")
def build_afresh(pytestconfig: pytest.Config, workload: Workload) -> Callable[[str], Any]:
    """Build a variant's pipeline here, as the quality benches have it."""
    option = pytestconfig.stash
    return lambda variant: _build(option[MODEL], variant, option[DEVICE], workload.dtype)


@pytest.fixture
def drawn(
    pytestconfig: pytest.Config, quality: "Session | BadInput", invite, tmp_path_factory, progress: Say
) -> Callable[[str], "Pictures"]:
    """The pictures of a variant or a subject: seeds × prompts. Raises what the one who draws them raises."""

    def of(variant: str) -> "Pictures":
        from optsd.quality import visitors

        if isinstance(quality, BadInput):
            raise quality
        if variant not in pytestconfig.stash[SUBJECTS]:
            return quality.images(variant, builder(pytestconfig, quality.workload, variant, quality.weights))
        subject, workload = pytestconfig.stash[SUBJECTS][variant], quality.workload
        if isinstance(subject, Folder):
            return visitors.found(subject, workload, quality.setting.texts, quality.seeds)
        guest, folder = invite(variant), tmp_path_factory.mktemp("pictures")
        try:
            return visitors.draw(guest, workload, quality.setting.texts, quality.seeds, folder, progress)
        finally:
            guest.close()

    return of


@pytest.fixture
def record_quality(
    pytestconfig: pytest.Config, recorder: Recorder, quality: "Session"
) -> "Callable[[str, Pictures], None]":
    """Add a variant's figures and pictures to the results."""

    def add(variant: str, images: "Pictures") -> None:
        free_memory()
        record(pytestconfig, recorder, quality, variant, images)

    return add


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
        file = f"images/{plain_name(variant)}/{index:04d}.png"
        write_atomically(config.stash[OUTPUT] / file, to_png(image))
        row = {"variant": variant, "prompt": texts[prompt], "seed": workload.seed + seed, "index": index, "file": file}
        rows.append(row | ranks.get(index, {}))
    figures = tuple(quality.judge.measure(variant, images))
    if isinstance(config.stash[SUBJECTS].get(variant), Folder):
        told = FOLDER_TELLS.format(variant)
        figures += tuple(Measurement(variant, name, metric(name).unit, None, note=told) for name in NOT_OF_FOLDERS)
    # In one go: every addition to the recorder rewrites results.json.
    recorder.merge(Results(machine={}, workload=workload, measurements=figures, images=tuple(rows)))

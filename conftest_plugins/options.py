"""The options of a run: which model, which variants, which workload. Imports no torch until tests run."""

import contextlib
import importlib.util
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from optsd import models, subjects, workloads
from optsd.errors import BadInput, OptsdError
from optsd.estimate.devices import DEVICES, find
from optsd.files import check_writable
from optsd.records import Workload
from optsd.report import folders
from optsd.subjects import Subject
from optsd.tune import answer
from optsd.variants import GUIDE_VARIANTS, chosen, parse

if TYPE_CHECKING:
    from optsd.measure.environment import Watch

VARIANTS = pytest.StashKey[tuple[str, ...]]()
"""The names of all that is benched, the baseline first and the subjects last."""
SUBJECTS = pytest.StashKey[dict[str, Subject]]()
WORKLOAD = pytest.StashKey[Workload]()
DEVICE = pytest.StashKey[str]()
"""With the number of the GPU, which the workload lacks: what was measured on one is comparable with another alike."""
WATCH: pytest.StashKey["Watch"] = pytest.StashKey()
"""Sees what else the machine does while benches run."""
OUTPUT = pytest.StashKey[Path]()
"""This run's folder. It is made when there is something to put into it."""
PROMPTS, REFERENCE = pytest.StashKey[str](), pytest.StashKey[str]()
"""What stands for them in the workload, where they are not the standard ones."""
MODEL = pytest.StashKey[str]()  # where it is; records have its name
BENCHES = Path(__file__).parents[1] / "bench"
MARKERS = {
    "speed": "seconds an image, speedup, seconds by stage",
    "memory": "peak memory, in a pass of its own",
    "size": "bytes of weights, in memory and on disk",
    "quality": "image quality on the standard prompts",
    "layers": "SD v1.5's layer shapes, one by one, in each kernel",
    "unet": "one UNet call of each variant, beside OpenVINO's",
    "peers": "whole pictures of each variant, beside OpenVINO's and torch.compile's",
    "energy": "joules an image, where the chip counts them",
    "audit": "what each quality metric says of pictures that are wrong in a known way",
    "against": "this build in turn with another; asked for with --against",
    "estimate": "what could be at best; asked for with --device estimate",
    "claims": "the guide's claims, judged",
}
BY_NAME = ("layers", "unet", "peers", "energy", "audit")
"""Of benches that measure parts, other programs and the judges, or take long: they run where `-m` names them."""
NEEDED = ("jinja2", "matplotlib", "pytest_benchmark", "pytest_timeout", "scipy")
_COLLECTED = pytest.StashKey[dict[pytest.Item, int]]()
_OUTPUT_OF_THE_RUN = "optsd_output"
_LATEST = f"reports/{folders.LATEST}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("optsd", "what is benched, and on what")
    group.addoption(
        "--model",
        default="shapes",
        help="shapes or shapes-dit (they ship with the project), sd15, an architecture with random weights for speed, "
        "memory and size only (sd15-random, sd21-random, sdxl-random, sd35-medium-random, flux-random), a diffusers "
        "folder, a .safetensors checkpoint, or a hub id (default: %(default)s)",
    )
    group.addoption(
        "--variant",
        action="append",
        metavar="NAME[,NAME]",
        help="bench these and the baseline; join techniques with +; some take a parameter (deepcache:3), int8 and int4 "
        "rules for layers ('int8:up_blocks.*=int4') or all, for all networks (int8:all); tuned is what optsd tune has "
        "found here (default: "
        f"{', '.join(GUIDE_VARIANTS)})",
    )
    group.addoption(
        "--subject",
        action="append",
        default=[],
        metavar="NAME=MODULE:CALLABLE|NAME=FOLDER",
        help="bench beside them what is no variant: draw(prompts, seeds, workload), which gives pictures, or a folder "
        "of pictures with a manifest; repeat it for more (docs/anybody.md)",
    )
    group.addoption(
        "--subject-timeout",
        type=float,
        default=1800,
        metavar="SECONDS",
        help="of a callable: for loading, and for each batch; then its process is ended (default: %(default)s)",
    )
    group.addoption(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:N (default: CUDA where there is one); estimate or estimate:NAME runs nothing and "
        f"says what {', '.join(DEVICES)} could do at best",
    )
    group.addoption(
        "--dtype", default="auto", help="float32, float16, bfloat16 (default: float16 on CUDA, float32 on a CPU)"
    )
    group.addoption(
        "--preset",
        choices=sorted(workloads.PRESETS),
        help="smoke: does it run; quick: the shipped models' default; guide: 50 steps, guidance 7.5, 512x512, batch 4, "
        "1,000 images, every other model's default. The options below change a part of it",
    )
    group.addoption("--steps", type=int, help="denoising steps")
    group.addoption("--guidance", type=float, help="classifier-free guidance scale; 1 turns it off")
    group.addoption("--size", help="pixels: 512, or 768x512 for width x height")
    group.addoption("--batch-size", type=int, help="pictures in one call")
    group.addoption("--rounds", type=int, help="timed calls of each variant, interleaved with the baseline's")
    group.addoption("--images", type=int, help="pictures for the quality metrics")
    group.addoption("--seed", type=int, default=42, help="of the pictures' noise (default: %(default)s)")
    group.addoption(
        "--output",
        default=_LATEST,
        metavar="FOLDER",
        help="of results and pictures; one that holds no other run's (default: a new one under reports/, which "
        "%(default)s leads to)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check all that can be checked before anything is collected, imported or loaded."""
    option = config.getoption
    for name, what in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {what}")
    with _usage_errors():
        if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
            raise BadInput(f"the benches need {', '.join(lacking)}", "install them with: pip install 'optsd[bench]'")
        if (option("count", None) or 1) > 1:  # pytest-repeat
            raise BadInput("--count gives every bench two figures, none of which holds", "use --rounds or --repeat")
        preset = chosen_preset(config)
        workloads.at_least("--steps", preset.steps, 1)
        workloads.at_least("--guidance", preset.guidance, 0)
        workloads.at_least("--batch-size", preset.batch_size, 1)
        workloads.at_least("--rounds", preset.rounds, 1)
        workloads.at_least("--images", preset.images, 1)
        workloads.check_seed(option("--seed"))
        if not option("--subject-timeout") > 0:
            raise BadInput(f"--subject-timeout {option('--subject-timeout'):g} is no time", "give seconds above 0")
        config.stash[SUBJECTS] = subjects.parse_all(option("--subject"), config.invocation_params.dir)
        expected = config.rootpath / option("--expected")
        given = answer.resolved(option("--variant"), option("--model"), option("--device"), option("--dtype"), expected)
        config.stash[VARIANTS] = (*_variants(given), *config.stash[SUBJECTS])
        config.stash[OUTPUT] = _output(config)
        _check_device_name(option("--device"))
        workloads.dtype_name(option("--dtype"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without those `BY_NAME`, but where they are named."""
    config.stash[_COLLECTED] = {item: number for number, item in enumerate(items)}
    named = set(re.findall(r"\w+", config.getoption("-m") or ""))
    if unasked := [item for item in items if _is_bench(item) and _unnamed(item, named)]:
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """One variant after the other, as each is compared with what the baseline left, whoever has shuffled them."""
    collected, order = session.config.stash.get(_COLLECTED, {}), [*session.config.stash[VARIANTS], None]

    def place(item: pytest.Item) -> tuple[bool, int, int]:
        return item.get_closest_marker("claims") is not None, order.index(variant_of(item)), collected.get(item, 0)

    ordered = iter(sorted(filter(_is_bench, session.items), key=place))
    session.items[:] = [next(ordered) if _is_bench(item) else item for item in session.items]


def _is_bench(item: pytest.Item) -> bool:
    return item.path.parent == BENCHES


def _unnamed(item: pytest.Item, named: set[str]) -> bool:
    return any(item.get_closest_marker(name) and name not in named for name in BY_NAME)


def variant_of(item: pytest.Item) -> str | None:
    """The variant or subject that a bench is about; None for what is about none, or about all."""
    callspec = getattr(item, "callspec", None)
    variant = callspec.params.get("variant") if callspec else None
    return variant if isinstance(variant, str) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[object]) -> None:
    """Several workers compute at once: a thread that waits for another leaves the core to them, and does not spin."""
    if len(specs) > 1:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """xdist: tell a worker where its run writes."""
    node.workerinput[_OUTPUT_OF_THE_RUN] = str(node.config.stash[OUTPUT])


def _output(config: pytest.Config) -> Path:
    """A folder in which no run is lost to this one; a worker's is that of the run."""
    if hasattr(config, "workerinput"):
        return Path(config.workerinput[_OUTPUT_OF_THE_RUN])
    latest, given = config.rootpath / _LATEST, config.rootpath / config.getoption("--output")
    if Path(os.path.normpath(given)) == latest:  # as it is spelled: where the link leads is another run's
        folder = folders.new_run(latest.parent)
        # --junitxml=reports/latest/… and --benchmark-json=…: the latest run will be this one.
        for name in ("xmlpath", "benchmark_json"):
            named = getattr(config.option, name, None) or "."
            if hasattr(named, "write"):  # pytest-benchmark before 5.3 has opened it
                continue
            given = config.invocation_params.dir / named
            file = Path(os.path.normpath(given))
            if file.is_relative_to(latest):
                setattr(config.option, name, str(folder / file.relative_to(latest)))
        return folder
    folder = given.resolve()
    if (folder / "results.json").exists() and not config.option.collectonly:
        raise BadInput(f"--output {config.getoption('--output')} holds another run", "name a new folder, or remove it")
    return folder


def chosen_preset(config: pytest.Config) -> workloads.Preset:
    """The preset, with the parts of it that other options replace."""
    option = config.getoption
    preset = workloads.PRESETS[option("--preset") or models.default_preset(option("--model"))]
    size = option("--size")

    def either(name: str, default):
        given = option(name)
        return default if given is None else given

    return workloads.Preset(
        steps=either("--steps", preset.steps),
        guidance=either("--guidance", preset.guidance),
        size=preset.size if size is None else workloads.parse_size(size),
        batch_size=either("--batch-size", preset.batch_size),
        rounds=either("--rounds", preset.rounds),
        images=either("--images", preset.images),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        # Session scope makes pytest run all tests of one variant before the next: it is built once.
        variants = metafunc.config.stash[VARIANTS]
        metafunc.parametrize("variant", variants, scope="session")


def pytest_report_header(config: pytest.Config) -> str:
    preset = chosen_preset(config)
    size = "the model's size" if preset.size is None else "x".join(map(str, preset.size))
    return (
        f"optsd: model {config.getoption('--model')}, {_counted(config)}, {preset.steps} steps, "
        f"guidance {preset.guidance:g}, {size}, batch {preset.batch_size}"
    )


def _counted(config: pytest.Config) -> str:
    own = len(config.stash[SUBJECTS])
    variants = f"{len(config.stash[VARIANTS]) - own} variants"
    return f"{variants} and {own} subject{'s' * (own > 1)}" if own else variants


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """When benches are about to run: find the model and the device, so that a wrong one is said before it is loaded."""
    needs_model = any({"variant", "workload"} & {*getattr(item, "fixturenames", ())} for item in session.items)
    if session.config.option.collectonly or not needs_model:
        return
    resolve(session.config)
    if not hasattr(session.config, "workerinput"):
        with _usage_errors():  # two techniques of one slot, deepcache:0: not after the baseline was measured
            for name in session.config.stash[VARIANTS]:
                if name not in session.config.stash[SUBJECTS]:
                    parse(name)
    # Who cancels a job ends it so: what was measured is kept, and what was started is ended, as on Ctrl-C.
    with contextlib.suppress(ValueError):  # in another thread than the first
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        session.config.add_cleanup(partial(_handle_sigterm, before))


def _handle_sigterm(how: Any) -> None:
    signal.signal(signal.SIGTERM, how)


def resolve(config: pytest.Config) -> Workload:
    """The workload with nothing left open. Imports torch, to see which devices there are; loads no model."""
    if WORKLOAD not in config.stash:
        option = config.getoption
        if not hasattr(config, "workerinput"):
            with _usage_errors():
                folder = config.stash[OUTPUT]
                is_of_its_own = folder.parent == config.rootpath / Path(_LATEST).parent  # made with its first figure
                check_writable(folder.parent if is_of_its_own else folder, "--output")
        if estimated := estimated_device(config):
            from optsd.estimate.architectures import check

            with _usage_errors():
                source = check(option("--model"))
            kind = device = f"estimate:{estimated}"
            standard = "float16" if find(estimated).kind == "cuda" else "float32"
            given = workloads.dtype_name(option("--dtype"))
            dtype = standard if given == "auto" else given
        else:
            with _usage_errors():
                source = models.check(option("--model"))
                found = models.resolve_device(option("--device"))
                dtype = str(models.resolve_dtype(option("--dtype"), found, source)).removeprefix("torch.")
            device, kind = worker_device(str(found)), found.type
        preset = chosen_preset(config)
        width, height = preset.size or source.size
        config.stash[DEVICE] = device
        config.stash[MODEL] = source.location
        config.stash[WORKLOAD] = Workload(
            model=source.name,
            device=kind,
            dtype=dtype,
            steps=preset.steps,
            guidance=preset.guidance,
            height=height,
            width=width,
            batch_size=preset.batch_size,
            seed=option("--seed"),
            prompts=config.stash.get(PROMPTS, ""),
            reference=config.stash.get(REFERENCE, ""),
        )
    return config.stash[WORKLOAD]


def worker_device(device: str) -> str:
    """The GPU of an xdist worker (`gw0`, …): one each, in turn. Anything but plain `cuda` stays as it is."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if device != "cuda" or not worker:
        return device
    import torch

    return f"cuda:{int(worker.removeprefix('gw')) % torch.cuda.device_count()}"


def estimated_device(config: pytest.Config) -> str:
    """`a100` for `--device estimate:a100`; empty where something is to be run."""
    kind, _, name = config.getoption("--device").partition(":")
    return find(name).name if kind == "estimate" else ""


def _variants(given: list[str] | None) -> tuple[str, ...]:
    """The chosen variants, canonical, each once, the baseline first."""
    return tuple(dict.fromkeys(["baseline", *chosen(given, GUIDE_VARIANTS)]))


def _check_device_name(device: str) -> None:
    kind, _, name = device.partition(":")
    if kind == "estimate":
        find(name)
        return
    try:
        workloads.device_name(device)
    except BadInput:
        raise BadInput(f"--device {device} is unknown", "use auto, cpu, cuda, cuda:N or estimate:NAME") from None


class _usage_errors:
    """Turn the library's one-line errors into pytest's: no traceback, exit status 4."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OptsdError):
            raise pytest.UsageError(str(error)) from None

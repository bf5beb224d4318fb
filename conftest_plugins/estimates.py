"""`--device estimate:a100`: no variant is run; what each could be at best is said in its place."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from optsd.errors import OptsdError, Unsupported
from optsd.estimate import Estimate, bounds, devices, estimate
from optsd.judge.expectations import Claims
from optsd.records import Results

from .options import DEVICE, MODEL, WORKLOAD, estimated_device, resolve
from .progress import Say

_ESTIMATES = pytest.StashKey[dict[str, Estimate]]()


@pytest.hookimpl(trylast=True)  # wrong names have been refused by then
def pytest_configure(config: pytest.Config) -> None:
    if estimated_device(config) and config.getoption("--subject"):
        raise pytest.UsageError("--subject is measured, not estimated; leave it out, or choose a --device that runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Estimate, or run: never both."""
    estimating = bool(estimated_device(config))
    wanted = [item for item in items if bool(item.get_closest_marker("estimate")) == estimating]
    if unwanted := [item for item in items if item not in wanted]:
        config.hook.pytest_deselected(items=unwanted)
    items[:] = wanted


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """The baseline first, so that a model that cannot be estimated is said in one line."""
    config = session.config
    if estimated_device(config) and session.items and not config.option.collectonly:
        resolve(config)
        try:
            trace(config, "baseline")
        except OptsdError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.fixture
def estimates(pytestconfig: pytest.Config, progress: Say) -> Callable[[str], Estimate]:
    """Trace a variant; skips, with the reason, where that cannot be done."""

    def of(variant: str) -> Estimate:
        progress(f"{variant}: tracing")
        try:
            return trace(pytestconfig, variant)
        except Unsupported as error:
            pytest.skip(str(error))

    return of


def trace(config: pytest.Config, variant: str, device: str = "") -> Estimate:
    """The estimate of a variant for this run's workload on `device` (default: that of `--device`), made once."""
    known, target = config.stash.setdefault(_ESTIMATES, {}), devices.find(device or estimated_device(config))
    if variant not in known:
        workload = replace(config.stash[WORKLOAD], device=target.kind)
        known[variant] = estimate(config.stash[MODEL], variant, workload, target.name)
    return known[variant]


def beside_bounds(config: pytest.Config, claims: Claims, results: Results) -> Results:
    """The results, verdicts included, with what is possible at best: where a GPU with a data sheet ran or is meant."""
    name = estimated_device(config)
    if not name and config.stash.get(DEVICE, "").startswith("cuda"):
        import torch

        name = devices.recognize(torch.cuda.get_device_name(config.stash[DEVICE]))  # of a slice of a GPU: unknown
    if not name:
        return results
    return bounds.compare(claims, results, devices.find(name), lambda variant: trace(config, variant, name))

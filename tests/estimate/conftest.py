"""Estimates that several tests look at, made once."""

from functools import cache

import pytest
import small_pipelines

from optsd.estimate import Estimate, architectures, estimate
from optsd.records import Workload


@cache
def _guide(variant: str) -> Estimate:
    return estimate("sd15", variant, Workload("sd15", "cuda", "float16", 50, 7.5, 512, 512, 4), "a100")


@pytest.fixture(scope="session")
def eager() -> Estimate:
    """SD v1.5, the guide's workload, eager attention, on an A100."""
    return _guide("baseline")


@pytest.fixture(scope="session")
def fused() -> Estimate:
    """The same with fused attention."""
    return _guide("sdpa")


@pytest.fixture
def small(monkeypatch) -> Workload:
    """A tiny SD 1.5's, for a GPU: traced in a second."""
    monkeypatch.setitem(architectures.NAMED, "small", small_pipelines.CLASSES["SD 1.5"])
    return Workload("small", "cuda", "float16", 20, 5.0, 16, 16, 2)

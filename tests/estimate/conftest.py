"""Estimates that several tests look at, made once."""

from functools import cache

import pytest

from optsd.estimate import Estimate, estimate
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


@pytest.fixture(scope="session")
def small() -> Workload:
    """The shipped model's, for a GPU."""
    return Workload("shapes", "cuda", "float16", 20, 5.0, 64, 64, 2)

"""Rows as a collection has them, made from what matters to a test."""

from collections.abc import Callable
from typing import Any

import pytest

from optsd.claims import rows
from optsd.claims.schema import Claim

NOTHING = {
    "source": "A README", "url_or_path": "some/project@0123abc README.md, table", "technique": "none", "parameters": {},
    "model": "runwayml/stable-diffusion-v1-5", "device": "A100", "dtype": "float16", "steps": 50, "scheduler": "DDIM",
    "guidance": 7.5, "size": 512, "batch": 1, "images": None, "baseline": "not said", "metric": "latency per image",
    "value": 1.0, "unit": "s", "notes": "", "seen": "primary",
}  # fmt: skip


@pytest.fixture(scope="session")
def row() -> Callable[..., dict[str, Any]]:
    return lambda **changes: {**NOTHING, **changes}


@pytest.fixture(scope="session")
def claims_of(row) -> Callable[..., list[Claim]]:
    """The claims of some rows, labelled by their place: "1", "2", …"""
    from dataclasses import replace

    def made(*changes: dict[str, Any]) -> list[Claim]:
        return [replace(rows.from_row(row(**each)), label=str(n)) for n, each in enumerate(changes, 1)]

    return made

"""What a search has found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optsd.records import Technique, Workload
from optsd.tune.mixed import Proposed
from optsd.tune.request import Request
from optsd.tune.search import Search


@dataclass(frozen=True)
class Found:
    """`file` is the answer's; None where nothing was found that could be recorded. `search` has every reading."""

    request: Request
    workload: Workload
    machine: dict[str, Any]
    search: Search
    technique: Technique | None
    folder: Path
    file: Path | None
    took_s: float
    made: int  # readings that this call made; the others were kept from an earlier one
    by_layer: Proposed
    interrupted: bool = False

    @property
    def winner(self) -> str | None:
        return self.search.winner.name if self.search.winner else None

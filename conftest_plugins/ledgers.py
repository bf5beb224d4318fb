"""The ledgers of a run that is only traced: written beside its results, kept beside the machine's figures."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from optsd.files import read_text, write_atomically
from optsd.judge import places
from optsd.judge.expectations import machine_name
from optsd.ledger import file_name, folder_name
from optsd.records import Results, Verdict

from .options import OUTPUT


@pytest.fixture
def ledger_folder(pytestconfig: pytest.Config) -> Path:
    return ledgers_of_run(pytestconfig)


def ledgers_of_run(config: pytest.Config) -> Path:
    """Where a run writes the ledger of each variant."""
    return config.stash[OUTPUT] / "ledgers"


def with_places(config: pytest.Config, verdicts: Iterable[Verdict], results: Results) -> tuple[Verdict, ...]:
    """The verdicts, and of each figure without noise what changed it."""
    if not results.workload.is_estimate:
        return tuple(verdicts)
    return places.with_places(verdicts, _recorded(config, results), ledgers_of_run(config))


def record(config: pytest.Config, results: Results) -> None:
    """Keep the run's ledgers with what else `--expected-update` records."""
    if not results.workload.is_estimate:
        return
    for variant in results.variants:
        file = ledgers_of_run(config) / file_name(variant)
        if file.is_file():
            text = read_text(file, "run it again")
            write_atomically(_recorded(config, results) / file_name(variant), text)


def _recorded(config: pytest.Config, results: Results) -> Path:
    machine = machine_name(results.machine, results.workload.device)
    expected = config.rootpath / config.getoption("--expected")
    return expected / "ledgers" / machine / folder_name(results.workload)

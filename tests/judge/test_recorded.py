"""What this repository has recorded of itself, in expected/: whole, small, and of no particular machine."""

from pathlib import Path

from optsd.judge.places import read_ledger
from optsd.judge.reading import read_baselines
from optsd.ledger import FIGURES, file_name, folder_name
from optsd.variants import GUIDE_VARIANTS

EXPECTED = Path(__file__).parents[2] / "expected"
LEDGERS = EXPECTED / "ledgers" / "estimate-a100"
MOST_BYTES = 2**20


def test_what_the_gate_of_the_workflow_compares_with_is_whole():
    (run,) = read_baselines(EXPECTED / "baselines" / "estimate-a100.json").runs
    rows = {(row.variant, row.metric): row.value for row in run.rows}
    assert set(rows) == {(variant, figure) for variant in GUIDE_VARIANTS for figure in FIGURES}
    folder = LEDGERS / folder_name(run.workload)
    assert {file.name for file in folder.iterdir()} == {file_name(variant) for variant in GUIDE_VARIANTS}
    for variant in GUIDE_VARIANTS:
        figures = read_ledger(folder / file_name(variant)).figures()
        assert figures == {figure: rows[variant, figure] for figure in FIGURES}, variant


def test_it_is_small_and_says_nothing_of_the_machine_that_traced_it():
    (run,) = read_baselines(EXPECTED / "baselines" / "estimate-a100.json").runs
    assert (run.versions, run.load, run.kernels) == ({}, {}, {})
    assert set(run.identity) == {"machine", "torch", "diffusers", "transformers", "triton"}
    files = [file for name in ("baselines", "ledgers") for file in (EXPECTED / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    assert not [file for file in files if "0x" in file.read_text(encoding="utf-8")]

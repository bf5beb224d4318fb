"""README shows the committed run, as today's report tells it; and says when the code has moved on."""

import pytest

from bench.reference import PLACE, ROOT, RUN, SOURCES, text
from optsd.records import Results


def test_readme_has_the_table_of_the_committed_run() -> None:
    shown = PLACE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown, "README has lost the marks between which `make reference` writes"
    assert shown[0] == text(Results.read(RUN / "results.json")), "python -m bench.reference writes it anew"


def test_it_is_of_todays_code() -> None:
    from optsd.quality.generate import code_version

    if SOURCES.read_text(encoding="utf-8").strip() != code_version():
        pytest.skip("README's run is older than the code that draws and times: make reference")

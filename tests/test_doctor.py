import importlib.util
import re

import pytest

from optsd import doctor


@pytest.fixture(scope="module")
def told():
    """What the command prints where the terminal is 80 columns wide."""
    import contextlib
    import io

    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(shown):
        patched.setenv("COLUMNS", "80")
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        assert doctor.main([]) == 0
    return shown.getvalue()


def test_remedies_are_whole(told):
    """To be copied as they stand: with their brackets, uncut, on one line."""
    assert "pip install 'optsd[peers]'\n" in told
    assert "on a machine with CUDA: pip install 'optsd[flash-attn]'\n" in told
    assert "…" not in told


def test_figures_have_units_and_the_machine_has_words(told):
    assert re.search(r"^memory +[\d.]+\N{NO-BREAK SPACE}GiB$", told, re.MULTILINE)
    assert re.search(r"^cores +\d+ usable of \d+; torch takes \d+$", told, re.MULTILINE)
    for part in ("system", "CPU", "GPU", "native CPU kernels", "model shapes", "COCO's captions", "weights for LPIPS"):
        assert re.search(rf"^{part} +\S", told, re.MULTILINE), part

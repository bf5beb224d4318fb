"""What other libraries say of themselves is not said; what is on before is on after."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optsd.quiet import import_diffusers, without_progress_bars

TALK = """
import logging, warnings
logging.getLogger(__name__).warning("TALK of the log")
warnings.warn("TALK of a warning")
"""


def test_loading_says_nothing_with_a_talkative_quantizer_installed(tmp_path: Path) -> None:
    """diffusers imports torchao where it is installed, and speaks of what it does not find there."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text(TALK)
    metadata = tmp_path / "torchao-0.18.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.18.0\n")
    code = "import optsd, sys; optsd.load('shapes', 'cpu'); sys.exit('torchao' not in sys.modules)"
    path = os.pathsep.join((str(tmp_path), *sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_was_on_is_on_again(caplog: pytest.LogCaptureFixture) -> None:
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    import_diffusers()
    logging.getLogger("diffusers").warning("heard")
    assert "heard" in caplog.text or not logging.getLogger("diffusers").propagate
    assert logging.root.manager.disable == 0
    of_transformers.disable_progress_bar()  # the user's own choice
    try:
        with without_progress_bars():
            assert not of_diffusers.is_progress_bar_enabled()
        assert of_diffusers.is_progress_bar_enabled()
        assert not of_transformers.is_progress_bar_enabled()
    finally:
        of_transformers.enable_progress_bar()

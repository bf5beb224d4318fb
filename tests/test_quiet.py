"""What other libraries say of themselves is not said; what is on before is on after."""

import logging
import os
import subprocess
import sys
import warnings

import pytest

from optsd.quiet import import_diffusers, without_progress_bars, without_talk

TALK = """
import logging, sys, warnings

class Talk:
    heard = []

    def find_spec(self, name, path=None, target=None):
        if name in ("diffusers.models", "transformers.modeling_utils"):
            self.heard.append(name)
            logging.getLogger("torchao").warning("TALK of the log")
            warnings.warn("TALK of a warning")

sys.meta_path.insert(0, Talk())
import optsd
optsd.load("shapes", "cpu")
sys.exit(len(Talk.heard))
"""


def test_loading_says_nothing_where_what_is_imported_talks() -> None:
    """As the quantizers do that diffusers and transformers import where they are installed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", TALK], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


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


def test_others_are_silent_and_we_are_not(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    def warn(module: str) -> None:
        warnings.warn_explicit(f"from {module}", FutureWarning, f"{module}.py", 1, module=module, registry={})

    with without_talk("diffusers|torch"):
        logging.getLogger("diffusers").warning("TALK")
        for module in ("diffusers.pipelines.sdxl", "torch.nn", "optsd.patching"):
            warn(module)
        logging.getLogger("diffusers").error("what is wrong")
    warn("diffusers.pipelines.sdxl")
    assert "TALK" not in caplog.text
    assert [str(each.message) for each in recwarn] == ["from optsd.patching", "from diffusers.pipelines.sdxl"]
    assert logging.root.manager.disable == 0

"""Other libraries' talk while they are imported, while they load and where nothing is run: what is not ours to say is
not said.

Only that: what they warn of when a pipeline is patched or runs is shown, and so is every error.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def import_diffusers() -> None:
    """Import diffusers and transformers without what they and the quantizers that they look for say of themselves."""
    with without_talk():
        import transformers
        from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline

        _ = transformers.CLIPTextModel, AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline


@contextmanager
def without_talk(of: str = "") -> Iterator[None]:
    """No line of a log below an error, and no warning of the modules whose names begin so (a regular expression)."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=of)
            yield
    finally:
        logging.disable(before)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """diffusers and transformers show none while weights are read; each is set back as it was."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [each for each in (of_diffusers, of_transformers) if each.is_progress_bar_enabled()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()

"""How large are each variant's weights, in memory and as safetensors on disk?"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest_plugins.pipelines import Bench
    from conftest_plugins.results import Recorder


@pytest.mark.size
def test_size(built: "Bench", recorder: "Recorder") -> None:
    """Bytes of the UNet, the text encoder and the VAE together, and of the UNet alone; of what can draw."""
    built.draw()
    sizes = built.sizes()
    for name, figure in sizes.items():
        recorder.measure(built.variant, name, figure or None, note="" if figure else "it does not tell")
    if not any(sizes.values()):
        pytest.skip(f"{built.variant} does not tell how large its weights are")

"""How large are each variant's weights, in memory and as safetensors on disk?"""

import pytest

from conftest_plugins.pipelines import Built
from conftest_plugins.results import Recorder
from optsd.measure.size import disk_bytes, module_bytes, weight_bytes


@pytest.mark.size
def test_size(built: Built, recorder: Recorder) -> None:
    """Bytes of the UNet, the text encoder and the VAE together, and of the UNet alone; of what can draw."""
    from optsd.anatomy import denoiser  # which imports torch

    built.draw()
    recorder.measure(built.variant, "weight_bytes", weight_bytes(built.pipe))
    recorder.measure(built.variant, "unet_weight_bytes", module_bytes(denoiser(built.pipe)))
    on_disk = recorder.measure(built.variant, "disk_bytes", disk_bytes(built.pipe))
    assert on_disk.value

"""How good are each variant's images, and what did each image lose against the baseline's?"""

from typing import TYPE_CHECKING

import pytest

from optsd.errors import BadInput, Unsupported

if TYPE_CHECKING:
    from conftest_plugins.results import Recorder
    from optsd.quality.witness import Witness

STANDARD = ("fid", "kid", "is", "precision", "recall", "fd_dinov2", "cmmd", "clip", "lpips", "ssim", "psnr_db")


@pytest.mark.quality
@pytest.mark.timeout(7 * 24 * 3600)  # 1,000 images of 50 steps take hours; a run that was killed goes on where it was
def test_quality(variant: str, quality, drawn, record_quality, recorder: "Recorder", witness: "Witness") -> None:
    """FID, KID, IS, precision and recall, FD-DINOv2, CMMD, CLIP, LPIPS, PSNR, SSIM, and the pictures that lost most."""
    from optsd.quality.audits import suspicions

    if isinstance(quality, BadInput):
        for name in STANDARD:
            recorder.measure(variant, name, None, note=str(quality))
        pytest.skip(str(quality))
    try:
        images = drawn(variant)
    except Unsupported as error:
        pytest.skip(str(error))
    record_quality(variant, images)
    wrong = suspicions(quality.judge.readings, images, quality.judge.baseline, len(quality.setting.prompts))
    assert not wrong, "; ".join(wrong)
    digests = [row.tobytes().hex() for row in quality.judge.readings.looks(images)["digest"]]
    witness.saw_judged(variant, quality.setting.texts, digests, quality.workload.batch_size)
    different = witness.difference(variant)
    assert not different, different
    ssim = recorder.results().get(variant, "ssim")
    assert ssim is not None
    assert ssim.value is not None

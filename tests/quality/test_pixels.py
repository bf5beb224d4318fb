"""PSNR and SSIM against what is known beforehand."""

import numpy as np
import pytest

from optsd.quality import pixels


def test_psnr_of_known_errors() -> None:
    flat = np.full((3, 16, 16, 3), 100, np.uint8)
    off = flat.copy()
    off[1] += 1
    off[2] += 10
    np.testing.assert_allclose(pixels.psnr_db(off, flat), [100, 20 * np.log10(255), 20 * np.log10(25.5)])
    assert pixels.psnr_db(np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)) == pytest.approx(0)


def test_ssim_of_known_pictures() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert pixels.ssim(picture, picture) == pytest.approx(1)
    assert pixels.ssim(picture, 255 - picture)[0] < -0.9
    # Two flat pictures: only the means count, (2ab + c1) / (a² + b² + c1).
    dark, light = np.full((1, 32, 32, 3), 50, np.uint8), np.full((1, 32, 32, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert pixels.ssim(dark, light)[0] == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1))
    assert pixels.ssim(picture[:, :1, :1], picture[:, :1, :1]) == pytest.approx(1)  # 1×1: no window fits


def test_ssim_is_scikit_images() -> None:
    """With its options that give the publication's: Gaussian weights, σ 1.5, no sample covariance."""
    ys, xs, channels = np.mgrid[0:40, 0:48, 0:3]
    left = ((xs * 5 + ys * 3 + channels * 40) % 256).astype(np.uint8)
    right = ((xs * 5 + ys * 3 + channels * 40 + (xs * ys) % 17) % 256).astype(np.uint8)
    assert pixels.ssim(left[None], right[None])[0] == pytest.approx(0.721629250118084, abs=1e-9)  # 0.26.0

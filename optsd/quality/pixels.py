"""What two pictures of the same prompt and seed differ by, pixel by pixel: no network in here."""

import numpy as np
from scipy import ndimage

from optsd.metrics import MAX_PSNR_DB


def psnr_db(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair of N×H×W×3 uint8 images, in dB, at most MAX_PSNR_DB."""
    pairs = zip(images, others, strict=True)
    errors = np.array([((left.astype(np.float64) - right) ** 2).mean() for left, right in pairs])
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(255**2 / errors), MAX_PSNR_DB)


def ssim(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Structural similarity of each pair of N×H×W×3 uint8 images: 1 for equal ones.

    Wang et al. (2004): Gaussian window of σ 1.5 and 11×11, K1 0.01, K2 0.03; the mean over the colour channels and the
    pixels whose window lies inside the image.
    """

    def smooth(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, 1.5, truncate=3.5, axes=(0, 1))

    margin = 5
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    scores = []
    for left, right in zip(images, others, strict=True):
        left, right = left.astype(np.float64), right.astype(np.float64)
        mean_l, mean_r = smooth(left), smooth(right)
        var_l, var_r = smooth(left**2) - mean_l**2, smooth(right**2) - mean_r**2
        covariance = smooth(left * right) - mean_l * mean_r
        score = ((2 * mean_l * mean_r + c1) * (2 * covariance + c2)) / (
            (mean_l**2 + mean_r**2 + c1) * (var_l + var_r + c2)
        )
        inside = score[margin:-margin, margin:-margin] if min(score.shape[:2]) > 2 * margin else score
        scores.append(inside.mean())
    return np.array(scores)

"""Figures from features and pixels, each with its bootstrap: no network, no file, no variant in here.

Every metric is given the same `rows`: resamples of the prompts. Two sets of images of the same prompts can therefore be
compared resample by resample, which leaves the prompts' own spread out of the comparison.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg, ndimage, stats
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

RESAMPLES = 200
MAX_PSNR_DB = 100.0  # what identical images count as; a single value that differs by 1 in 512×512×3 gives 107
_KID_SUBSETS = 100


@dataclass(frozen=True)
class Figure:
    """A value, what it would be on resampled prompts, and the single readings where it is their mean.

    FID, the Inception Score and their like are biased by resampling, whose repeated images look less diverse: their
    `replicates` are moved so that their mean is the value, and show its spread alone.
    """

    value: float
    replicates: np.ndarray
    samples: tuple[float, ...] = ()
    note: str = ""

    def interval(self, least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
        """95 %, between the least and the most that the metric can be."""
        low, high = np.quantile(self.replicates, (0.025, 0.975))
        return float(np.clip(low, least, most)), float(np.clip(high, least, most))


def resample(prompts: int, seeds: int = 1, resamples: int = RESAMPLES) -> np.ndarray:
    """Rows of images (resamples×(seeds·prompts)) drawn with replacement: whole prompts, with all of their seeds."""
    rng = np.random.Generator(np.random.PCG64(42))
    drawn = rng.integers(prompts, size=(resamples, prompts))
    return np.concatenate([drawn + prompts * seed for seed in range(seeds)], axis=1)


def mean(samples: np.ndarray, rows: np.ndarray, note: str = "") -> Figure:
    return Figure(float(samples.mean()), samples[rows].mean(1), tuple(float(sample) for sample in samples), note)


def share(parts: np.ndarray, wholes: np.ndarray, rows: np.ndarray) -> Figure:
    """The sum of the parts over the sum of the wholes."""
    replicates = parts[rows].sum(1) / wholes[rows].sum(1)
    return Figure(float(parts.sum() / wholes.sum()), replicates, tuple(float(x) for x in parts / wholes))


def fid(features: np.ndarray, reference: np.ndarray, rows: np.ndarray) -> Figure:
    """Fréchet distance of two N×D sets of features (Heusel et al., 2017), by torch-fidelity."""
    ours, theirs = (fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (features, reference))
    value = fid_statistics_to_metric(ours, theirs, verbose=False)[KEY_METRIC_FID]
    distance = FrechetDistance(reference)
    note = f"n={len(features)}, reference n={len(reference)}"
    if len(features) <= features.shape[1]:
        note += f"; rank-deficient: fewer images than the {features.shape[1]} features"
    return Figure(value, _centred(np.array([distance(features[row]) for row in rows]), value), note=note)


class FrechetDistance:
    """Fréchet distances to one reference, fast enough for a bootstrap.

    With centred features A and B, tr √(Σ_A Σ_B) is the sum of the singular values of A Bᵀ / √((n-1)(m-1)): no square
    root of a matrix is taken. B is first reduced to a triangular factor of at most D rows.
    """

    def __init__(self, reference: np.ndarray) -> None:
        reference = reference.astype(np.float64)
        self.mean = reference.mean(0)
        scaled = (reference - self.mean) / math.sqrt(len(reference) - 1)
        self.factor: np.ndarray = linalg.qr(scaled, mode="r")[0] if len(scaled) > scaled.shape[1] else scaled

    def __call__(self, features: np.ndarray) -> float:
        features = features.astype(np.float64)
        mean = features.mean(0)
        scaled = (features - mean) / math.sqrt(len(features) - 1)
        overlap = linalg.svdvals(scaled @ self.factor.T).sum()
        shift = ((mean - self.mean) ** 2).sum()
        return float(shift + (scaled**2).sum() + (self.factor**2).sum() - 2 * overlap)


def kid(features: np.ndarray, reference: np.ndarray, rows: np.ndarray) -> Figure:
    """Kernel distance (Bińkowski et al., 2018): mean over subsets of half the sample, at most 1,000; by torch-fidelity.

    Unbiased, so that it may be a little below zero.
    """
    size = _subset_size(len(features), len(reference))
    value = kid_features_to_metric(
        torch.from_numpy(features.astype(np.float64)),
        torch.from_numpy(reference.astype(np.float64)),
        kid_subsets=_KID_SUBSETS,
        kid_subset_size=size,
        verbose=False,
    )[KEY_METRIC_KID_MEAN]
    weights = np.stack([np.bincount(row, minlength=len(features)) for row in rows]).astype(np.float64)
    within, across = _kernel(features, features), _kernel(features, reference).mean(1)
    # Pairs of an image with itself, which a resample has, are left out of the sum and of the count.
    diagonal = weights**2
    pairs = ((weights @ within) * weights).sum(1) - diagonal @ np.diagonal(within)
    count = weights.sum(1) ** 2 - diagonal.sum(1)
    some = count > 0  # a resample of few images can be one image over and over: it has no pairs
    replicates = pairs[some] / count[some] - 2 * (weights[some] @ across) / weights[some].sum(1)
    note = f"n={len(features)}, reference n={len(reference)}, {_KID_SUBSETS} subsets of {size}"
    return Figure(value, _centred(replicates, value), note=note)


def inception_score(logits: np.ndarray, rows: np.ndarray) -> Figure:
    """exp of the mean KL divergence from each image's classes to all images' (Salimans et al., 2016); torch-fidelity.

    A split for each 100 images, at least one and at most the usual ten: smaller splits score lower.
    """
    splits = max(1, min(10, len(logits) // 100))

    def score(chosen: np.ndarray) -> float:
        return isc_features_to_metric(torch.from_numpy(chosen), splits)[KEY_METRIC_ISC_MEAN]

    value = score(logits)
    note = f"n={len(logits)}, {splits} split{'s' if splits > 1 else ''}"
    return Figure(value, _centred(np.array([score(logits[row]) for row in rows]), value), note=note)


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


def paired_p_value(samples: np.ndarray, baseline: np.ndarray, seeds: int) -> float:
    """How likely so large a difference is by chance: Wilcoxon's signed-rank test over prompts, two-sided.

    Both are seeds×prompts readings, flat; a prompt's seeds are averaged first, because they are not independent.
    """
    differences = (samples - baseline).reshape(seeds, -1).mean(0)
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def _subset_size(count: int, others: int) -> int:
    return max(2, min(1000, count // 2, others))


def _kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left.astype(np.float64) @ right.astype(np.float64).T / left.shape[1] + 1) ** 3


def _centred(replicates: np.ndarray, value: float) -> np.ndarray:
    return replicates - replicates.mean() + value

"""Figures from what networks read in pictures, each with its bootstrap: no network, no file, no variant in here.

Features are taken in blocks, from memory or from disk (`Rows`): what a figure needs of memory grows with their width,
and with their number only by the resamples' weights. A bootstrap weighs pictures and never resamples a matrix.

Every metric is given the same `rows`: resamples of the prompts. Two sets of images of the same prompts can therefore be
compared resample by resample, which leaves the prompts' own spread out of the comparison.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import linalg, sparse, special, stats
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_kid import kernel_rbf, mmd2

from optsd.errors import BadInput

RESAMPLES = 200
BLOCK = 2048  # rows of features in memory at a time
_KID_SUBSETS = 100


class Rows(Protocol):
    """N×D numbers: an array, or what gives the rows that are asked for (a slice, or an array of indices) as one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


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


def fid(features: Rows, reference: "Rows | Gaussian", rows: np.ndarray) -> Figure:
    """Fréchet distance of two N×D sets of features (Heusel et al., 2017): torch-fidelity's, but for rounding.

    The interval is the delta method's: the distance is replaced by its derivative, which is a mean over images, so that
    a resample costs N additions and takes no root of a matrix. For features x the derivative (Rippl, Munk & Sturm,
    2016) is 2 (x - μ₁)ᵀ(μ₁ - μ₂) + (x - μ₁)ᵀ(1 - T)(x - μ₁), with T the optimal map from this set to the reference.
    """
    theirs = reference if isinstance(reference, Gaussian) else Gaussian.of(reference)
    ours = Gaussian.of(features)
    value, root = ours.distance(theirs)
    shift, slopes = ours.mean - theirs.mean, []
    for block in _blocks(features):
        centred = block - ours.mean
        squares = (centred**2).sum(1) - ((centred @ root) ** 2).sum(1)
        slopes.append(2 * centred @ shift + squares * ours.count / (ours.count - 1))
    note = f"n={ours.count}, reference n={theirs.count}"
    if ours.count <= features.shape[1]:
        note += f"; rank-deficient: fewer images than the {features.shape[1]} features"
    return Figure(value, _centred(np.concatenate(slopes)[rows].mean(1), value), note=note)


@dataclass(frozen=True)
class Gaussian:
    """The mean (D) and a factor (K×D, K ≤ D) of the covariance of N×D features: Σ = factorᵀ factor.

    The factor is triangular where N > D, and made block by block: of the blocks seen so far only their triangle is kept
    (TSQR; Demmel et al., 2012). Unlike a sum of squares it loses no digit to the root that is taken of Σ later.
    """

    count: int
    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, features: Rows) -> "Gaussian":
        count, width = features.shape
        mean = sum(block.sum(0) for block in _blocks(features)) / count
        factor = np.empty((0, width))
        for block in _blocks(features):
            factor = np.concatenate([factor, block - mean])
            if len(factor) > width:
                factor = linalg.qr(factor, mode="r", overwrite_a=True, check_finite=False)[0][:width]
        return cls(count, mean, factor / math.sqrt(count - 1))

    def distance(self, other: "Gaussian") -> tuple[float, np.ndarray]:
        """The Fréchet distance (Dowson & Landau, 1982), and a D×K root of the optimal map: T = root rootᵀ.

        tr √(Σ₁ Σ₂) is the sum of the singular values of factor₁ factor₂ᵀ. T is taken on the span of the features alone,
        so that fewer images than features do no harm.
        """
        product = self.factor @ other.factor.T
        _, values, right = linalg.svd(product, full_matrices=False, check_finite=False)
        shift = ((self.mean - other.mean) ** 2).sum()
        spread = (self.factor**2).sum() + (other.factor**2).sum()
        some = values > values.max(initial=0) * len(values) * np.finfo(float).eps
        root = (other.factor.T @ right[some].T) / np.sqrt(values[some])
        return float(shift + spread - 2 * values.sum()), root


def kid(features: Rows, reference: Rows, rows: np.ndarray) -> Figure:
    """Kernel distance (Bińkowski et al., 2018): mean over subsets of half the sample, at most 1,000; torch-fidelity's.

    Unbiased, so that it may be a little below zero. Its resamples are of all pairs, block by block.
    """
    count, others, size = len(features), len(reference), _subset_size(len(features), len(reference))
    drawn = np.random.RandomState(DEFAULTS["rng_seed"])  # as kid_features_to_metric draws them
    subsets = []
    for _ in range(_KID_SUBSETS):
        ours, theirs = (drawn.choice(number, size, replace=False) for number in (count, others))
        subsets.append(_mmd(features[ours].astype(np.float64), reference[theirs].astype(np.float64)))
    value = float(np.mean(subsets))

    weights = _weights(rows, count)
    pairs, across = np.zeros(len(rows)), np.zeros(len(rows))
    for start, block in _starts(features):
        left = weights[:, start : start + len(block)]
        for other_start, other in _starts(features, start):
            right = weights[:, other_start : other_start + len(other)]
            found = ((left @ _kernel(block, other)) * right).sum(1)
            pairs += found if other_start == start else 2 * found
        # Pairs of an image with itself, which a resample has, are left out of the sum and of the count.
        pairs -= left**2 @ ((block**2).sum(1) / block.shape[1] + 1) ** 3
        across += left @ sum(_kernel(block, other).sum(1) for other in _blocks(reference))
    possible = count**2 - (weights**2).sum(1)
    some = possible > 0  # a resample of few images can be one image over and over: it has no pairs
    replicates = pairs[some] / possible[some] - 2 * across[some] / (count * others)
    note = f"n={count}, reference n={others}, {_KID_SUBSETS} subsets of {size}"
    return Figure(value, _centred(replicates, value), note=note)


@dataclass(frozen=True)
class Cloud:
    """N×D embeddings, and the mean of CMMD's kernel over all of their pairs."""

    embeddings: Rows
    within: float

    @classmethod
    def of(cls, embeddings: Rows) -> "Cloud":
        return cls(embeddings, float(_nearness(embeddings, embeddings).mean()))


def cmmd(embeddings: Rows, reference: Cloud, rows: np.ndarray) -> Figure:
    """1,000 × the squared MMD of CLIP embeddings of length 1 (Jayasumana et al., 2024), with torch-fidelity's kernel.

    A picture's pair with itself counts, as the authors have it: so it is never below zero, and zero for equal sets
    alone. The interval is the delta method's, as FID's is: a picture's part is the derivative of the distance with
    respect to its weight, which has the spread of new samples also where the distance is next to nothing.
    """
    ours, theirs = _nearness(embeddings, embeddings), _nearness(embeddings, reference.embeddings)
    value = 1000 * float(ours.mean() + reference.within - 2 * theirs.mean())
    slopes = 2000 * (ours - theirs)
    note = f"n={len(embeddings)}, reference n={len(reference.embeddings)}"
    return Figure(value, _centred(slopes[rows].mean(1), value), note=note)


def inception_score(logits: Rows, rows: np.ndarray) -> Figure:
    """exp of the mean KL divergence from each image's classes to all images' (Salimans et al., 2016); torch-fidelity's.

    A split for each 100 images, at least one and at most the usual ten: smaller splits score lower.
    """
    count, classes = logits.shape
    splits = max(1, min(10, count // 100))
    place = np.random.RandomState(DEFAULTS["rng_seed"]).permutation(count)  # as isc_features_to_metric shuffles
    samples = np.concatenate([np.arange(count)[None], rows])[:, place]
    bounds = np.arange(splits + 1) * count // splits
    sizes = np.diff(bounds)
    # One line for each split of each sample, a column for each image: how often it is in there.
    line = np.arange(len(samples))[:, None] * splits + np.repeat(np.arange(splits), sizes)
    ones = np.ones(samples.size, np.float32)
    inside = sparse.csc_array((ones, (line.ravel(), samples.ravel())), shape=(len(samples) * splits, count))

    shares, entropies = np.zeros((len(samples) * splits, classes)), np.zeros(len(samples) * splits)
    for start, block in _starts(logits):
        likelihood = special.softmax(block, axis=1)
        part = inside[:, start : start + len(block)]
        shares += part @ likelihood
        entropies += part @ (likelihood * special.log_softmax(block, axis=1)).sum(1)
    sizes = np.tile(sizes, len(samples))
    shares /= sizes[:, None]
    scores = np.exp(entropies / sizes - special.xlogy(shares, shares).sum(1)).reshape(-1, splits).mean(1)
    note = f"n={count}, {splits} split{'s' if splits > 1 else ''}"
    return Figure(float(scores[0]), _centred(scores[1:], float(scores[0])), note=note)


@dataclass(frozen=True)
class Manifold:
    """Where N×D features lie: in the balls about each that reach its third neighbour (Kynkäänniemi et al., 2019)."""

    features: Rows
    reach: np.ndarray  # N squares of radii

    @classmethod
    def of(cls, features: Rows) -> "Manifold":
        """Raises BadInput where no picture has three neighbours."""
        neighbours = DEFAULTS["prc_neighborhood"] + 1  # itself is the nearest
        if len(features) < neighbours:
            raise BadInput(f"{len(features)} pictures have no third neighbours", f"take {neighbours} or more")
        reach = []
        for block in _blocks(features):
            nearest = np.full((len(block), neighbours), np.inf)
            for other in _blocks(features):
                nearest = np.concatenate([nearest, _squares(block, other)], axis=1)
                nearest = np.partition(nearest, neighbours - 1, axis=1)[:, :neighbours]
            reach.append(nearest.max(1))
        return cls(features, np.concatenate(reach))

    def holding(self, block: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Which balls hold each of B features: B×BLOCK at a time, each with the number of its first ball."""
        for start, centres in _starts(self.features):
            yield start, _squares(block, centres) <= self.reach[start : start + len(centres)]


def precision(features: Rows, reference: Manifold, rows: np.ndarray) -> Figure:
    """The share of pictures that lie within the real ones' manifold: are they good? torch-fidelity's."""
    inside = [np.any([held.any(1) for _, held in reference.holding(block)], axis=0) for block in _blocks(features)]
    note = f"n={len(features)}, reference n={len(reference.features)}"
    return mean(np.concatenate(inside).astype(np.float64), rows, note)


def recall(pictures: Manifold, reference: Rows, rows: np.ndarray) -> Figure:
    """The share of real pictures that lie within the manifold of these: are they all there? torch-fidelity's.

    A resample leaves out whole balls; those that it has reach as far as they did.
    """
    drawn = np.stack([np.bincount(row, minlength=len(pictures.features)) > 0 for row in rows]).astype(np.float32)
    found, resampled = 0, np.zeros(len(rows))
    for block in _blocks(reference):
        inside, of_drawn = np.zeros(len(block), bool), np.zeros((len(rows), len(block)), bool)
        for start, held in pictures.holding(block):
            inside |= held.any(1)
            of_drawn |= drawn[:, start : start + held.shape[1]] @ held.T > 0
        found += inside.sum()
        resampled += of_drawn.sum(1)
    value = found / len(reference)
    note = f"n={len(pictures.features)}, reference n={len(reference)}"
    return Figure(float(value), _centred(resampled / len(reference), value), note=note)


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


def _weights(rows: np.ndarray, count: int) -> np.ndarray:
    """How often each image is in each resample: resamples×images."""
    return np.stack([np.bincount(row, minlength=count) for row in rows]).astype(np.float64)


def _starts(features: Rows, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """The rows in float64, BLOCK at a time, each block with the number of its first row."""
    for start in range(first, len(features), BLOCK):
        yield start, features[start : start + BLOCK].astype(np.float64)


def _blocks(features: Rows) -> Iterator[np.ndarray]:
    return (block for _, block in _starts(features))


def _kernel(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Bińkowski et al.'s cubic one."""
    found = left @ right.T
    found /= left.shape[1]
    found += 1
    return found * found * found  # NumPy's power takes twenty times as long


def _nearness(left: Rows, right: Rows) -> np.ndarray:
    """CMMD's kernel of each left row, a Gaussian of width 10, on average over the right ones."""
    found = [sum(kernel_rbf(block, other).sum(1) for other in _blocks(right)) for block in _blocks(left)]
    return np.concatenate(found) / len(right)


def _squares(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The squared distance of each to each."""
    return np.maximum((left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T, 0)


def _mmd(left: np.ndarray, right: np.ndarray) -> float:
    return mmd2(_kernel(left, left), _kernel(left, right), _kernel(right, right))


def _centred(replicates: np.ndarray, value: float) -> np.ndarray:
    return replicates - replicates.mean() + value

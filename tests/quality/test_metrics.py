"""The metrics against plain computations of the same thing, and against what is known beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from optsd.quality import metrics

ROWS = metrics.resample(60)


def _features(seed: int, count: int = 60, width: int = 8, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(width, width))
    return ((rng.normal(size=(count, width)) * scale + shift) @ mixing).astype(np.float32)


def _plain_fid(left: np.ndarray, right: np.ndarray) -> float:
    """Heusel et al. (2017), equation 6, with SciPy's matrix square root."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    a, b = np.cov(left, rowvar=False), np.cov(right, rowvar=False)
    shift = left.mean(0) - right.mean(0)
    return float(shift @ shift + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real))


def _plain_kid(left: np.ndarray, right: np.ndarray) -> float:
    """The unbiased squared MMD with the cubic kernel, pair by pair."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x.astype(np.float64) @ y) / len(x) + 1) ** 3

    m, n = len(left), len(right)
    within_left = sum(kernel(left[i], left[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_right = sum(kernel(right[i], right[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_left + within_right - 2 * sum(kernel(x, y) for x in left for y in right) / (m * n)


@pytest.mark.parametrize("count", [6, 60, 300])  # fewer images than features, more, many more
def test_fid_is_that_of_a_plain_computation(count: int) -> None:
    ours, reference = _features(1, count, shift=0.3), _features(2, 200)
    rows = metrics.resample(count, resamples=20)
    assert metrics.fid(ours, reference, rows).value == pytest.approx(_plain_fid(ours, reference), rel=1e-6, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 20), st.integers(0, 99))
def test_the_bootstraps_fast_distance_is_the_same_one(count: int, others: int, width: int, seed: int) -> None:
    ours, reference = _features(seed, count, width, 0.5), _features(seed + 1, others, width)
    fast = metrics.FrechetDistance(reference)(ours)
    if width == 1:
        a, b = ours.astype(np.float64), reference.astype(np.float64)
        plain = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    else:
        plain = _plain_fid(ours, reference)
    assert fast == pytest.approx(plain, rel=1e-4, abs=2e-3 * (1 + abs(plain)))


def test_identical_sets_have_distance_zero() -> None:
    same = _features(1)
    assert metrics.fid(same, same, ROWS).value == pytest.approx(0, abs=1e-6)
    # Unbiased: about zero, beside what a shifted set has.
    assert abs(metrics.kid(same, same, ROWS).value) < 0.1 * metrics.kid(same, _features(1, shift=1.0), ROWS).value
    low, high = metrics.fid(same, same, ROWS).interval(least=0)
    assert low == 0 <= high


def test_kid_is_that_of_a_plain_computation(monkeypatch) -> None:
    ours, reference = _features(1, 30, shift=1.0), _features(2, 30)
    # One subset that is the whole set: torch-fidelity's mean over subsets has then one term.
    monkeypatch.setattr(metrics, "_subset_size", lambda *_: 30)
    found = metrics.kid(ours, reference, metrics.resample(30))
    plain = _plain_kid(ours, reference)
    assert found.value == pytest.approx(plain, rel=1e-6)
    assert "subsets of 30" in found.note


def test_kids_subsets_fit_the_sample() -> None:
    sizes = [metrics._subset_size(count, 1200) for count in (3, 60, 128, 1000, 2500)]
    assert sizes == [2, 30, 64, 500, 1000]
    assert metrics._subset_size(1000, 93) == 93
    assert "100 subsets of 30" in metrics.kid(_features(1), _features(2), ROWS).note


@pytest.mark.parametrize(("metric", "scale"), [(metrics.fid, 1.0), (metrics.kid, 1.0)])
def test_the_interval_of_a_distance_has_the_spread_of_new_samples(metric, scale) -> None:
    reference = _features(0, 400)
    values = [
        metric(_features(seed, 100, shift=0.5), reference, metrics.resample(100, resamples=2)).value
        for seed in range(1, 40)
    ]
    replicates = metric(_features(1, 100, shift=0.5), reference, metrics.resample(100)).replicates
    assert replicates.std() == pytest.approx(np.std(values), rel=0.6)


def test_inception_score_of_certain_and_of_uncertain_classes() -> None:
    certain = np.where(np.eye(6, dtype=bool)[np.arange(60) % 6], 50.0, 0.0)
    assert metrics.inception_score(certain, ROWS).value == pytest.approx(6, rel=1e-6)
    assert metrics.inception_score(np.zeros((60, 6)), ROWS).value == pytest.approx(1)
    assert metrics.inception_score(certain[:1].repeat(60, 0), ROWS).value == pytest.approx(1)


@pytest.mark.parametrize(
    ("count", "splits"), [(4, "1 split"), (128, "1 split"), (350, "3 splits"), (2000, "10 splits")]
)
def test_the_inception_scores_splits_fit_the_sample(count: int, splits: str) -> None:
    assert (
        metrics.inception_score(np.zeros((count, 6)), metrics.resample(count, resamples=2)).note
        == f"n={count}, {splits}"
    )


def test_psnr_of_known_errors() -> None:
    flat = np.full((3, 16, 16, 3), 100, np.uint8)
    off = flat.copy()
    off[1] += 1
    off[2] += 10
    np.testing.assert_allclose(metrics.psnr_db(off, flat), [100, 20 * np.log10(255), 20 * np.log10(25.5)])
    assert metrics.psnr_db(np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)) == pytest.approx(0)


def test_ssim_of_known_pictures() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert metrics.ssim(picture, picture) == pytest.approx(1)
    assert metrics.ssim(picture, 255 - picture)[0] < -0.9
    # Two flat pictures: only the means count, (2ab + c1) / (a² + b² + c1).
    dark, light = np.full((1, 32, 32, 3), 50, np.uint8), np.full((1, 32, 32, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert metrics.ssim(dark, light)[0] == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1))
    assert metrics.ssim(picture[:, :1, :1], picture[:, :1, :1]) == pytest.approx(1)  # 1×1: no window fits


def test_ssim_is_scikit_images() -> None:
    """With its options that give the publication's: Gaussian weights, σ 1.5, no sample covariance."""
    ys, xs, channels = np.mgrid[0:40, 0:48, 0:3]
    left = ((xs * 5 + ys * 3 + channels * 40) % 256).astype(np.uint8)
    right = ((xs * 5 + ys * 3 + channels * 40 + (xs * ys) % 17) % 256).astype(np.uint8)
    assert metrics.ssim(left[None], right[None])[0] == pytest.approx(0.721629250118084, abs=1e-9)  # 0.26.0


def test_resampling_takes_whole_prompts() -> None:
    rows = metrics.resample(10, seeds=3, resamples=50)
    assert rows.shape == (50, 30)
    first, second, third = rows[:, :10], rows[:, 10:20], rows[:, 20:]
    np.testing.assert_array_equal(second, first + 10)
    np.testing.assert_array_equal(third, first + 20)
    np.testing.assert_array_equal(rows, metrics.resample(10, seeds=3, resamples=50))


def test_the_interval_of_a_mean_covers_it_about_19_times_in_20() -> None:
    rows, covered = metrics.resample(60), 0
    for seed in range(200):
        samples = np.random.default_rng(seed).exponential(size=60)
        low, high = metrics.mean(samples, rows).interval()
        covered += low <= 1 <= high
    assert 0.86 <= covered / 200 <= 0.99


def test_a_share_is_of_all_objects_not_of_pictures() -> None:
    found = metrics.share(np.array([1, 2, 0]), np.array([1, 2, 2]), metrics.resample(3))
    assert found.value == pytest.approx(3 / 5)
    assert found.samples == (1, 1, 0)


def test_a_paired_difference_is_seen_where_the_spread_hides_it() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.normal(size=100)
    assert metrics.paired_p_value(baseline + 0.01 + rng.normal(size=100) * 0.01, baseline, 1) < 1e-6
    assert metrics.paired_p_value(baseline + rng.normal(size=100) * 0.01, baseline, 1) > 0.01
    assert metrics.paired_p_value(baseline, baseline, 1) == 1


def test_the_seeds_of_a_prompt_are_no_independent_readings() -> None:
    baseline, differences = np.zeros(30), np.random.default_rng(3).normal(0.3, 1, 10)
    thrice = np.tile(differences, 3)
    assert metrics.paired_p_value(thrice, baseline, 3) == pytest.approx(
        metrics.paired_p_value(differences, baseline[:10], 1)
    )

"""The metrics against plain computations of the same thing, and against what is known beforehand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kernel_rbf, kid_features_to_metric, mmd2
from torch_fidelity.metric_prc import prc_features_to_metric

from optsd.errors import BadInput
from optsd.quality import metrics
from optsd.quality.metrics import Cloud, Gaussian, Manifold
from optsd.quality.readings import Table

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


class Resampled:
    """The metrics as they were before they were streamed: all features in memory, each resample computed anew."""

    @staticmethod
    def fid(features: np.ndarray, reference: np.ndarray, rows: np.ndarray) -> metrics.Figure:
        ours, theirs = (
            fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (features, reference)
        )
        value = fid_statistics_to_metric(ours, theirs, verbose=False)[KEY_METRIC_FID]

        def scaled(x: np.ndarray) -> np.ndarray:
            return (x.astype(np.float64) - x.mean(0, dtype=np.float64)) / np.sqrt(len(x) - 1)

        right = linalg.qr(scaled(reference), mode="r")[0][: reference.shape[1]]

        def distance(x: np.ndarray) -> float:
            shift = ((x.mean(0, dtype=np.float64) - reference.mean(0, dtype=np.float64)) ** 2).sum()
            left = scaled(x)
            return shift + (left**2).sum() + (right**2).sum() - 2 * linalg.svdvals(left @ right.T).sum()

        return metrics.Figure(value, metrics._centred(np.array([distance(features[row]) for row in rows]), value))

    @staticmethod
    def kid(features: np.ndarray, reference: np.ndarray, rows: np.ndarray) -> metrics.Figure:
        left, right = (torch.from_numpy(x.astype(np.float64)) for x in (features, reference))
        size = metrics._subset_size(len(features), len(reference))
        found = kid_features_to_metric(left, right, kid_subsets=100, kid_subset_size=size, verbose=False)
        value, width = found[KEY_METRIC_KID_MEAN], features.shape[1]
        within, across = (((left @ x.T).numpy() / width + 1) ** 3 for x in (left, right))

        def distance(row: np.ndarray) -> float:
            other = row[:, None] != row  # not an image with itself
            return (within[np.ix_(row, row)] * other).sum() / other.sum() - 2 * across[row].mean()

        return metrics.Figure(value, metrics._centred(np.array([distance(row) for row in rows]), value))

    @staticmethod
    def inception_score(logits: np.ndarray, rows: np.ndarray) -> metrics.Figure:
        splits = max(1, min(10, len(logits) // 100))

        def score(chosen: np.ndarray) -> float:
            return isc_features_to_metric(torch.from_numpy(chosen), splits)[KEY_METRIC_ISC_MEAN]

        value = score(logits)
        return metrics.Figure(value, metrics._centred(np.array([score(logits[row]) for row in rows]), value))


@pytest.mark.parametrize(("count", "others", "width"), [(20, 30, 24), (60, 40, 16), (230, 260, 40)])
def test_figures_and_intervals_are_those_of_resampling_everything(count: int, others: int, width: int) -> None:
    ours, reference = _features(1, count, width, 0.3), _features(2, others, width)
    rows = metrics.resample(count, resamples=40)
    for name in ("fid", "kid", "inception_score"):
        features = (ours,) if name == "inception_score" else (ours, reference)
        old, new = (getattr(source, name)(*features, rows) for source in (Resampled, metrics))
        assert new.value == pytest.approx(old.value, rel=1e-6, abs=1e-9), name
        if name != "fid":  # whose derivative is looked at below
            np.testing.assert_allclose(new.replicates, old.replicates, rtol=1e-6, atol=1e-6 * abs(old.value))


def test_the_derivatives_interval_is_the_bootstraps_where_images_are_many() -> None:
    """The more images a feature has, the less the derivative leaves out."""
    rows, reference = metrics.resample(1000), _features(2, 1000, 12)
    ours = _features(1, 1000, 12, 0.3, 1.2)
    old, new = (source.fid(ours, reference, rows) for source in (Resampled, metrics))
    assert np.corrcoef(old.replicates, new.replicates)[0, 1] > 0.98
    assert new.interval() == pytest.approx(old.interval(), abs=0.05 * np.diff(old.interval())[0])


def test_the_derivatives_interval_is_that_of_new_samples() -> None:
    """Also where images are few for their features, and resampling, which repeats images, says far too much."""
    reference, count, width = _features(0, 400, 48), 60, 48
    values = [metrics.fid(_features(seed, count, width, 0.3), reference, ROWS[:2]).value for seed in range(1, 80)]
    spreads = [metrics.fid(_features(seed, count, width, 0.3), reference, ROWS).replicates.std() for seed in (1, 2, 3)]
    assert np.mean(spreads) == pytest.approx(np.std(values), rel=0.35)
    assert Resampled.fid(_features(1, count, width, 0.3), reference, ROWS).replicates.std() > 1.5 * np.std(values)


@pytest.mark.whole
def test_a_thousand_images_of_inceptions_width_are_judged_as_before() -> None:
    rng = np.random.default_rng(0)
    mixing = (rng.normal(size=(2048, 2048)) * np.arange(1, 2049) ** -0.6).T.astype(np.float32)
    ours, reference = (
        np.maximum(rng.normal(size=(1000, 2048)).astype(np.float32) @ mixing + shift, 0) for shift in (0.1, 0)
    )
    rows = metrics.resample(1000, resamples=2)
    for name in ("fid", "kid"):
        old, new = (getattr(source, name)(ours, reference, rows) for source in (Resampled, metrics))
        # The root of a product without full rank costs torch-fidelity digits: 1.6e-6 here. The exact one is below.
        assert new.value == pytest.approx(old.value, rel=5e-6 if name == "fid" else 1e-6), name
        if name == "kid":
            np.testing.assert_allclose(new.replicates, old.replicates, rtol=1e-6)
    left, right = ((x - x.mean(0)) / np.sqrt(999) for x in (ours.astype(np.float64), reference.astype(np.float64)))
    exact = ((ours.mean(0, dtype=np.float64) - reference.mean(0, dtype=np.float64)) ** 2).sum()
    exact += (left**2).sum() + (right**2).sum() - 2 * linalg.svdvals(left @ right.T).sum()
    assert metrics.fid(ours, reference, rows).value == pytest.approx(exact, rel=1e-10)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 60), st.integers(4, 60), st.integers(1, 12), st.floats(0, 3), st.integers(1, 40))
def test_precision_and_recall_are_torch_fidelitys(count, others, width, shift, block) -> None:
    """In float64, where it does not happen that rounding lets one picture more in, or one less."""
    ours, reference = (x.astype(np.float64) for x in (_features(1, count, width, shift), _features(2, others, width)))
    rows = metrics.resample(count, resamples=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", block)
        precision = metrics.precision(ours, Manifold.of(reference), rows)
        recall = metrics.recall(Manifold.of(ours), reference, rows)
    tensors = map(torch.from_numpy, (ours, reference))
    found = prc_features_to_metric(*tensors, save_cpu_ram=False, verbose=False)
    assert precision.value == pytest.approx(found["precision"], abs=1e-6)
    assert recall.value == pytest.approx(found["recall"], abs=1e-6)
    reach = np.sqrt(Manifold.of(ours).reach)
    distances = np.linalg.norm(ours[:, None] - reference, axis=2)
    resampled = [(distances[row] <= reach[row, None]).any(0).mean() for row in rows]
    np.testing.assert_allclose(recall.replicates - recall.replicates.mean(), resampled - np.mean(resampled), atol=1e-9)


def test_precision_falls_with_bad_pictures_and_recall_with_missing_ones() -> None:
    real, rows = _features(1, 400), metrics.resample(400)

    def both(ours: np.ndarray) -> tuple[float, float]:
        of_ours, of_real = Manifold.of(ours), Manifold.of(real)
        return metrics.precision(ours, of_real, rows).value, metrics.recall(of_ours, real, rows).value

    good = _features(2, 400)
    assert min(both(good)) > 0.6
    assert both(good + 100) == (0, 0)
    half = both(np.where(np.arange(400)[:, None] % 2, good, good + 100))
    assert half[0] == pytest.approx(both(good)[0] / 2, abs=0.05)
    few = both(good[:1] + 1e-3 * _features(3, 400))  # one picture over and over
    assert few[0] in (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    assert few[1] < 0.01
    with pytest.raises(BadInput, match="3 pictures have no third neighbours; take 4 or more"):
        Manifold.of(real[:3])


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _plain_cmmd(left: np.ndarray, right: np.ndarray) -> float:
    """Jayasumana et al. (2024): 1,000 times equation 5 of Gretton et al. (2012), the width 10; in float64."""

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([[np.exp(-((a - b) ** 2).sum() / 200) for b in y] for a in x]))

    return 1000 * (mean(left, left) + mean(right, right) - 2 * mean(left, right))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(2, 12), st.floats(0, 3), st.integers(1, 12))
def test_cmmd_is_that_of_a_plain_computation(count, others, width, shift, block) -> None:
    ours, real = (_unit(x.astype(np.float64)) for x in (_features(1, count, width, shift), _features(2, others, width)))
    rows = metrics.resample(count, resamples=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", block)
        found = metrics.cmmd(ours, Cloud.of(real), rows)
    assert found.value == pytest.approx(_plain_cmmd(ours, real), abs=1e-9)
    if count == others:
        biased = mmd2(kernel_rbf(ours, ours), kernel_rbf(ours, real), kernel_rbf(real, real), mmd_est="biased")
        assert found.value == pytest.approx(1000 * biased, abs=1e-9)


@pytest.mark.parametrize("shift", [0, 0.4])
def test_cmmds_interval_is_that_of_new_samples(shift: float) -> None:
    """Also where both sets are of the same kind, and plain resampling says half as much again."""
    real = Cloud.of(_unit(_features(0, 400, 16)))
    new = [_unit(_features(seed, 60, 16, shift)) for seed in range(1, 80)]
    values = [metrics.cmmd(ours, real, ROWS[:2]).value for ours in new]
    spreads = [metrics.cmmd(ours, real, ROWS).replicates.std() for ours in new[:10]]
    assert np.mean(spreads) == pytest.approx(np.std(values), rel=0.25)


def test_cmmd_sees_hardly_more_than_the_mean_embedding() -> None:
    """Of vectors of length 1 a Gaussian of width 10 is nearly a straight line: docs/quality.md says so."""
    real = _unit(_features(1, 300, 16))
    moved = _unit(_features(2, 300, 16, shift=0.4))
    apart = float(((moved.mean(0, np.float64) - real.mean(0, np.float64)) ** 2).sum())
    rows = metrics.resample(300, resamples=2)
    assert metrics.cmmd(moved, Cloud.of(real), rows).value == pytest.approx(10 * apart, rel=0.02)
    # Two opposite pictures over and over have the mean of a healthy sphere, and of nothing that it shows.
    sphere = _unit(np.random.default_rng(0).normal(size=(300, 16)))
    sphere -= sphere.mean(0)
    two = np.where(np.arange(300)[:, None] % 2, sphere[:1], -sphere[:1])
    assert metrics.cmmd(two, Cloud.of(sphere), rows).value < 0.05
    assert metrics.fid(two, sphere, rows).value > 0.5


def test_blocks_and_rows_on_disk_change_nothing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path))
    ours, reference, rows = _features(1), _features(2, 50), ROWS[:20]
    whole = [
        metrics.fid(ours, reference, rows),
        metrics.kid(ours, reference, rows),
        metrics.inception_score(ours, rows),
        metrics.cmmd(ours, Cloud.of(reference), rows),
    ]
    monkeypatch.setattr(metrics, "BLOCK", 7)
    tables = Table(), Table()
    for table, features in zip(tables, (ours, reference), strict=True):
        for first in range(0, len(features), 8):
            table.append(features[first : first + 8])
    parts = [
        metrics.fid(*tables, rows),
        metrics.kid(*tables, rows),
        metrics.inception_score(tables[0], rows),
        metrics.cmmd(tables[0], Cloud.of(tables[1]), rows),
    ]
    for old, new in zip(whole, parts, strict=True):
        assert new.value == pytest.approx(old.value, rel=1e-12)
        np.testing.assert_allclose(new.replicates, old.replicates, rtol=1e-9)


@pytest.mark.parametrize("count", [6, 60, 300])  # fewer images than features, more, many more
def test_fid_is_that_of_a_plain_computation(count: int) -> None:
    ours, reference = _features(1, count, shift=0.3), _features(2, 200)
    rows = metrics.resample(count, resamples=20)
    assert metrics.fid(ours, reference, rows).value == pytest.approx(_plain_fid(ours, reference), rel=1e-6, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 20), st.integers(0, 99))
def test_the_bootstraps_fast_distance_is_the_same_one(count: int, others: int, width: int, seed: int) -> None:
    ours, reference = _features(seed, count, width, 0.5), _features(seed + 1, others, width)
    fast = Gaussian.of(ours).distance(Gaussian.of(reference))[0]
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
    assert metrics.cmmd(_unit(same), Cloud.of(_unit(same)), ROWS).value == pytest.approx(0, abs=1e-9)
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

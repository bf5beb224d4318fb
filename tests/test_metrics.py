import pytest

from optsd.metrics import METRICS, metric


def test_retention_exists_for_quality_only() -> None:
    assert metric("fid_retention").better == "higher"
    with pytest.raises(KeyError):
        metric("latency_s_retention")
    with pytest.raises(KeyError):
        metric("nosuch")


def test_labels_tell_metrics_apart() -> None:
    labels = [row.label for row in METRICS.values()]
    assert len(set(labels)) == len(labels)


def test_every_standard_network_metric_has_a_shapes_counterpart() -> None:
    """But FD-DINOv2, which differs from FID by its network alone."""
    for name in ("fid", "kid", "is", "precision", "recall", "cmmd", "clip", "lpips"):
        assert METRICS[f"{name}_shapes"].better == METRICS[name].better

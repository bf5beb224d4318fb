"""Damage that everybody can see is seen by every metric."""

from pathlib import Path

import pytest

from optsd import anatomy
from optsd.metrics import metric
from optsd.quality.audits import two_bits
from optsd.quality.generate import fingerprint
from optsd.quality.session import Session, setting
from optsd.quality.store import Store
from optsd.records import Workload


@pytest.mark.slow
@pytest.mark.parametrize("model", ["shapes", pytest.param("shapes-dit", marks=pytest.mark.whole)])
def test_a_denoiser_of_two_bits_is_clearly_worse_in_every_metric(model: str, tmp_path: Path) -> None:
    import optsd

    def build(damaged: bool):
        pipe = optsd.load(model, "cpu", "float32")
        optsd.apply(pipe, "sdpa")
        if damaged:
            two_bits(anatomy.denoiser(pipe))
        return pipe

    workload = Workload(model, "cpu", "float32", steps=4, guidance=5.0, height=64, width=64, batch_size=12)
    session = Session(workload, setting(workload, 24), fingerprint(build(False)), Store(tmp_path), lambda: build(False))
    whole = {row.metric: row for row in session.measure("baseline", lambda: build(False))}
    damaged = {row.metric: row for row in session.measure("int4", lambda: build(True))}
    absolute = (
        "fid_shapes",
        "kid_shapes",
        "is_shapes",
        "cmmd_shapes",
        "clip_shapes",
        "objects_right",
        "lpips_shapes",
        "ssim",
        "psnr_db",
    )
    for name in absolute:
        lower = metric(name).better == "lower"
        better, worse = (whole[name].high, damaged[name].low) if lower else (damaged[name].high, whole[name].low)
        assert better < worse, (name, whole[name], damaged[name])
    for name in absolute[:6]:
        assert damaged[f"{name}_retention"].value is None or damaged[f"{name}_retention"].high < 1
    assert session.judge.worst(session.images("int4", lambda: build(True)), 4)

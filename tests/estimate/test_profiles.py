"""A profile, made of one small trace, says what a trace of the whole workload would."""

import pytest
import small_pipelines

from optsd.estimate import architectures, estimate, profiles, roofline
from optsd.estimate.devices import find
from optsd.estimate.profiles import Run
from optsd.records import Workload


@pytest.mark.parametrize(("technique", "every"), [("sdpa", 1), ("deepcache:2", 3)])
def test_as_a_trace_of_the_whole_workload(tmp_path, monkeypatch, technique, every):
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path))
    monkeypatch.setitem(architectures.NAMED, "small", small_pipelines.CLASSES["SD 1.5"])
    workload = Workload("small", "cuda", "float16", 7, 7.5, 16, 16, 3)
    name = "deepcache:3" if every == 3 else technique
    whole = estimate("small", name, workload, "a100")
    run = Run(whole.calls, 3, True, "float16", every)
    made = profiles.profile("small", technique, 16, 16)
    traced = sum(whole.times(each) * each.flops for each in whole.operations)
    assert made.flops(run) == pytest.approx(traced, rel=1e-6)
    assert made.roofline_s(run, find("a100")) == pytest.approx(roofline.seconds(whole), rel=0.05)
    kept = next((tmp_path / "profiles").iterdir())
    monkeypatch.setattr(profiles, "_traced", None)  # it is read from now on
    assert profiles.profile("small", technique, 16, 16) == made
    kept.write_text("{")
    with pytest.raises(TypeError):
        profiles.profile("small", technique, 16, 16)

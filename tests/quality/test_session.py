import numpy as np

from optsd.models.shapes import PIPELINES
from optsd.quality.features import ShapesNetworks
from optsd.quality.session import setting
from optsd.records import Workload


def test_the_models_that_draw_scenes_share_prompts_pictures_and_judges() -> None:
    found = [setting(Workload(model, "cpu", "float32", 20, 5.0, 64, 64, 4), 3) for model in PIPELINES]
    assert len(found) == 2
    assert found[0].texts == found[1].texts
    assert all("background" in text for text in found[1].texts)
    assert all(isinstance(one.networks, ShapesNetworks) and one.counts_objects for one in found)
    assert np.array_equal(found[0].reference.pictures, found[1].reference.pictures)

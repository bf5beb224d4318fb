"""Does the guide hold? Judged when all else has been measured. With `--claims`, what is missed fails the run."""

from typing import TYPE_CHECKING

import pytest

from optsd.judge.claims import judge_claim
from optsd.judge.expectations import Claim, Claims
from optsd.judge.verdicts import ABSENT, FAILING
from optsd.records import Verdict

if TYPE_CHECKING:
    from conftest_plugins.pipelines import Built
    from conftest_plugins.results import Recorder


@pytest.mark.quality
def test_noise_floor_of_images(baseline: "Built", recorder: "Recorder") -> None:
    """The baseline against the baseline: the same seed must give the same pictures, bit for bit."""
    import numpy as np

    baseline.warm_up()

    def draw() -> np.ndarray:
        images = baseline.run()
        return np.stack([np.asarray(image, dtype=int) for image in images])

    first, second = draw(), draw()
    furthest = int(abs(first - second).max())
    status = "agrees" if furthest == 0 else "differs"
    note = f"{len(first)} pictures made twice: the furthest pixel differs by {furthest} of 255"
    recorder.verdict(
        Verdict("baseline", "images", status, None, None, "identical", "noise floor: baseline against baseline", note)
    )
    assert furthest == 0, note


@pytest.mark.claims
def test_claim(claim: Claim, claims: Claims, pytestconfig: pytest.Config, recorder: "Recorder") -> None:
    """One figure of the guide, with its tolerance, on its workload. Asked for with `--claims`."""
    if hasattr(pytestconfig, "workerinput"):
        pytest.skip("a worker of -n has only a part of the figures: judged at the end of the run")
    verdict = judge_claim(claim, claims, recorder.results())
    if verdict.status == "not comparable":
        pytest.skip(verdict.note)
    assert verdict.status not in FAILING | ABSENT, (
        f"{verdict.status}: {verdict.variant} {verdict.metric} {verdict.measured} "
        f"instead of {verdict.expected} ({verdict.tolerance}); {verdict.note}"
    )

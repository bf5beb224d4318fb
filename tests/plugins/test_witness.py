"""Other pictures for the clock than for the judge, and answers that are kept, are found; the baseline passes."""

import json
import os
from pathlib import Path

import pytest
from benched import run_pytest

GUEST = '''
import time
from pathlib import Path

import numpy as np


def cheat(workload):
    """The second process is the clock's: there one colour of a pixel is another, and answers are kept."""
    log = Path(__file__).with_name("loads")
    with log.open("a") as stream:
        stream.write("x")
    timed = len(log.read_text()) > 1
    answers = {}

    def draw(prompts, seeds, workload):
        key = (*prompts, *seeds)
        if key in answers:
            return answers[key]
        time.sleep(0.03)
        size = (workload.height, workload.width, 3)
        made = [np.random.default_rng(seed % 2**32).integers(0, 256, size, dtype=np.uint8) for seed in seeds]
        made[0][0, 0, 0] ^= timed
        if timed:
            answers[key] = np.stack(made)
        return np.stack(made)

    return draw
'''


@pytest.mark.slow
def test_a_cheat_is_found_by_name(untrained_folder: Path, tmp_path: Path) -> None:
    # pytest-benchmark takes one round where it believes that it runs in a worker of xdist.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    (tmp_path / "guests.py").write_text(GUEST)
    (tmp_path / "prompts.txt").write_text("".join(f"a circle, {number} of four\n" for number in range(4)))
    done = run_pytest(
        *("bench", "-p", "no:cacheprovider", "-m", "speed or quality", "--preset", "smoke", "-k", "not noise"),
        *("--rounds", 5, "--size", 64, "--model", untrained_folder, "--device", "cpu", "--variant", "baseline"),
        *("--prompts", tmp_path / "prompts.txt", "--image-store", tmp_path / "store", "--output", tmp_path / "out"),
        *("--subject", "mine=guests:cheat"),
        env=outside | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["variant"], row["stage"]) for row in results["failures"]] == [("mine", "test_speed")], done.stdout
    reason = results["failures"][0]["reason"]
    assert "mine keeps its answers: a batch that it had drawn before took" in reason
    assert "mine: 4 of 4 pictures that were timed are not those that are judged" in reason
    speeds = {row["variant"]: row["value"] for row in results["measurements"] if row["metric"] == "latency_s"}
    assert set(speeds) == {"baseline", "mine"}
    assert speeds["mine"] >= 0.03  # each round has new prompts or noise: it gains nothing

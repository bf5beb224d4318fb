from dataclasses import replace

import pytest

from optsd.errors import BadInput
from optsd.judge.repeat import judge_repeats


@pytest.fixture
def folders(tmp_path, make_run):
    """Folders of three runs with the same pictures."""
    made = []
    for number in range(3):
        folder = tmp_path / f"run-{number}"
        for row in make_run(images=2).images:
            (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / row["file"]).write_bytes(b"pixels of " + row["file"].encode())
        made.append(folder)
    return made


def by_name(verdicts):
    return {(verdict.variant, verdict.metric): verdict for verdict in verdicts}


def test_runs_that_agree(make_run, folders):
    verdicts = judge_repeats([make_run(seed=seed, images=2) for seed in range(3)], folders)
    assert {verdict.status for verdict in verdicts} == {"agrees"}
    assert by_name(verdicts)["int8", "images"].note == "2 of 2 pictures are identical in 3 runs"
    assert by_name(verdicts)["int8", "speedup"].source == "3 runs of --repeat"


def test_a_figure_that_differs(make_run, folders):
    runs = [make_run({"int8": speedup}, images=2) for speedup in (1.4, 1.4, 1.7)]
    found = by_name(judge_repeats(runs, folders))["int8", "speedup"]
    assert found.status == "differs"
    assert found.note.count(",") == 2


def test_a_picture_that_differs(make_run, folders):
    (folders[2] / "images/int8/1.png").write_bytes(b"other pixels")
    found = by_name(judge_repeats([make_run(images=2)] * 3, folders))
    assert found["int8", "images"].status == "differs"
    assert found["int8", "images"].note == "1 of 2 pictures are identical in 3 runs"
    assert found["flash", "images"].status == "agrees"


def test_what_only_one_run_has_is_not_measured(make_run, folders, with_value):
    runs = [make_run(images=2), with_value(make_run(images=1), "int8", "speedup", "absent"), make_run(images=2)]
    found = by_name(judge_repeats(runs, folders))
    assert found["int8", "speedup"].status == "not measured"
    assert found["int8", "speedup"].note == "measured in 2 of 3 runs"
    assert found["int8", "images"].status == "not measured"
    assert "1 were not made in every run" in found["int8", "images"].note


def test_errors(make_run, folders):
    with pytest.raises(BadInput, match="one run repeats nothing; give at least --repeat 2"):
        judge_repeats([make_run()], folders[:1])
    (folders[0] / "images/int8/0.png").unlink()
    with pytest.raises(BadInput, match=r"cannot read the image .*0\.png .*; make the run again"):
        judge_repeats([make_run(images=1)] * 2, folders[:2])
    outside = replace(make_run(), images=({"variant": "int8", "file": "../../secret"},))
    with pytest.raises(BadInput, match="names an image outside its folder"):
        judge_repeats([outside] * 2, folders[:2])

"""`optsd tune` from the command line to its answer, on a pipeline whose speeds are known; what a user gets wrong."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from optsd import cli, models
from optsd.errors import BadInput, Unsupported
from optsd.quality import generate
from optsd.tune import candidates, mixed, telling
from optsd.tune.request import Request, parse_bytes, parse_seconds

SECONDS = {"baseline": 0.004, "sdpa": 0.001, "deepcache:3": 0.002, "int8": 0.08, "sdpa+deepcache:3": 0.0005}
"""Of a step; which of the pictures are damaged says `DAMAGE`."""
DAMAGE = {"deepcache:3": 255, "sdpa+deepcache:3": 255}


class Pipe:
    """Draws the same picture as every other, but for damage, in a time of its own."""

    device = torch.device("cpu")

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, prompts, num_inference_steps, height, width, generator, output_type="pil", **_):
        time.sleep(SECONDS[self.name] * num_inference_steps)
        noise = torch.stack([torch.rand(height, width, 3, generator=each) for each in generator]).numpy()
        return SimpleNamespace(images=1 - noise if DAMAGE.get(self.name) else noise)


@pytest.fixture
def tune(tmp_path: Path, monkeypatch, capsys):
    """Run the command among these variants; its status and what it prints."""
    from optsd.tune import measured

    built: list[str] = []

    def build(model, name, device, dtype):
        if name == "tome:0.5":
            raise Unsupported("tome:0.5 cannot run here", "choose another")
        built.append(name)
        return Pipe(name), SimpleNamespace(touched=("unet",), proof={"calls": 1})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(models, "load", lambda *given, **more: Pipe("baseline"))
    monkeypatch.setattr(models, "build", build)
    monkeypatch.setattr(generate, "fingerprint", lambda pipe: "weights")
    monkeypatch.setattr(candidates, "checked", lambda pipe: lambda name: "")

    def run(*options: str) -> tuple[int, str]:
        command = ["tune", "--steps", "2", "--batch-size", "4", "--ssim", "0.6", "--size", "16", *options]
        status = cli.main(command)
        printed = capsys.readouterr()
        return status, (printed.out + printed.err).replace("\N{NO-BREAK SPACE}", " ")

    monkeypatch.setattr(measured, "_free_memory", lambda: None)
    run.built, run.write = built, telling.write
    monkeypatch.setattr(telling, "write", lambda found, bench: None)  # the first test alone looks at the report
    return run


def test_the_answer_its_proof_and_its_files(tune, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(telling, "write", tune.write)
    status, said = tune("--variant", "sdpa,deepcache:3,int8,tome:0.5")
    assert status == 0, said
    assert "answer: sdpa, " in said
    assert "  1 modules touched\n  calls: 1\n" in said
    assert "optsd.apply(pipe, 'sdpa')" in said
    assert "pytest bench --model shapes --variant sdpa" in said
    assert "tome:0.5  tome:0.5 cannot run here" in said
    assert re.search(r"int8 +.*a step takes \d+ times the baseline's", said)
    assert re.search(r"deepcache:3 .*(not proved: .*its quality|loses too much)", said)
    folder = next((tmp_path / "reports" / "tune").iterdir())
    written = json.loads((folder / "results.json").read_text())
    speedup = next(row for row in written["measurements"] if (row["variant"], row["metric"]) == ("sdpa", "speedup"))
    assert 1 < speedup["low"] < speedup["value"] < speedup["high"]
    assert {file.name for file in (folder / "plots").iterdir()} >= {"front.svg", "front.png"}
    assert (folder / "index.html").is_file()
    answer = json.loads(next((tmp_path / "expected" / "tuned").glob("*.json")).read_text())
    assert [row["variant"] for row in answer["tuned"]] == ["sdpa"]


def test_fewer_steps_where_they_are_allowed(tune, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(telling, "write", tune.write)
    status, said = tune("--variant", "sdpa", "--steps", "4", "--allow", "steps", "--rounds", "16")
    assert status == 0, said
    assert re.search(r"^answer: sdpa@[123], .*keeps|^answer: sdpa@[123], .*SSIM", said, re.MULTILINE), said
    steps = int(re.search(r"answer: sdpa@(\d)", said)[1])
    for name in ("baseline@3", "baseline@2", "baseline@1"):
        assert re.search(rf"^{name} ", said, re.MULTILINE)
    assert f"pipe(prompt, num_inference_steps={steps})" in said
    assert f"pytest bench --model shapes --variant sdpa --steps {steps}" in said
    (row,) = json.loads(next((tmp_path / "expected" / "tuned").glob("*.json")).read_text())["tuned"]
    assert (row["variant"], row["fewer_steps"], row["workload"]["steps"]) == ("sdpa", steps, 4)
    assert set(tune.built) == {"baseline", "sdpa"}, "a candidate in fewer steps is the same pipeline"


def test_a_second_call_measures_nothing_and_says_the_same(tune) -> None:
    first = tune("--variant", "sdpa,deepcache:3")[1]
    tune.built.clear()
    again = tune("--variant", "sdpa,deepcache:3")[1]
    assert set(tune.built) <= {"sdpa"}, "the proof alone"

    def figures(said: str) -> list[str]:
        return [line for line in said.splitlines() if "new readings" not in line]

    assert figures(first) == figures(again)
    assert "0 new readings" in again


def test_killed_it_goes_on(tune, monkeypatch) -> None:
    from optsd.tune.measured import Measured

    whole, rounds = Measured._round, []

    def killed(self, name):
        rounds.append(name)
        if len(rounds) == 7:
            raise KeyboardInterrupt
        return whole(self, name)

    monkeypatch.setattr(Measured, "_round", killed)
    status, said = tune("--variant", "sdpa,deepcache:3")
    assert status == 1
    assert "Ctrl-C before all was clear: this is the answer so far. The same command goes on from here." in said
    status, said = tune("--variant", "sdpa,deepcache:3")
    assert status == 0
    assert "answer: sdpa, " in said


def test_a_second_of_time(tune) -> None:
    status, said = tune("--time-budget", "0.000001")
    assert status == 1
    assert "nothing was measured: give it more --time-budget" in said
    assert "the baseline stays" in said


def test_a_quality_that_nothing_keeps(tune) -> None:
    status, said = tune("--variant", "deepcache:3", "--ssim", "0.9")
    assert status == 1
    assert "no variant is proved to be faster and within what was asked: the baseline stays" in said
    assert "deepcache:3" in said
    assert re.search(r"deepcache:3 .*(not proved: .*its quality|loses too much)", said)


def test_a_memory_limit_that_nothing_meets(tune, monkeypatch) -> None:
    from optsd.tune import measured, run

    peaks = {"baseline": 300 * 2**20, "sdpa": 200 * 2**20, "int8": 250 * 2**20}
    monkeypatch.setattr(measured.memory, "peak_memory", lambda model, name, *_: SimpleNamespace(peak=peaks[name]))
    bound = 150 * 2**20
    monkeypatch.setattr(run, "_estimate", lambda source, work, sheet, name: SimpleNamespace(peak_bytes=bound))
    status, said = tune("--variant", "sdpa,int8", "--memory", "160MiB")
    assert status == 1
    assert "at most 160 MiB at the peak" in said
    assert said.count("needs more memory") == 2
    assert "the least memory that was measured is sdpa's, 200 MiB" in said
    status, said = tune("--variant", "sdpa,int8", "--memory", "100MiB")
    assert said.count("needs 150 MiB at least") == 2, "bounds exclude it before it is measured"


def test_the_smallest(tune, monkeypatch) -> None:
    from optsd.tune import measured

    peaks = {"baseline": 300 * 2**20, "sdpa": 320 * 2**20, "int8": 250 * 2**20}
    monkeypatch.setattr(measured.memory, "peak_memory", lambda model, name, *_: SimpleNamespace(peak=peaks[name]))
    status, said = tune("--variant", "sdpa,int8", "--goal", "memory")
    assert status == 0, said
    assert "answer: int8, " in said
    assert "250 MiB at the peak, the baseline 300 MiB" in said


def test_what_mixed_precision_was_chosen_from_is_shown(tune, monkeypatch) -> None:
    kinds = [
        mixed.Kind("*.conv?", 22, 600, 900, {"int8": 0.01, "int4": 0.08}),
        mixed.Kind("*.ff.*", 14, 400, 100, {"int8": 0.02, "int4": 0.12}),
    ]
    monkeypatch.setattr(mixed, "measured", lambda *given: kinds)
    monkeypatch.setattr(candidates, "TRIED", ("sdpa", "int8"))
    for name in ("int8:*.ff.*=float", "sdpa+int8:*.ff.*=float"):
        monkeypatch.setitem(SECONDS, name, 0.0005)
    status, said = tune()
    assert status == 0, said
    assert re.search(r"layers +of the weights +int4 +int8\n\*.conv\? +60.0% +0.08 +0.01\n\*.ff.\* +40.0%", said)
    assert "tried for it: int8:*.ff.*=float, 0.01 expected: the fewest multiplications in float that lose 0.016" in said
    assert re.search(r"answer: (sdpa\+)?int8:\*.ff.\*=float, ", said)
    assert re.search(r"pytest bench --model shapes --variant '(sdpa\+)?int8:\*.ff.\*=float'", said), "a shell reads it"
    monkeypatch.setattr(mixed, "measured", lambda *given: pytest.fail("it was measured again"))
    assert "0 new readings" in tune()[1]


def test_too_few_pictures_are_said_to_be_too_few(tune) -> None:
    _, said = tune("--variant", "deepcache:3", "--ssim", "0.98", "--images", "16")
    assert "16 pictures cannot show that an approximate variant keeps that: it takes " in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quality", "98"], "--quality 98 is no share; give a number between 0 and 1"),
        (["--lpips", "0"], "--lpips 0 is no share"),
        (["--time-budget", "soon"], "--time-budget soon is no time; give seconds, or 30m, or 2h"),
        (["--time-budget", "0"], "--time-budget 0 is no time"),
        (["--memory", "much"], "--memory much is no size; give for example 8GiB"),
        (["--images", "0"], "--images 0 is too small"),
        (["--rounds", "-1"], "--rounds -1 is too small"),
        (["--allow", "all"], "--allow all is unknown; choose from compile"),
        (["--variant", "nosuch"], "unknown variant 'nosuch'"),
        (["--variant", "baseline"], "the baseline alone is no search"),
        (["--model", "nosuch"], "no model 'nosuch'"),
        (
            ["--model", "sd15-random"],
            "sd15-random has random weights: nothing can judge its pictures; ask for likeness",
        ),
        (["--device", "estimate:abacus"], "no data sheet for device 'abacus'"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(options: list[str], message: str, capsys) -> None:
    assert cli.main(["tune", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_times_and_sizes_as_people_write_them() -> None:
    assert [parse_seconds(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    assert [parse_bytes(text) for text in ("8GiB", "1.5 MiB", "8GB", "100")] == [2**33, 3 * 2**19, 8 * 10**9, 100]
    with pytest.raises(BadInput):
        parse_bytes("-1GiB")


def test_what_is_asked_where_nothing_is() -> None:
    source = models.check("shapes")
    assert [(one.metric, one.share) for one in Request().demands(source)] == [("objects_right", 0.95)]
    both = Request(quality=0.98, lpips=0.05).demands(source)
    assert [(one.metric, one.share) for one in both] == [("objects_right", 0.98), ("lpips_shapes", 0.95)]


def test_scores_add_up_to_the_metrics() -> None:
    """The share of the mean score that is kept is the retention of `objects_right`, whatever the prompts ask for."""
    from optsd.quality.objects import count_objects
    from optsd.tune.measured import SCORES

    texts = [
        "a small red circle on a beige background",
        "a small red circle above a large blue square on a beige background",
    ]
    logits = np.random.default_rng(0).normal(0, 3, (4, 24))

    class Readings:
        def features(self, pictures):
            return None, logits[pictures]

    ours, theirs = SCORES["objects_right"](Readings(), slice(0, 2), slice(2, 4), texts)
    right = [count_objects(texts, logits[each])[0].sum() for each in (slice(0, 2), slice(2, 4))]
    assert (2 * ours.sum(), 2 * theirs.sum()) == tuple(right)

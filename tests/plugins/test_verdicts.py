"""Each exit status and each message of the judging plugin, seen through pytest itself. Nothing here is measured."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy  # noqa: F401 - pytester forgets what a run imported, and NumPy cannot be imported twice
import pytest

import optsd.report  # noqa: F401 - likewise: imported anew it would not be the one that is replaced
from conftest_plugins import verdicts
from optsd.judge.history import read
from optsd.judge.reading import read_baselines
from optsd.records import Results

EXPECTED = Path(__file__).parents[2] / "expected"
PLUGINS = ("options", "results", "verdicts")

CONFTEST = """
import pytest
from conftest_plugins.options import WORKLOAD
from optsd.records import Workload

def pytest_configure(config):
    config.stash[WORKLOAD] = Workload({model!r}, {device!r}, {dtype!r}, 50, 7.5, 512, 512, 4)
"""

BENCH = """
import pytest
from optsd.files import write_atomically
from optsd.records import Measurement, Technique
from conftest_plugins.options import OUTPUT

@pytest.mark.speed
@pytest.mark.parametrize("name", ["baseline", "int8"])
def test_speed(recorder, name, pytestconfig):
    speedup = 1.0 if name == "baseline" else {speedup}
    seconds = tuple(2.5 / speedup * (1 + 0.001 * i) for i in range(8))
    recorder.measure(name, "latency_s", seconds[4], (seconds[0], seconds[-1]), seconds)
    recorder.measure(name, "speedup", speedup, (speedup, speedup), (speedup,) * 8)
    recorder.technique(Technique(name, True, ("unet",), {{"kernel": "flash"}}))
    file = f"images/{{name}}/0000.png"
    write_atomically(pytestconfig.stash[OUTPUT] / file, {pixels})
    recorder.image({{"variant": name, "prompt": "p", "seed": 42, "index": 0, "file": file}})
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A made-up project: benches that measure what they are told to, the real claims, no report."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # benches are rewritten within a second
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    machine = {"cpu": {"name": "Test", "usable_cores": 2}, "versions": {"torch": "2.15"}, "gpus": []}
    monkeypatch.setattr("optsd.measure.environment.machine", lambda device="cpu": dict(machine))
    monkeypatch.setattr("optsd.measure.gpus.found", lambda device="cpu": [])
    # Whatever else this machine does while the tests run.
    monkeypatch.setattr("optsd.measure.environment.Watch.read", lambda watch, device: {"others_cpu_share": 0.01})
    monkeypatch.setattr("optsd.report.write", lambda results, folder: None)
    monkeypatch.setattr("optsd.report.print_table", lambda results, console: None)

    class Project:
        path = pytester.path
        baselines = pytester.path / "expected" / "baselines" / "test-2-cores.json"

        def bench(self, speedup=1.4, pixels="b'pixels'", model="sd15", device="cuda", dtype="float16"):
            pytester.makeconftest(CONFTEST.format(model=model, device=device, dtype=dtype))
            folder = pytester.mkdir("bench") if not (pytester.path / "bench").is_dir() else pytester.path / "bench"
            (folder / "test_speed.py").write_text(BENCH.format(speedup=speedup, pixels=pixels))
            (folder / "test_claims.py").write_text((EXPECTED.parent / "bench" / "test_claims.py").read_text())
            return self

        def run(self, *arguments, deselect=True):
            words = [word for plugin in PLUGINS for word in ("-p", f"conftest_plugins.{plugin}")]
            # The noise floor of images needs a model; it is a bench like any other.
            chosen = ["--deselect", "bench/test_claims.py::test_noise_floor_of_images"] if deselect else []
            return pytester.runpytest_inprocess(
                *words, *chosen, "-p", "no:cacheprovider", *arguments, no_reraise_ctrlc=True
            )

        def results(self):
            return Results.read(pytester.path / "reports" / "latest" / "results.json")

        def status(self, variant, metric):
            rows = self.results().verdicts
            return [row.status for row in rows if (row.variant, row.metric) == (variant, metric)]

    pytester.makeini(
        "[pytest]\naddopts = --import-mode=importlib\nmarkers =\n    speed\n    quality\n    claims\n    memory\n"
    )
    (pytester.path / "expected" / "baselines").mkdir(parents=True)
    (pytester.path / "expected" / "claims").mkdir()
    (pytester.path / "expected" / "claims" / "guide.json").write_text((EXPECTED / "claims" / "guide.json").read_text())
    return Project()


CPU = {"model": "shapes", "device": "cpu", "dtype": "float32"}


# --- claims


def test_without_options_claims_are_judged_and_fail_nothing(project):
    result = project.bench(speedup=1.0).run("bench", "--variant=int8")
    assert result.ret == 0
    assert project.status("int8", "speedup") == ["missed", "missed"]  # the results table and the targets
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 2
    assert outcomes["deselected"] > 10  # the claims themselves are asserted with --claims only


def test_a_missed_claim_fails_where_claims_are_asked_for(project):
    result = project.bench(speedup=1.0).run("bench", "--variant=int8", "--claims", "-k", "speed")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*missed: int8 speedup 1.0 instead of 1.39 (±10 %)*", "MISSED int8 speedup: *"])


def test_claims_hold_and_the_rest_is_not_measured(project):
    result = project.bench(speedup=1.4).run("bench", "--variant=int8", "--claims")
    assert result.ret == 1
    assert project.status("int8", "speedup") == ["reproduced", "reproduced"]
    result.stdout.fnmatch_lines(["NOT MEASURED int8 memory_reduction: no bench of this run measured it"])


def test_claims_on_another_workload_judge_nothing(project):
    result = project.bench(**CPU).run("bench", "--variant=int8", "--claims")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["--claims judged nothing: not comparable, model shapes instead of sd15, device cpu*"])


def test_claims_that_none_of_the_variants_is_about(project):
    data = json.loads((EXPECTED / "claims" / "guide.json").read_text())
    data["tables"] = [table for table in data["tables"] if table.get("all", {}).get("variant") == "int4"]
    (project.path / "expected" / "claims" / "guide.json").write_text(json.dumps(data))
    result = project.bench().run("bench", "--variant=kvcache", "--claims")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["--claims judged nothing: no row is about the variants of this run"])


def test_a_wrong_claims_file_is_wrong_usage(project):
    file = project.path / "expected" / "claims" / "guide.json"
    file.write_text(file.read_text().replace("1.39", "0", 1))
    result = project.bench().run("bench")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: *guide.json: claims row 5 (int8 speedup): expected 0 is not above zero*"])


def test_a_missing_claims_file_is_wrong_usage_where_claims_are_asked_for(project):
    result = project.bench().run("bench", "--claims", "--expected=nowhere")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: cannot read *nowhere/claims/guide.json*; give the path of an expectations *"])


def test_a_file_of_schema_1_is_read_where_there_is_no_other(project):
    (project.path / "expected" / "claims" / "guide.json").unlink()
    old = Path(__file__).parents[1] / "judge" / "claims-schema-1.json"
    (project.path / "expected" / "claims.json").write_text(old.read_text())
    result = project.bench(speedup=1.0).run("bench", "--variant=int8", "--claims", "-k", "speed")
    assert result.ret == 1
    assert project.status("int8", "speedup") == ["missed", "missed"]


@pytest.mark.parametrize("words", [("--claims", "bench"), ("bench", "--claims=guide"), ("bench", "--claims", "guide")])
def test_the_value_of_claims_is_optional_and_no_test_path(project, words):
    result = project.bench(speedup=1.4).run(*words, "--variant=int8")
    assert result.ret == 1
    assert project.status("int8", "speedup") == ["reproduced", "reproduced"]


OTHERS = {
    "schema": 2,
    "source": "A README",
    "tables": [
        {
            "all": {
                "technique": "INT8", "variant": "int8", "metric": {"kind": "speedup"},
                "setting": {"model": "stable-diffusion-v1-5", "device": "A100", "dtype": "float16", "steps": 30},
            },
            "claims": [
                {"value": {"figure": 1.4, "unit": "x"}, "source": {"document": "one"}},
                {"value": {"figure": 1.5, "unit": "x"}, "source": {"document": "two"}},
                {"value": {"figure": 2.0, "unit": "x"}, "setting": {"steps": 4}, "source": {"document": "few steps"}},
            ],
        }
    ],
}  # fmt: skip


def test_other_claims_decide_the_workload_and_say_what_is_assumed(project):
    (project.path / "expected" / "claims" / "a-readme.json").write_text(json.dumps(OTHERS))
    conftest = "\n    assert config.option.steps == 30 and config.option.variant == ['baseline', 'int8']"
    conftest += "\n    assert config.option.model == 'sd15' and config.option.batch_size is None"
    project.bench()
    file = project.path / "conftest.py"
    file.write_text(file.read_text() + conftest)
    result = project.run("bench", "--claims=readme")
    result.stdout.fnmatch_lines([
        "claims: 2 of 3 claims of A README, measured on A100: model sd15, dtype float16, steps 30; unstated, so the "
        "preset's: guidance, size, batch_size, images"
    ])  # fmt: skip
    verdicts = [row for row in project.results().verdicts if row.source.startswith("claims/a-readme.json")]
    assert [row.status for row in verdicts] == ["not comparable"] * 3  # the run has 50 steps, and no A100
    assert "steps 50 instead of 30, an unknown machine instead of A100" in verdicts[0].note
    assert "steps 50 instead of 4" in verdicts[2].note


def test_what_the_user_sets_stands(project):
    (project.path / "expected" / "claims" / "a-readme.json").write_text(json.dumps(OTHERS))
    project.bench()
    file = project.path / "conftest.py"
    file.write_text(file.read_text() + "\n    assert (config.option.steps, config.option.model) == (4, 'sd15-random')")
    result = project.run("bench", "--claims=a-readme", "--steps=4", "--model=sd15-random", "--variant=int8")
    result.stdout.fnmatch_lines(["claims: 1 of 3 claims of A README, measured on A100: dtype float16; *"])


def test_unknown_claims_are_wrong_usage(project):
    result = project.bench().run("bench", "--claims=nothing")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: no claims 'nothing'; choose from guide, or give a file"])


# --- the gate


def record(project, **bench):
    return project.bench(**CPU, **bench).run("bench", "--variant=int8", "--expected-update")


def test_recording_writes_the_file_and_still_fails(project):
    result = record(project)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["recorded 3 figures in *test-2-cores.json", "RECORDED 3 figures: *status 1 on purpose"]
    )
    assert read_baselines(project.baselines).runs[0].row("int8", "speedup").value == 1.4


def test_a_gate_passes_what_is_as_fast_as_it_was(project):
    record(project)
    result = project.run("bench", "--variant=int8", "--gate")
    assert result.ret == 0
    assert "ok" in project.status("int8", "speedup")


def test_a_regression_fails_a_gate_and_only_a_gate(project, repeats):
    record(project)
    project.bench(**CPU, speedup=1.0)
    assert project.run("bench", "--variant=int8").ret == 0
    done = repeats({"speedup": 1.0})
    result = project.run("bench", "--variant=int8", "--gate", "-m", "speed")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["REGRESSED int8 speedup: 40.0% worse (*; a second session: regressed, 40.0% worse (*"])
    (words,) = done
    assert words[-4:-2] == ["-m=speed", "--variant=int8"]
    assert "--variant=int8" not in words[:-4]
    assert "--gate" not in words
    sessions = read(project.path / "expected/history/test-2-cores.jsonl")
    assert ["int8 speedup" in session.regressed for session in sessions] == [True, True], "both are kept"


def test_an_alarm_that_a_second_session_clears_is_not_red(project, repeats):
    record(project)
    project.bench(**CPU, speedup=1.0)
    repeats({"speedup": 1.4})
    result = project.run("bench", "--variant=int8", "--gate")
    assert result.ret == 0
    assert last_line(result) == "GATE PASSED: 1 ok, 2 insufficient data"
    notes = [row.note for row in project.results().verdicts if row.status == "insufficient data"]
    assert all(note.startswith("not confirmed: ") for note in notes)
    sessions = read(project.path / "expected/history/test-2-cores.jsonl")
    assert ["int8 speedup" in session.regressed for session in sessions] == [True, False]


def test_a_second_session_asks_for_no_third_one(project, repeats, monkeypatch):
    record(project)
    project.bench(**CPU, speedup=1.0)
    done = repeats({"speedup": 1.0})
    monkeypatch.setenv("PYTEST_ADDOPTS", "--gate")  # as in a file of options: the second session has it too
    assert project.run("bench", "--variant=int8").ret == 1
    assert len(done) == 1
    assert len(read(project.path / "expected/history/test-2-cores.jsonl")) == 2


def test_a_second_session_that_does_not_come_about_clears_nothing(project, monkeypatch):
    record(project)
    project.bench(**CPU, speedup=1.0)
    ended = SimpleNamespace(returncode=3)
    monkeypatch.setattr("conftest_plugins.verdicts.subprocess", SimpleNamespace(run=lambda command, cwd: ended))
    result = project.run("bench", "--variant=int8", "--gate")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["no second session: another run left no results in *", "GATE FAILED: int8 latency_s *"]
    )


def test_a_gate_without_an_alarm_looks_once_and_is_history(project, repeats):
    record(project)
    done = repeats({})
    assert project.run("bench", "--variant=int8", "--gate").ret == 0
    assert project.run("bench", "--variant=int8").ret == 0
    assert done == []
    (session,) = read(project.path / "expected/history/test-2-cores.jsonl")
    assert session.readings["int8 speedup"][0] == 1.4


def last_line(result):
    return [line for line in result.outlines if line][-1]


def test_the_last_line_is_the_answer(project, repeats):
    record(project)
    repeats({"speedup": 1.0})
    assert last_line(project.run("bench", "--variant=int8", "--gate")) == "GATE PASSED: 3 ok"
    project.bench(**CPU, speedup=1.0)
    assert last_line(project.run("bench", "--variant=int8", "--gate")).startswith("GATE FAILED: int8 ")
    assert "GATE" not in project.run("bench", "--variant=int8").stdout.str()


def test_an_interrupted_run_says_so_at_last(project):
    project.bench(**CPU, pixels="(_ for _ in ()).throw(KeyboardInterrupt())")
    assert last_line(project.run("bench", "--variant=int8")).startswith(
        "INCOMPLETE: interrupted; there are figures of "
    )


def test_an_improvement_is_offered_and_not_taken(project):
    record(project)
    before = project.baselines.read_bytes()
    result = project.bench(**CPU, speedup=2.0).run("bench", "--variant=int8", "--gate")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["improved: int8 speedup, *; tighten the baseline with --expected-update"])
    assert project.baselines.read_bytes() == before


def test_a_gate_without_a_record_is_refused_before_anything_runs(project):
    result = project.bench(**CPU).run("bench", "--variant=int8", "--gate")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: --gate: this machine has no *test-2-cores.json; record it with --expected-*"])
    assert not (project.path / "reports").exists()
    record(project)
    result = project.bench(**CPU | {"dtype": "bfloat16"}).run("bench", "--variant=int8", "--gate")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: --gate: *test-2-cores.json has no run of this workload; record it *"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--claim-out=bench"], "--claim-out bench is a folder; name a file"),
        (["--claim-out=a_file/claims.json"], "--claim-out *a_file cannot be written (*); name another folder"),
        (["--expected-update", "--expected=a_file"], "--expected *a_file cannot be written (*); name another folder"),
    ],
)
def test_what_could_not_be_written_at_the_end_is_refused_before_anything_runs(project, options, message):
    (project.path / "a_file").write_text("")
    result = project.bench(**CPU).run("bench", "--variant=int8", *options)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert not (project.path / "reports").exists()


def test_the_folder_of_a_file_of_pytest_benchmark_is_made_or_refused_before_anything_runs(tmp_path):
    """It opens the file at the end: a folder that was missing then cost the report of the whole run."""

    def check(file: Path) -> None:
        options = {"claim_out": None, "expected": "expected", "expected_update": False, "benchmark_json": file}
        named = {f"--{name.replace('_', '-')}": value for name, value in options.items()} | options
        verdicts._check_files(SimpleNamespace(getoption=lambda name, default=None: named[name], rootpath=tmp_path))

    check(tmp_path / "new" / "folder" / "b.json")
    assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "a_file").write_text("")
    with pytest.raises(pytest.UsageError, match="--benchmark-json .*a_file cannot be written"):
        check(tmp_path / "a_file" / "b.json")
    with (tmp_path / "b.json").open("wb") as opened:  # by pytest-benchmark before 5.3
        check(opened)


def test_a_variant_that_was_never_recorded_fails_a_gate_and_is_no_news_without_one(project):
    record(project)
    project.baselines.write_text(project.baselines.read_text().replace('"int8"', '"int4"'))
    assert project.run("bench", "--variant=int8").ret == 0
    assert "no baseline" not in {row.status for row in project.results().verdicts}
    result = project.run("bench", "--variant=int8", "--gate")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["NO BASELINE int8 speedup: *has no row for int8 speedup; record it with *"])


def test_a_gate_fails_for_what_was_not_measured(project):
    record(project)
    result = project.run("bench", "--variant=int8", "--gate", "-k", "baseline")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["NOT MEASURED int8 speedup: no bench of this run measured it"])


def test_a_gate_on_another_torch_judges_nothing(project):
    record(project)
    project.baselines.write_text(project.baselines.read_text().replace('"2.15"', '"2.11"'))
    result = project.run("bench", "--variant=int8", "--gate")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["GATE FAILED: nothing could be judged: *torch 2.15 instead of 2.11; record again with *"]
    )


def test_a_damaged_baseline_stops_a_gate_before_it_runs(project):
    record(project)
    project.baselines.write_text(project.baselines.read_text()[:400])
    result = project.run("bench", "--gate")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: *test-2-cores.json is no JSON, or a part of it is missing*"])


def test_a_damaged_baseline_is_said_where_no_gate_was_asked_for(project):
    record(project)
    project.baselines.write_text("{")
    result = project.run("bench", "--variant=int8")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*test-2-cores.json is no JSON*restore it from version control"])


@pytest.mark.parametrize("option", ["--gate", "--claims", "--expected-update"])
def test_a_run_that_measured_nothing_passes_no_gate(project, option):
    result = project.bench(**CPU).run("bench", option, "-m", "memory")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"{option} judged nothing: this run measured nothing; run pytest bench"])


@pytest.mark.parametrize("option", ["--gate", "--expected-update"])
def test_too_few_rounds_for_a_verdict_are_wrong_usage(project, option):
    result = project.bench(**CPU).run("bench", option, "--rounds=5")
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"ERROR: {option} decides nothing in 5 rounds; give --rounds 6 or more"])


def test_a_failed_test_stays_a_failed_run(project):
    record(project)
    project.bench(**CPU, speedup="1 / 0")
    result = project.run("bench", "--variant=int8")
    assert result.ret == 1
    assert result.parseoutcomes()["failed"] == 1


# --- repeats


@pytest.fixture
def repeats(project, monkeypatch):
    """Runs the repeats in this process: the made-up machine holds there only."""

    def use(*changes):
        def run(command, cwd):
            project.bench(**CPU, **changes[len(done) % len(changes)])
            for module in [name for name in sys.modules if name.startswith("bench")]:
                del sys.modules[module]  # a fresh process would read the file again
            done.append(command)
            return project.run(*command[command.index("bench") :])

        done = []
        monkeypatch.setattr("conftest_plugins.verdicts.subprocess", SimpleNamespace(run=run))
        return done

    return use


def test_repeated_runs_that_agree(project, repeats):
    done = repeats({})
    result = project.bench(**CPU).run("bench", "--variant=int8", "--repeat=3", "--junitxml=one.xml")
    assert result.ret == 0
    assert len(done) == 2
    assert not any("junitxml" in word for command in done for word in command)
    assert project.status("int8", "latency_s") == ["agrees"]
    assert project.status("int8", "images") == ["agrees"]
    assert (project.path / "reports/latest/repeat-3/results.json").is_file()


def test_a_figure_that_differs_is_said_and_fails_nothing(project, repeats):
    repeats({"speedup": 1.9})
    assert project.bench(**CPU).run("bench", "--variant=int8", "--repeat", "2").ret == 0
    assert project.status("int8", "latency_s") == ["differs"]


def test_a_picture_that_differs_fails_the_run(project, repeats):
    repeats({"pixels": "b'other'"})
    result = project.bench(**CPU).run("bench", "--variant=int8", "--repeat", "2")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["DIFFERS int8 images: 0 of 1 pictures are identical in 2 runs"])


def test_a_repeat_that_leaves_nothing_is_an_error(project, monkeypatch):
    class Ended:
        returncode = 3

    monkeypatch.setattr("conftest_plugins.verdicts.subprocess", SimpleNamespace(run=lambda command, cwd: Ended))
    result = project.bench(**CPU).run("bench", "--variant=int8", "--repeat=2")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["another run left no results in *repeat-2 (exit status 3); see its output above"])


def test_a_run_that_was_cut_off_is_neither_recorded_nor_repeated(project):
    project.bench(**CPU, pixels="(_ for _ in ()).throw(KeyboardInterrupt())")
    result = project.run("bench", "--variant=int8", "--expected-update", "--repeat=2")
    assert result.ret == 2
    result.stdout.fnmatch_lines(["the run was cut off: nothing was repeated or recorded; let it end"])
    assert not project.baselines.exists()


def test_too_few_repeats_are_wrong_usage(project):
    result = project.bench(**CPU).run("bench", "--repeat=0")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: --repeat 0 is too small; give 1 or more"])


# --- folders


def runs_of(project):
    return sorted(folder for folder in (project.path / "reports").iterdir() if not folder.is_symlink())


def test_a_smaller_run_leaves_the_one_before_where_it_is(project):
    arguments = ("bench", "--variant=int8", "--junitxml=reports/latest/junit.xml")
    project.bench(**CPU).run(*arguments)
    (first,) = runs_of(project)
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    assert {"results.json", "junit.xml"} <= {file.name for file in before}
    assert project.bench(**CPU).run(*arguments, "-k", "baseline").ret == 0
    assert {file: file.read_bytes() for file in first.rglob("*") if file.is_file()} == before
    (second,) = set(runs_of(project)) - {first}
    assert (project.path / "reports" / "latest").resolve() == second
    assert (second / "junit.xml").is_file()
    assert project.results().variants == ("baseline",)


def test_a_run_without_a_figure_leaves_no_folder_and_latest_where_it_is(project):
    project.bench(**CPU).run("bench", "--variant=int8")
    before = runs_of(project)
    project.run("bench", "--collect-only")
    project.run("bench", "-k", "nothing_at_all")
    assert runs_of(project) == before
    assert project.results().variants == ("baseline", "int8")


def test_a_run_that_was_cut_off_is_the_latest_and_says_so(project):
    project.bench(**CPU).run("bench", "--variant=int8")
    (first,) = runs_of(project)
    project.bench(**CPU, pixels="(_ for _ in ()).throw(KeyboardInterrupt())").run("bench", "--variant=int8")
    assert not project.results().complete
    assert Results.read(first / "results.json").complete


def test_a_folder_with_another_run_is_refused(project):
    assert project.bench(**CPU).run("bench", "--variant=int8", "--output=mine").ret == 0
    before = (project.path / "mine" / "results.json").read_bytes()
    assert not (project.path / "reports").exists()
    result = project.run("bench", "--variant=int8", "--output", "mine")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: --output mine holds another run; name a new folder, or remove it"])
    assert (project.path / "mine" / "results.json").read_bytes() == before
    assert project.run("bench", "--output=mine", "--collect-only").ret == 0


def test_the_end_names_the_files_that_are_there(project):
    result = project.bench(**CPU).run("bench", "--variant=int8")
    result.stdout.fnmatch_lines([f"written to {runs_of(project)[0]}: results.json"])


def test_workers_write_into_the_folder_of_their_run(pytester):
    pytest.importorskip("xdist")
    root = str(EXPECTED.parent)
    pytester.makeconftest(
        f"import sys; sys.path.insert(0, {root!r})\n"
        "from optsd import report\nreport.write = print\n"
        "from optsd.measure import environment\nenvironment.machine = lambda *_: {}\n"
        + CONFTEST.format(**CPU).replace("50, 7.5, 512, 512, 4", "20, 5.0, 64, 64, 4")
        + "pytest_plugins = ['conftest_plugins.options', 'conftest_plugins.results', 'conftest_plugins.verdicts']\n"
    )
    pytester.makepyfile(
        "from conftest_plugins.options import OUTPUT\n"
        "def test_one(recorder, pytestconfig):\n"
        "    recorder.measure('baseline', 'speedup', 1.0)\n"
        "    folder = pytestconfig.stash[OUTPUT]\n    folder.mkdir(parents=True, exist_ok=True)\n"
        "    (folder / 'picture').write_text('x')\n"
    )
    pytester.makeini("[pytest]\nmarkers =\n    claims\n    estimate\n")
    assert pytester.runpytest_subprocess("-n1", "-p", "no:cacheprovider").ret == 0
    reports = pytester.path / "reports"
    (folder,) = (folder for folder in reports.iterdir() if not folder.is_symlink())
    assert {"picture", "results.json"} <= {file.name for file in folder.iterdir()}
    assert (reports / "latest").resolve() == folder


# --- what lies beside the results


def test_files_for_ci_and_the_load_of_the_machine(project):
    project.bench(**CPU).run("bench", "--variant=int8", "--junitxml=junit.xml")
    folder = project.path / "reports" / "latest"
    rows = json.loads((folder / "benchmark-bigger-is-better.json").read_text())
    assert {row["name"] for row in rows} == {"baseline speedup", "int8 speedup"}
    assert (folder / "benchmark-smaller-is-better.json").is_file()
    assert "test_speed" in (project.path / "junit.xml").read_text()
    assert 0 <= project.results().machine["load"]["others_cpu_share"] <= 1


def test_claim_out_writes_claims_that_the_same_run_reproduces(project):
    result = project.bench(speedup=1.4, **CPU).run("bench", "--variant=int8", "--claim-out=mine.json")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["claims written to mine.json"])
    again = project.run("bench", "--variant=int8", "--claims=mine.json")
    assert again.ret == 0
    rows = [row for row in project.results().verdicts if row.source.startswith("claims/mine.json")]
    assert {row.status for row in rows} == {"reproduced"}
    assert {row.metric for row in rows} == {"latency_s", "speedup"}


def test_what_data_sheets_say_stands_beside_claims_of_another_workload(project):
    (project.path / "expected" / "bounds.json").write_text((EXPECTED / "bounds.json").read_text())
    project.bench(**CPU).run("bench", "--variant=int8")
    beyond = [row for row in project.results().bounds if row["status"] == "unattainable"]
    assert {(row["variant"], row["metric"]) for row in beyond} == {
        ("int8", "memory_reduction"), ("int4", "memory_reduction"),
    }  # fmt: skip
    assert all("A100 80 GB SXM" in row["arithmetic"] for row in beyond)

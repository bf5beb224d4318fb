import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.judge.expectations import Tolerance
from optsd.judge.reading import read_baselines
from optsd.judge.recording import baseline_file, update
from optsd.judge.regressions import RECORDED, judge_regressions
from optsd.records import Measurement


@pytest.fixture
def file(tmp_path, make_run):
    return baseline_file(tmp_path, make_run())


def test_the_file_is_called_by_the_machine(tmp_path, make_run, guide_run):
    assert baseline_file(tmp_path, make_run()).name == "test-cpu-2-ghz-2-cores.json"
    assert baseline_file(tmp_path, guide_run()).name == "nvidia-h100.json"
    nameless = replace(make_run(), machine={"cpu": {"name": "../../x"}})
    assert baseline_file(tmp_path, nameless).parent == tmp_path
    assert baseline_file(tmp_path, nameless).name == "x-0-cores.json"


def test_what_was_recorded_is_read_back_and_judged_ok(file, make_run):
    update(file, make_run())
    baselines = read_baselines(file)
    assert {verdict.status for verdict in judge_regressions(baselines, make_run())} == {"ok"}
    run = baselines.runs[0]
    assert run.rounds == 10
    assert run.versions["torch"] == "2.15.0"
    assert run.created == "2025-01-01T00:00:00+00:00"
    assert run.kernels["int8"] == "flash"
    assert ("baseline", "speedup") not in {(row.variant, row.metric) for row in run.rows}


def test_the_same_run_gives_the_same_bytes_whatever_its_order(file, make_run):
    results = make_run()
    update(file, results)
    before = file.read_bytes()
    update(file, replace(results, measurements=results.measurements[::-1]))
    assert file.read_bytes() == before
    rows = json.loads(before)["runs"][0]["rows"]
    assert [(row["variant"], row["metric"]) for row in rows] == sorted((row["variant"], row["metric"]) for row in rows)


def test_other_workloads_and_variants_keep_their_figures(file, make_run):
    update(file, make_run())
    other = make_run()
    update(file, replace(other, workload=replace(other.workload, steps=50)))
    written = update(file, make_run({"flash": 3.0}, seed=5))
    assert len(written.runs) == 2
    run = written.run(make_run().workload)
    assert run.row("flash", "speedup").value == pytest.approx(3.0, rel=0.05)
    assert run.row("int8", "speedup").value == pytest.approx(1.4, rel=0.05)
    assert run.kernels["int8"] == "flash"


def test_figures_of_another_torch_are_not_mixed_in(file, make_run):
    update(file, make_run())
    results = make_run({"flash": 1.2})
    written = update(file, replace(results, machine={**results.machine, "versions": {"torch": "2.16"}}))
    assert {row.variant for row in written.runs[0].rows} == {"baseline", "flash"}


def test_tolerances_that_a_person_gave_are_kept(file, make_run):
    update(file, make_run())
    data = json.loads(file.read_text())
    data["tolerance"]["latency_s"] = {"relative": 0.2}
    row = next(row for row in data["runs"][0]["rows"] if (row["variant"], row["metric"]) == ("int8", "speedup"))
    row["tolerance"] = {"absolute": 0.3}
    file.write_text(json.dumps(data))
    written = update(file, make_run(seed=3))
    run = written.runs[0]
    assert written.tolerance_of(run.row("int8", "speedup")) == Tolerance(absolute=0.3)
    assert written.tolerance_of(run.row("int8", "latency_s")) == Tolerance(relative=0.2)
    assert written.tolerance_of(run.row("flash", "speedup")) == Tolerance(relative=0.1)


def test_zero_is_recorded_with_a_tolerance_that_means_something(file, make_run, with_value):
    results = with_value(with_value(make_run(), "flash", "lpips_shapes", 0.0), "flash", "fid_shapes", 0.0)
    written = update(file, results)
    verdicts = judge_regressions(written, results)
    assert {verdict.status for verdict in verdicts} == {"ok"}


def test_a_run_without_a_figure_writes_nothing(file, make_run):
    with pytest.raises(BadInput, match="measured nothing that could be recorded; run the benches"):
        update(file, replace(make_run(), measurements=()))
    assert not file.exists()


def test_a_damaged_file_is_not_overwritten(file, make_run):
    file.write_text('{"schema": 1, ')
    with pytest.raises(BadInput, match="restore it from version control"):
        update(file, make_run())
    assert file.read_text() == '{"schema": 1, '


METRIC_ROWS = st.builds(
    Measurement,
    variant=st.sampled_from(["baseline", "int8", "flash"]),
    metric=st.sampled_from([*RECORDED, "compile_s"]),
    unit=st.just(""),
    value=st.one_of(st.just(0.0), st.floats(allow_nan=False, allow_infinity=False)),
    low=st.none() | st.floats(-1, 1),
    high=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    samples=st.lists(st.floats(-0.1, 2), max_size=3).map(tuple),
)


@given(
    rows=st.lists(METRIC_ROWS, max_size=6),
    load=st.dictionaries(st.sampled_from(["others_cpu_share"]), st.floats() | st.none()),
    given_tolerance=st.sampled_from([None, {"relative": 0.2}, {"absolute": 0.02}]),
)
def test_whatever_is_recorded_can_be_read(tmp_path_factory, make_run, refusal, rows, load, given_tolerance):
    """Into a new file and over one that is there: either it is read back and judged, or the old bytes stay."""
    file = tmp_path_factory.mktemp("recorded") / "machine.json"
    update(file, make_run())
    if given_tolerance:
        data = json.loads(file.read_text())
        data["runs"][0]["rows"][0]["tolerance"] = given_tolerance
        file.write_text(json.dumps(data))
    before = file.read_bytes()
    results = make_run()
    results = replace(results, measurements=tuple(rows), machine={**results.machine, "load": load})
    if refusal(update, file, results):
        assert file.read_bytes() == before
    else:
        judge_regressions(read_baselines(file), results)


@pytest.mark.parametrize("name", ["objects_right", "clip_shapes", "ssim", "peak_memory_bytes", "is"])
def test_an_interval_may_begin_at_zero(file, make_run, with_value, name):
    results = with_value(make_run(), "int8", name, 0.1, low=0.0, high=0.3)
    row = update(file, results).runs[0].row("int8", name)
    assert (row.value, row.low, row.high) == (0.1, 0.0, 0.3)
    assert {verdict.status for verdict in judge_regressions(read_baselines(file), results)} == {"ok"}


def test_no_object_right_is_a_figure_too(file, make_run, with_value):
    """A variant that draws nothing any more: recorded as it is, and against a better record a regression."""
    none_right = with_value(make_run(), "int8", "objects_right", 0.0)
    update(file, with_value(make_run(), "int8", "objects_right", 0.9))
    found = {verdict.metric: verdict.status for verdict in judge_regressions(read_baselines(file), none_right)}
    assert found["objects_right"] == "regressed"
    update(file, none_right)
    assert {verdict.status for verdict in judge_regressions(read_baselines(file), none_right)} == {"ok"}


def test_a_figure_that_was_measured_twice_is_not_recorded(file, make_run):
    results = make_run()
    again = replace(results.get("int8", "latency_s"), value=9.0)
    with pytest.raises(BadInput, match="it has int8 latency_s twice.*; let every bench run once, without reruns"):
        update(file, replace(results, measurements=(*results.measurements, again)))
    assert not file.exists()


def test_a_time_of_zero_is_not_recorded(file, make_run, with_value):
    with pytest.raises(BadInput, match=r"this run cannot be recorded: .*\(int8 latency_s\): value 0 is not above zero"):
        update(file, with_value(make_run(), "int8", "latency_s", 0.0))
    assert not file.exists()

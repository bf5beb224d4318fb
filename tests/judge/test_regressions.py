from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.judge.expectations import GUIDE_TOLERANCES, Baselines, Row, Tolerance
from optsd.judge.recording import as_baselines
from optsd.judge.regressions import RECORDED, TIMED, _difference, judge_regressions, noise_floor, worsening
from optsd.judge.verdicts import ABSENT, FAILING, PASSING, failing, nothing_was_judged
from optsd.metrics import METRICS, metric, zero_is_a_figure
from optsd.records import Measurement, Results


def statuses(verdicts, metric="speedup"):
    return {verdict.variant: verdict.status for verdict in verdicts if verdict.metric == metric}


def verdict_of(verdicts, variant, metric):
    return next(verdict for verdict in verdicts if (verdict.variant, verdict.metric) == (variant, metric))


@pytest.fixture(scope="session")
def recorded(make_run):
    return as_baselines(make_run(seed=1), "baselines/test.json")


def test_equal_builds_are_ok(make_run, recorded):
    verdicts = judge_regressions(recorded, make_run(seed=2))
    assert {verdict.status for verdict in verdicts} == {"ok"}
    assert not failing(verdicts, gate=True)


def test_a_third_slower_is_regressed_and_says_by_how_much(make_run, recorded):
    verdicts = judge_regressions(recorded, make_run({"int8": 1.4 / 1.3, "flash": 1.2}, seed=2))
    assert statuses(verdicts) == {"int8": "regressed", "flash": "ok"}
    found = verdict_of(verdicts, "int8", "speedup")
    assert "30." in found.note or "29." in found.note
    assert found.source == "test.json: int8 speedup"
    assert found.tolerance == "±10 %"
    assert [row.variant for row in failing(verdicts, gate=False)] == ["int8"] * 3  # speedup, seconds and memory


def test_faster_is_improved_and_offered_never_taken(make_run, recorded):
    verdicts = judge_regressions(recorded, make_run({"int8": 2.0, "flash": 1.2}, seed=2))
    assert statuses(verdicts)["int8"] == "improved"
    assert "tighten the baseline with --expected-update" in verdict_of(verdicts, "int8", "speedup").note


def test_noise_that_hides_the_limit_is_insufficient_and_says_how_many_rounds(make_run, recorded):
    noisy = make_run({"int8": 1.4 / 1.05, "flash": 1.2}, noise=0.15, seed=4)
    found = verdict_of(judge_regressions(recorded, noisy), "int8", "speedup")
    assert found.status == "insufficient data"
    assert "more rounds would tell" in found.note


def test_few_rounds_are_insufficient(make_run, recorded):
    found = verdict_of(judge_regressions(recorded, make_run({"int8": 0.7}, rounds=3)), "int8", "speedup")
    assert found.status == "insufficient data"
    assert found.note == "this run has 3 rounds, 3 more are needed (--rounds 6)"
    old = as_baselines(make_run(rounds=4), "old.json")
    found = verdict_of(judge_regressions(old, make_run({"int8": 0.7})), "int8", "speedup")
    assert found.note == "the baseline has 4 rounds, 2 more are needed (--rounds 6)"


def test_noise_floor_widens_the_interval(make_run, recorded):
    slower = make_run({"int8": 1.4 / 1.13, "flash": 1.2}, seed=2)
    assert statuses(judge_regressions(recorded, slower))["int8"] == "regressed"
    shifted = tuple(
        replace(row, value=row.value * 1.08, low=row.low * 1.08, high=row.high * 1.08)
        if (row.variant, row.metric) == ("baseline", "speedup")
        else row
        for row in slower.measurements
    )
    shifty = replace(slower, measurements=shifted)
    assert noise_floor(shifty) == pytest.approx(0.08, abs=0.02)
    assert statuses(judge_regressions(recorded, shifty))["int8"] == "insufficient data"


def test_noise_that_the_interval_explains_is_not_counted_twice(make_run):
    noisy = make_run()
    rows = tuple(
        replace(row, value=1.08, low=0.97, high=1.2) if (row.variant, row.metric) == ("baseline", "speedup") else row
        for row in noisy.measurements
    )
    assert noise_floor(replace(noisy, measurements=rows)) == 0


def test_seconds_of_two_sessions_say_nothing_on_a_busy_machine_but_ratios_do(make_run, recorded):
    busy = make_run({"int8": 1.4 / 1.3, "flash": 1.2}, seed=2)
    busy = replace(busy, machine={**busy.machine, "load": {"others_cpu_share": 0.45}})
    verdicts = judge_regressions(recorded, busy)
    assert statuses(verdicts) == {"int8": "regressed", "flash": "ok"}
    assert statuses(verdicts, "latency_s") == dict.fromkeys(("baseline", "int8", "flash"), "insufficient data")
    note = verdict_of(verdicts, "int8", "latency_s").note
    assert note.startswith("other processes used 45% of the CPU during this run")


def test_a_shared_gpu_is_warned_of(make_run, guide_run):
    shared = guide_run(seed=2, images=0)
    shared = replace(shared, machine={**shared.machine, "load": {"others_on_gpu": 2}})
    verdicts = judge_regressions(as_baselines(guide_run(seed=1, images=0), "b.json"), shared)
    assert statuses(verdicts)["int8"] == "ok"
    assert "warning: 2 other processes used the GPU meanwhile" in verdict_of(verdicts, "int8", "speedup").note


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"versions": {"torch": "2.11.0"}}, "torch 2.11.0 instead of 2.15.0"),
        ({"threads": {"torch": 1}}, "threads 1 instead of 2"),
        ({"cpu": {"name": "Other", "usable_cores": 64}}, "machine other-64-cores instead of test-cpu-2-ghz-2-cores"),
    ],
)
def test_another_machine_is_not_comparable(make_run, recorded, change, note):
    results = make_run({"int8": 0.5})
    verdicts = judge_regressions(recorded, replace(results, machine=results.machine | change))
    assert {verdict.status for verdict in verdicts} == {"not comparable"}
    assert note in verdicts[0].note
    assert nothing_was_judged(verdicts)


def test_another_gpu_or_driver_is_not_comparable(guide_run):
    before = guide_run()
    for gpu in ({"name": "NVIDIA H100", "driver": "999"}, {"name": "NVIDIA T4", "driver": "570.1"}):
        after = replace(before, machine={**before.machine, "gpus": [gpu]})
        verdicts = judge_regressions(as_baselines(before, "b.json"), after)
        assert {verdict.status for verdict in verdicts} == {"not comparable"}


def test_another_attention_kernel_is_not_comparable(make_run, recorded):
    verdicts = judge_regressions(recorded, make_run(kernel="math"))
    assert statuses(verdicts) == dict.fromkeys(("int8", "flash"), "not comparable")
    assert "attention kernel math instead of flash" in verdicts[0].note


def test_without_a_file_nothing_passes(make_run):
    verdicts = judge_regressions(None, make_run())
    assert {verdict.status for verdict in verdicts} == {"no baseline"}
    assert verdicts[0].note == "this machine has no file; record it with --expected-update"
    assert len(failing(verdicts, gate=True)) == len(verdicts)
    assert failing(verdicts, gate=False) == []


def test_another_workload_and_a_missing_row_have_no_baseline(make_run, recorded):
    results = make_run()
    other = replace(results, workload=replace(results.workload, steps=21))
    assert "has no run of this workload" in judge_regressions(recorded, other)[0].note
    verdicts = judge_regressions(recorded, make_run({"int4": 1.5}))
    assert verdict_of(verdicts, "int4", "speedup").status == "no baseline"
    assert "has no row for int4 speedup" in verdict_of(verdicts, "int4", "speedup").note
    assert statuses(verdicts)["int8"] == "not measured"


def test_a_failed_bench_says_why_it_measured_nothing(make_run, recorded, with_value):
    results = with_value(make_run(), "int8", "speedup", "absent")
    results = replace(results, failures=({"variant": "int8", "stage": "test_speed", "reason": "no memory"},))
    assert verdict_of(judge_regressions(recorded, results), "int8", "speedup").note == "no memory"
    results = with_value(make_run(), "int8", "speedup", None)
    assert verdict_of(judge_regressions(recorded, results), "int8", "speedup").note == "the bench failed"


def test_only_the_chosen_variants_are_judged(make_run, recorded):
    verdicts = judge_regressions(recorded, make_run({"flash": 1.2}), ("baseline", "flash"))
    assert {verdict.variant for verdict in verdicts} == {"baseline", "flash"}


def test_quality_is_judged_by_its_own_interval(make_run, with_value):
    def run(value, **bounds):
        return with_value(make_run(), "int8", "clip_shapes", value, **bounds)

    recorded = as_baselines(run(0.320, low=0.315, high=0.325), "b.json")

    def status(results):
        return verdict_of(judge_regressions(recorded, results), "int8", "clip_shapes").status

    assert status(run(0.318, low=0.314, high=0.322)) == "ok"
    assert status(run(0.320, low=0.250, high=0.390)) == "ok"  # the very pictures, though they are too few
    assert status(run(0.300, low=0.290, high=0.310)) == "insufficient data"
    assert status(run(0.280, low=0.275, high=0.285)) == "regressed"
    assert status(run(0.380, low=0.370, high=0.390)) == "improved"


# --- properties: whatever is missing, wrong or the other way round, nothing passes that should not

numbers = st.floats(1e-3, 1e3)
doubtful = st.one_of(st.none(), st.floats(-10, 1e3), st.just(0.0))
METRIC_NAMES = st.sampled_from(sorted(RECORDED))


def single(name, value, samples=()):
    note = "" if value is not None else "it failed"
    bounds = (min(samples), max(samples)) if samples else (None, None)
    return Measurement("int8", name, METRICS[name].unit, value, *bounds, tuple(samples), note)


def judge_single(make_run, name, before, after, machine=None):
    base = make_run({})

    def run(row):
        return replace(base, measurements=(row,) if row else (), machine=machine or base.machine)

    recorded = replace(as_baselines(replace(base, measurements=(before,)), "b.json"), tolerance=dict(GUIDE_TOLERANCES))
    (verdict,) = judge_regressions(recorded, run(after))
    return verdict.status


@given(name=METRIC_NAMES, before=numbers, after=doubtful, seed=st.integers(0, 9))
def test_a_figure_passes_only_if_it_is_there_and_good_enough(make_run, name, before, after, seed):
    tolerance = Baselines("", "", dict(GUIDE_TOLERANCES)).tolerance_of(Row("int8", name, before))
    timed = name in TIMED
    rows = [single(name, value, [value] * 6 if timed and value is not None else ()) for value in (before, after)]
    status = judge_single(make_run, name, *rows)
    if after is None or (after <= 0 and not zero_is_a_figure(name)):
        assert status == "not measured"
        return
    higher = metric(name).better == "higher"
    if after <= 0 and tolerance.absolute is None:  # no object is right, or no distance is left
        assert status == ("regressed" if higher else "improved")
        return
    if tolerance.absolute is not None:
        worse = (before - after) if higher else (after - before)
        expected = "regressed" if worse > tolerance.absolute else "improved" if worse < -tolerance.absolute else "ok"
    else:
        worse = before / after if higher else after / before
        limit = 1 + tolerance.relative
        expected = "regressed" if worse > limit else "improved" if worse < 1 / limit else "ok"
    assert status == expected


@given(name=METRIC_NAMES, before=numbers, after=numbers, rounds=st.integers(0, 5))
def test_a_timing_of_few_rounds_never_passes_nor_fails(make_run, name, before, after, rounds):
    if name in TIMED:
        rows = [single(name, value, [value] * rounds) for value in (before, after)]
        assert judge_single(make_run, name, *rows) == "insufficient data"


@given(
    name=METRIC_NAMES,
    before=st.lists(numbers, min_size=5, max_size=12),
    after=st.lists(numbers, min_size=5, max_size=12),
    factor=st.floats(1, 3),
)
def test_better_is_never_worse(make_run, name, before, after, factor):
    rank = ["regressed", "insufficient data", "ok", "improved"]
    better = [reading * factor if metric(name).better == "higher" else reading / factor for reading in after]
    middle = sorted(before)[len(before) // 2]
    results = []
    for readings in (after, better):
        value = sorted(readings)[len(readings) // 2]
        rows = single(name, middle, before), single(name, value, readings)
        results.append(rank.index(judge_single(make_run, name, *rows)))
    assert results[1] >= results[0]


@given(name=METRIC_NAMES, before=numbers, after=numbers, torch=st.sampled_from(["2.11.0", None]))
def test_another_machine_neither_passes_nor_fails(make_run, name, before, after, torch):
    machine = {**make_run({}).machine, "versions": {"torch": torch} if torch else {}}
    rows = [single(name, value, [value] * 6) for value in (before, after)]
    assert judge_single(make_run, name, *rows, machine=machine) not in PASSING | FAILING


@given(st.lists(st.sampled_from(sorted(PASSING | FAILING | ABSENT | {"not comparable", "insufficient data"}))))
def test_a_gate_fails_for_all_that_is_absent(found):
    from optsd.records import Verdict

    verdicts = [Verdict("int8", "speedup", status, 1, 1, "", "") for status in found]
    assert bool(failing(verdicts, gate=True)) == bool({*found} & (FAILING | ABSENT))
    assert bool(failing(verdicts, gate=False)) == bool({*found} & FAILING)
    assert nothing_was_judged(verdicts) == (not {*found} & (PASSING | FAILING))


def test_an_interval_that_reaches_zero_bounds_no_ratio():
    row = Row("int8", "fid", 10.0, low=-1.0, high=20.0)
    found = Measurement("int8", "fid", "", 10.0, 9.0, 11.0)
    worse = worsening(row, found, Tolerance(relative=0.05))
    assert worse.high == float("inf")
    assert worse.low < worse.value


def test_absolute_tolerances_count_in_the_figures_own_unit():
    row = Row("int8", "psnr_db", 30.0)
    tolerance = Tolerance(absolute=1.0)
    for value, worse_by in ((28.0, 2.0), (32.0, -2.0)):
        assert worsening(row, Measurement("int8", "psnr_db", "dB", value), tolerance).value == worse_by
    timed = Row("int8", "latency_s", 1.0, samples=(1.0,) * 5)
    slower = Measurement("int8", "latency_s", "s", 1.5, samples=(1.5,) * 5)
    assert worsening(timed, slower, Tolerance(absolute=0.2)).low == pytest.approx(0.5)


def test_results_of_nothing_are_judged_as_nothing(make_run):
    empty = Results(machine={}, workload=make_run().workload)
    assert judge_regressions(None, empty) == ()
    assert nothing_was_judged(())


def test_another_machine_is_named_by_what_it_has_and_has_not():
    assert _difference("flags", ["avx2", "avx_vnni"], ["avx2", "avx512f"]) == "flags: avx_vnni is new, avx512f is gone"
    assert _difference("cores", 2, 4) == "cores 2 instead of 4"


def test_a_quality_figure_of_other_pictures_is_another_figure(make_run, with_value) -> None:
    """FID of 8 pictures is four times that of 32, whatever was changed."""

    def of(count: int, fid: float) -> Results:
        return with_value(make_run(images=count), "int8", "fid", fid)

    file = as_baselines(of(32, 0.6), "before.json")
    by_count = {count: judge_regressions(file, of(count, 2.6), ["int8"]) for count in (8, 32)}
    said = {count: next(row for row in rows if row.metric == "fid") for count, rows in by_count.items()}
    assert (said[8].status, said[8].note) == ("not comparable", "8 pictures instead of 32")
    assert said[32].status == "regressed"
    assert {row.status for row in by_count[8] if row.metric == "speedup"} == {"ok"}

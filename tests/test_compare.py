import contextlib
import io
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.compare import main
from optsd.errors import BadInput


@pytest.fixture
def saved(tmp_path):
    def save(name, content):
        file = tmp_path / name
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file)

    return save


def pytest_benchmark(seconds, data=True, extra=None, rounds=12, run=None):
    """The part of pytest-benchmark's JSON that matters, as its version 5 writes it."""
    generator = np.random.default_rng(round(sum(seconds.values()) * 1e6))
    benchmarks = []
    for name, value in seconds.items():
        readings = list(generator.lognormal(np.log(value), 0.01, rounds))
        stats = {"median": float(np.median(readings)), **({"data": readings} if data else {})}
        benchmarks.append({"fullname": name, "name": name, "stats": stats, "extra_info": (extra or {}).get(name, {})})
    machine = {"cpu": {"brand_raw": "CPU", "count": 2}, "python_version": "3.11.7"}
    ours = {"optsd": {"machine": run.machine, "workload": vars(run.workload)}} if run else {}
    about = {"machine_info": machine, "datetime": "2025-01-01T00:00:00", "version": "5.3.1"}
    return {**about, **ours, "benchmarks": benchmarks}


@pytest.mark.parametrize(
    ("factor", "status", "said"), [(1.0, 0, "passed: 8 ok"), (1.3, 1, "regressed"), (0.5, 0, "improved")]
)
def test_results_of_two_runs(saved, capsys, make_run, factor, status, said):
    before = saved("a.json", make_run(seed=1).to_json())
    after = saved("b.json", make_run({"int8": 1.4 / factor, "flash": 1.2}, seed=2).to_json())
    assert main([before, after]) == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.3, 1)])
def test_files_of_pytest_benchmark(saved, factor, status):
    before = saved("a.json", pytest_benchmark({"bench.py::test_a": 1.0, "bench.py::test_b": 2.0}))
    after = saved("b.json", pytest_benchmark({"bench.py::test_a": factor, "bench.py::test_b": 2.0001}))
    assert main([before, after]) == status


def test_our_records_in_pytest_benchmarks_file_are_used(saved, capsys, make_run):
    def extra(results):
        rows = [row for row in results.measurements if row.variant == "int8"]
        return {"t": {"variant": "int8", **{row.metric: {**vars(row), "samples": list(row.samples)} for row in rows}}}

    first, second = make_run(seed=1), make_run({"int8": 1.0}, seed=2)
    before = saved("a.json", pytest_benchmark({"t": 1.0}, extra=extra(first), run=first))
    after = saved("b.json", pytest_benchmark({"t": 1.0}, extra=extra(second), run=second))
    assert main([before, after]) == 1
    assert "int8     speedup" in capsys.readouterr().out

    more = replace(second, workload=replace(second.workload, steps=80, height=512))
    other = saved("c.json", pytest_benchmark({"t": 1.0}, extra=extra(second), run=more))
    assert main([before, other]) == 1
    printed = capsys.readouterr().out
    assert "regressed" not in printed
    assert "nothing could be compared: the runs are of another workload" in printed

    unsaid = saved("d.json", pytest_benchmark({"t": 1.0}, extra=extra(second)))
    with pytest.raises(BadInput, match=r"d.json does not say what was run.*; compare the results.json of the two runs"):
        main([before, unsaid])


def test_a_file_without_single_readings_cannot_be_judged(saved, capsys):
    before = saved("a.json", pytest_benchmark({"t": 1.0}, data=False))
    after = saved("b.json", pytest_benchmark({"t": 9.0}, data=False))
    assert main([before, after]) == 1
    assert "nothing could be decided: there is too little data" in capsys.readouterr().out


def test_runs_with_nothing_in_common_do_not_pass(saved, capsys):
    before = saved("a.json", pytest_benchmark({"test_a": 1.0}))
    after = saved("b.json", pytest_benchmark({"test_renamed": 1.0}))
    assert main([before, after]) == 1
    assert "nothing could be compared" in capsys.readouterr().out


def test_what_one_run_lacks_fails_a_gate_only(saved, make_run):
    before = saved("a.json", make_run(seed=1).to_json())
    after = saved("b.json", make_run({"flash": 1.2}, seed=2).to_json())
    assert main([before, after]) == 0
    assert main(["--gate", before, after]) == 1


def test_tolerances_can_be_given(saved, make_run):
    before = saved("a.json", make_run({"int8": 1.4}, seed=1).to_json())
    after = saved("b.json", make_run({"int8": 1.4 / 1.3}, seed=2).to_json())
    assert main([before, after]) == 1
    assert main(["--tolerance", "performance=50%", before, after]) == 0
    assert main(["--tolerance", "performance=50%", "--tolerance", "speedup=0.01", before, after]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speedup", "--tolerance speedup is no tolerance; write latency_s=20% or clip=0.01"),
        ("speedup=much", "is no tolerance"),
        ("speedup=-1", "is no tolerance"),
        ("speed=1%", "unknown metric 'speed'; name a metric, performance or quality"),
        ("speedup=100%", "would let everything pass; give less than 100%"),
    ],
)
def test_wrong_tolerances(text, message):
    with pytest.raises(BadInput) as error:
        main(["--tolerance", text, "a.json", "b.json"])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no results file of schema 1"),
        ('{"benchmarks": [{"name": "t"}]}', "has a benchmark that pytest-benchmark would not write"),
        ('{"benchmarks": 3}', "has a benchmark that pytest-benchmark would not write"),
    ],
)
def test_files_that_are_no_runs(saved, make_run, content, message):
    with pytest.raises(BadInput, match=message):
        main([saved("a.json", content), saved("b.json", make_run().to_json())])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        main([str(tmp_path / "a.json"), str(tmp_path / "b.json")])


def test_verdicts_as_json(saved, capsys, make_run):
    file = saved("a.json", make_run().to_json())
    assert main(["--json", file, file]) == 0
    assert {row["status"] for row in json.loads(capsys.readouterr().out)} == {"ok"}


def test_from_the_shell_it_imports_no_torch_and_costs_little_more_than_numpy(saved, make_run):
    file = saved("a.json", make_run({f"deepcache:{n}": 1.0 for n in range(2, 12)}).to_json())
    code = "import sys; from optsd.cli import main; s = main(['compare', *sys.argv[1:]]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, file, file], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")

    def seconds(code):
        command = [sys.executable, "-c", f"{code}; import time; print(time.process_time())", file, file]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    # Processor time beside that of what it cannot do without, in turn: of any machine, and whoever else is on it.
    comparing = "import sys; from optsd.cli import main; main(['compare', *sys.argv[1:]])"
    both = [(seconds(comparing), seconds("import numpy")) for _ in range(2)]
    # Half a second, as it always was, where NumPy takes a tenth; torch alone is ten times as much as NumPy.
    assert min(ours for ours, _ in both) < 5 * min(theirs for _, theirs in both)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.update(value=0), "int8 latency_s: 0 is no measurement"),
        (lambda row: row.update(value=-0.5), "int8 latency_s: -0.5 is no measurement"),
        (lambda row: row["samples"].__setitem__(2, 0.0), "int8 latency_s: reading 3: 0 is no measurement"),
        (lambda row: row["samples"].__setitem__(2, float("nan")), "(int8 latency_s): reading 3 is nan, not a number"),
        (lambda row: row.update(value=float("inf")), "(int8 latency_s): value is inf, not a number"),
        (lambda row: row.update(value="0.5 s"), "(int8 latency_s): value is '0.5 s', not a number"),
        (lambda row: row.update(value=10**400), "(int8 latency_s): value is 1000"),
        (lambda row: row.update(samples="fast"), "(int8 latency_s): samples is 'fast', not list"),
        (lambda row: row.update(samples=None), "(int8 latency_s): samples is None, not list"),
        (lambda row: row.update(value=True), "(int8 latency_s): value is True, not a number"),
        (lambda row: row.update(surprise=1), "(int8 latency_s): Measurement.__init__() got an unexpected"),
        (lambda row: row.pop("unit"), "(int8 latency_s): Measurement.__init__() missing 1 required"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_one_figure_that_is_none_stops_no_other(saved, capsys, make_run, change, said, which):
    """Status 1 is a regression's: this is 2, and file and reading are named, whichever run has it."""
    runs = [json.loads(make_run(seed=seed).to_json()) for seed in (1, 2)]
    change(next(row for row in runs[which]["measurements"] if (row["variant"], row["metric"]) == ("int8", "latency_s")))
    files = [saved(name, json.dumps(run)) for name, run in zip(("a.json", "b.json"), runs, strict=True)]
    assert main(files) == 2
    printed = capsys.readouterr()
    assert f"optsd: {files[which]}" in printed.err
    assert said in printed.err
    assert printed.out.count("\nok ") == 7
    assert printed.out.count("\nnot measured ") == 1
    assert said in printed.out


def test_a_regression_beside_a_figure_that_is_none_is_a_regression(saved, make_run):
    runs = [json.loads(make_run({"int8": speed}, seed=seed).to_json()) for seed, speed in ((1, 1.4), (2, 1.0))]
    runs[1]["measurements"][0]["value"] = 0
    assert main([saved(f"{number}.json", json.dumps(run)) for number, run in enumerate(runs)]) == 1


def test_a_figure_that_is_there_twice_is_judged_by_neither(saved, capsys, make_run):
    run = make_run(seed=1)
    twice = replace(run, measurements=(*run.measurements, replace(run.get("int8", "latency_s"), value=9.0)))
    assert main([saved("a.json", run.to_json()), saved("b.json", twice.to_json())]) == 2
    assert "b.json: int8 latency_s: it is there twice" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0.0, float("nan"), "x"])
def test_a_reading_of_pytest_benchmark_that_is_none(saved, capsys, value):
    runs = [pytest_benchmark({"test_a": 1.0, "test_b": 2.0}) for _ in range(2)]
    runs[1]["benchmarks"][0]["stats"]["data"][4] = value
    assert main([saved(f"{number}.json", json.dumps(run)) for number, run in enumerate(runs)]) == 2
    printed = capsys.readouterr()
    assert "1.json" in printed.err
    assert "test_a latency_s" in printed.err
    assert "reading 5" in printed.err
    assert "\nok " in printed.out


def test_nothing_is_a_share_of_zero(saved, capsys, make_run, with_value):
    runs = [with_value(make_run(seed=seed), "int8", "kid_shapes", seed / 1000) for seed in (0, 1)]
    files = [saved(f"{number}.json", run.to_json()) for number, run in enumerate(runs)]
    assert main(["--tolerance", "kid_shapes=5%", *files]) == 0
    assert "nothing is a share of 0: give the metric an absolute tolerance" in capsys.readouterr().out


@given(st.data())
def test_whatever_is_in_a_file_it_is_judged_or_refused_in_one_line(make_run, tmp_path_factory, junk, refusal, data):
    """Any value of a run, in either of the formats, replaced by any other that JSON, or Python's JSON, knows."""
    run = make_run(seed=1)
    whole = data.draw(st.sampled_from([json.loads(run.to_json()), pytest_benchmark({"t": 1.0, "u": 2.0})]))
    folder = tmp_path_factory.mktemp("junk")
    (folder / "a.json").write_text(json.dumps(junk(data, whole)), encoding="utf-8")
    (folder / "b.json").write_text(json.dumps(whole), encoding="utf-8")
    for files in itertools.permutations(("a.json", "b.json")):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            said = refusal(main, [str(folder / name) for name in files])
        assert not said or str(folder) in said


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf", b"\xff\xfe{", b"[" * 100_000, b"\x00", b'{"schema": 1, "schema": 1}', b"9" * 5000]
)
def test_bytes_that_are_no_run(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.json"):
        main([str(tmp_path / "a.json"), str(tmp_path / "a.json")])


def test_a_byte_order_mark_is_no_mistake(tmp_path, make_run):
    (tmp_path / "a.json").write_text(make_run().to_json(), encoding="utf-8-sig")
    assert main([str(tmp_path / "a.json")] * 2) == 0


def test_figures_have_units_and_changes_have_directions(saved, capsys, make_run):
    before = saved("a.json", make_run(seed=1).to_json())
    after = saved("b.json", make_run({"int8": 1.4 * 1.3, "flash": 1.2}, seed=2).to_json())
    main([before, after])
    printed = capsys.readouterr().out
    assert "\N{NO-BREAK SPACE}MiB" in printed or "\N{NO-BREAK SPACE}GiB" in printed
    assert "% better (" in printed
    assert "-" not in printed.split("% better")[0].rsplit(" ", 1)[-1]


def test_what_one_run_lacks_is_one_line(saved, capsys, make_run):
    whole = make_run(seed=1)
    part = replace(whole, measurements=tuple(row for row in whole.measurements if row.variant != "int8"))
    main([saved("a.json", whole.to_json()), saved("b.json", part.to_json())])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not measured")]
    assert len(lines) == 1
    assert lines[0].startswith("not measured: speedup, latency_s,") or "latency_s, speedup" in lines[0]
    assert " of int8: " in lines[0]

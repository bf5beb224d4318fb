import json
import subprocess
import sys

import numpy as np
import pytest

from optsd.errors import BadInput
from optsd.judge.compare import main


@pytest.fixture
def saved(tmp_path):
    def save(name, content):
        file = tmp_path / name
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file)

    return save


def pytest_benchmark(seconds, data=True, extra=None, rounds=12):
    """The part of pytest-benchmark's JSON that matters, as its version 5 writes it."""
    generator = np.random.default_rng(round(sum(seconds.values()) * 1e6))
    benchmarks = []
    for name, value in seconds.items():
        readings = list(generator.lognormal(np.log(value), 0.01, rounds))
        stats = {"median": float(np.median(readings)), **({"data": readings} if data else {})}
        benchmarks.append({"fullname": name, "name": name, "stats": stats, "extra_info": (extra or {}).get(name, {})})
    machine = {"cpu": {"brand_raw": "CPU", "count": 2}, "python_version": "3.11.7"}
    return {"machine_info": machine, "benchmarks": benchmarks, "datetime": "2025-01-01T00:00:00", "version": "5.3.1"}


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

    before = saved("a.json", pytest_benchmark({"t": 1.0}, extra=extra(make_run(seed=1))))
    after = saved("b.json", pytest_benchmark({"t": 1.0}, extra=extra(make_run({"int8": 1.0}, seed=2))))
    assert main([before, after]) == 1
    assert "int8     speedup" in capsys.readouterr().out


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


def test_from_the_shell_it_imports_no_torch_and_takes_half_a_second(saved, make_run):
    file = saved("a.json", make_run({f"deepcache:{n}": 1.0 for n in range(2, 12)}).to_json())
    code = "import sys; from optsd.cli import main; s = main(['compare', *sys.argv[1:]]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, file, file], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    # CPU seconds of that process: the wall clock of a busy machine says nothing of the program.
    code = "import sys, time; from optsd.cli import main; main(['compare', *sys.argv[1:]]); print(time.process_time())"
    command = [sys.executable, "-c", code, file, file]
    seconds = [float(subprocess.run(command, capture_output=True, text=True).stdout.split()[-1]) for _ in range(3)]
    assert min(seconds) < 0.5

import json
import time

import numpy as np
import pytest

from optsd.errors import BadInput
from optsd.judge import trials
from optsd.measure.environment import Watch, machine


def made_up_runs(count, noise):
    generator = np.random.default_rng(0)
    runs = []
    for _ in range(count):
        seconds = {}
        for name, delay in {"baseline": 0.0, **trials.DELAYS}.items():
            load = generator.uniform(1, 2, 12)  # every round meets another machine
            theirs, ours = (load * generator.lognormal(0, noise, 12) for _ in range(2))
            seconds[name] = {"baseline": list(theirs), "ours": list(ours * (1 + delay))}
        runs.append({"seconds": seconds, "load": {"others_cpu_share": 0.5}, "machine": machine()})
    return runs


def test_the_gate_sees_what_is_slower_through_the_noise():
    found = trials.judge_trials(made_up_runs(9, noise=0.03))
    assert [rows["flash speedup"] for rows in found["30 % slower"]] == ["regressed"] * 8
    assert "regressed" not in [rows["flash speedup"] for rows in found["identical"]]
    assert {rows["flash latency_s"] for rows in found["30 % slower"]} == {"insufficient data"}


def test_table(tmp_path, capsys):
    file = tmp_path / "trials.jsonl"
    file.write_text("".join(json.dumps(run) + "\n" for run in made_up_runs(4, noise=0.01)))
    assert trials.main(["table", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "3 trials of 12 interleaved rounds each. Other processes used 50% to 50% of the CPU" in printed
    assert "| 30 % slower | 3 of 3 | 3 | 0 | 0 | 0 | +" in printed
    assert "| identical | 0 of 3 | 0 | 0 | 3 | 0 | " in printed


def test_the_delay_is_real_and_in_proportion():
    step = trials.DelayedStep(lambda: time.sleep(0.05))
    step.delay, step.unet_share = 0.3, 0.5
    start = time.perf_counter()
    step()
    # 0.05 s of work that is half of the whole: 30 % of 0.1 s on top
    assert time.perf_counter() - start >= 0.08


def test_the_load_counts_as_somebody_elses():
    with trials._load(600):
        watch = Watch()
        while watch.read()["others_cpu_share"] <= 0.01:  # when the burst comes is chance, and the machine's business
            time.sleep(0.1)


def test_a_run_times_every_build_in_every_round():
    calls = []
    step = trials.DelayedStep(lambda: None)
    run = trials.time_run(lambda: calls.append("baseline"), lambda: calls.append(step.delay), step, rounds=2)
    first, second = calls[:10], calls[10:]
    assert first[::2] == ["baseline"] * 5  # the baseline right before each build
    assert sorted(first[1::2], key=str) == sorted(["baseline", 0.0, 0.05, 0.12, 0.30], key=str)
    assert first != second
    assert {len(row["ours"]) for row in run["seconds"].values()} == {2}


def test_a_file_without_trials(tmp_path):
    with pytest.raises(BadInput, match="has no trials .*; make it with: python -m optsd.judge.trials measure FILE"):
        trials.read(tmp_path / "none.jsonl")
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match="a line is no run"):
        trials.read(tmp_path / "other.jsonl")


def test_trials_of_the_rule_of_against(tmp_path, monkeypatch, capsys):
    """What waits is 30 % slower and what does not is the same; begun again, it goes on where it was."""
    step = trials.DelayedStep(lambda: time.sleep(0.002))
    monkeypatch.setattr(trials, "_pipelines", lambda: (step, step, step))
    monkeypatch.setattr(trials, "CASES", (("identical", 0.10), ("30 % slower", 0.10)))
    file = tmp_path / "against.jsonl"
    for number in (1, 2):
        assert trials.main(["against", str(file), f"--trials={number}", "--budget=30"]) == 0
    assert len(file.read_text().splitlines()) == 4
    assert trials.main(["against-table", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| identical | ±10.0% | 0 of 2 | " in printed
    assert "| 30 % slower | ±10.0% | 2 of 2 | 0 of 2 | 0 of 2 | 0 of 2 | " in printed
    with pytest.raises(BadInput, match="trials measure FILE"):
        trials.read(file)

"""What `tuned` means, where, and when it no longer does."""

import json
from pathlib import Path

import pytest

import optsd
from optsd.errors import BadInput, NotFound
from optsd.records import Workload
from optsd.tune import answer

WORKLOAD = Workload("shapes", "cpu", "float32", 20, 5.0, 64, 64, 4)


def machine(**more) -> dict:
    cpu = {"name": "Some CPU", "usable_cores": 2, "flags": ["avx2"]}
    return {"cpu": cpu, "gpus": [], "threads": {"torch": 2}, "versions": {"torch": "2.11.0"}} | more


@pytest.fixture(autouse=True)
def _here(monkeypatch) -> None:
    monkeypatch.setattr(answer.environment, "machine", lambda device="cpu": machine())


def found(expected: Path, variant: str = "sdpa+deepcache:3", workload: Workload = WORKLOAD) -> Path:
    return answer.record(expected, machine(), workload, variant, {"complete": True})


def test_what_was_found_here_is_what_tuned_means_here(tmp_path: Path) -> None:
    assert found(tmp_path) == tmp_path / "tuned" / "some-cpu-2-cores.json"
    assert answer.variant_for("shapes", "cpu", "float32", tmp_path) == "sdpa+deepcache:3"
    assert answer.variant_for("shapes", "cpu", "auto", tmp_path) == "sdpa+deepcache:3"


def test_a_new_answer_takes_the_old_ones_place_and_leaves_the_others(tmp_path: Path) -> None:
    other = Workload("sd15", "cpu", "float32", 50, 7.5, 512, 512, 4)
    found(tmp_path)
    found(tmp_path, "flash", other)
    found(tmp_path, "sdpa")
    assert answer.variant_for("shapes", "cpu", "float32", tmp_path) == "sdpa"
    assert answer.variant_for("sd15", "cpu", "float32", tmp_path) == "flash"


def test_who_draws_is_told_of_fewer_steps(tmp_path: Path) -> None:
    answer.record(tmp_path, machine(), WORKLOAD, "sdpa", {}, fewer_steps=10)
    with pytest.warns(UserWarning, match="takes 10 steps: ask for them .num_inference_steps=10, or --steps 10."):
        assert answer.variant_for("shapes", "cpu", "float32", tmp_path) == "sdpa"


def test_elsewhere_it_is_one_line(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(
        NotFound, match=r"nothing was tuned .*some-cpu-2-cores.json; run there: optsd tune --model shapes"
    ):
        answer.variant_for("shapes", "cpu", "float32", tmp_path)
    found(tmp_path)
    with pytest.raises(NotFound, match="has nothing for sd15 in float32"):
        answer.variant_for("sd15", "cpu", "float32", tmp_path)
    with pytest.raises(NotFound, match="has nothing for shapes in bfloat16"):
        answer.variant_for("shapes", "cpu", "bfloat16", tmp_path)
    monkeypatch.setattr(answer.environment, "machine", lambda device: machine(threads={"torch": 8}))
    with pytest.raises(BadInput, match="is of threads 2, here it is 8; run there: optsd tune"):
        answer.variant_for("shapes", "cpu", "float32", tmp_path)
    monkeypatch.setattr(answer.environment, "machine", lambda device: machine(threads={}))
    assert answer.variant_for("shapes", "cpu", "float32", tmp_path), "torch is not imported yet and tells nothing"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"schema": 2, "tuned": []}',
        '{"schema": 1, "tuned": [{"variant": "sdpa"}]}',
        '{"schema": 1, "tuned": 3}',
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: str) -> None:
    found(tmp_path).write_text(content)
    with pytest.raises(BadInput, match="some-cpu-2-cores.json .*; remove it"):
        answer.variant_for("shapes", "cpu", "float32", tmp_path)


def test_a_file_cannot_name_what_is_no_variant(tmp_path: Path) -> None:
    file = found(tmp_path)
    data = json.loads(file.read_text())
    data["tuned"][0]["variant"] = "os.system"
    file.write_text(json.dumps(data))
    with pytest.raises(BadInput, match="unknown variant"):
        answer.variant_for("shapes", "cpu", "float32", tmp_path)


def test_load_says_so_before_anything_is_loaded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="nothing was tuned on this machine"):
        optsd.load("shapes", "cpu", variant="tuned")


def test_load_builds_it_as_it_was_measured(tmp_path: Path, monkeypatch) -> None:
    from optsd import models

    monkeypatch.chdir(tmp_path)
    found(tmp_path / "expected", "deepcache:3", WORKLOAD)
    monkeypatch.setattr(models, "build", lambda *given: (given, None))
    monkeypatch.setattr(answer.environment, "machine", lambda device: machine())
    model, variant, device, dtype = optsd.load("shapes", "cpu", variant="tuned")
    assert (model, variant, str(device), dtype) == ("shapes", "deepcache:3", "cpu", "float32")


def test_commands_and_benches_know_it(tmp_path: Path) -> None:
    def resolved(given, device="cpu", model="shapes", folder=tmp_path / "expected"):
        return answer.resolved(given, model, device, "auto", folder)

    found(tmp_path / "expected")
    assert resolved(None) is None
    assert resolved(["int8"]) == ["int8"]
    assert resolved(["int8, tuned"]) == ["int8", "sdpa+deepcache:3"]
    with pytest.raises(BadInput, match="an estimate has none"):
        resolved(["tuned"], "estimate:a100")
    with pytest.raises(BadInput, match="unknown device"):
        resolved(["tuned"], "gpu")
    with pytest.raises(NotFound, match="no model 'nosuch'"):
        resolved(["tuned"], model="nosuch")
    with pytest.raises(NotFound, match="nothing was tuned"):
        resolved(["tuned"], folder=tmp_path / "elsewhere")

"""The suite's options, through pytest itself: the first thing that a user gets wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benched import run_pytest

from conftest_plugins.options import pytest_xdist_setupnodes, worker_device

ROOT = Path(__file__).parents[2]


def run_bench(*options: str) -> subprocess.CompletedProcess:
    return run_pytest("bench", "-p", "no:cacheprovider", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "nosuch"], "unknown variant 'nosuch'; choose from combined, baseline, eager, sdpa"),
        (["--variant", "int8+int8"], "names a technique twice; name each technique once"),
        (["--size", "65"], "--size 65: 65 is not a positive multiple of 8 pixels; try --size 64"),
        (["--steps", "-3"], "--steps -3 is too small; give 1 or more"),
        (["--guidance", "nan"], "--guidance nan is too small; give 0 or more"),
        (["--batch-size", "0"], "--batch-size 0 is too small; give 1 or more"),
        (["--device", "gpu"], "--device gpu is unknown; use auto, cpu, cuda, cuda:N or estimate:NAME"),
        (["--dtype", "int8"], "unknown dtype 'int8'; use auto, float32, float16, bfloat16"),
        (["--subject-timeout", "0"], "--subject-timeout 0 is no time; give seconds above 0"),
        (["--device", "estimate", "--subject", "a=json:dumps"], "--subject is measured, not estimated"),
        (["--seed", "-1"], "--seed -1 is too small; give 0 or more"),
        (["--seed", str(2**64)], f"--seed {2**64} is too large; give {2**64 - 1} or less"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_loaded(options: list[str], message: str) -> None:
    result = run_bench(*options)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert "collected" not in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nosuch"], "no model 'nosuch'; use shapes, shapes-dit, sd15"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["--output", "/proc/reports"], "--output /proc/reports cannot be written"),
        (["--image-store", "/proc/images"], "--image-store /proc/images cannot be written"),
    ],
)
def test_a_wrong_model_or_device_is_one_line_before_a_model_is_loaded(options: list[str], message: str) -> None:
    result = run_bench(*options)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr + result.stdout


def test_each_worker_has_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert worker_device("cuda") == "cuda"
    for worker, expected in ("gw0", "cuda:0"), ("gw1", "cuda:1"), ("gw2", "cuda:0"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        assert [worker_device(given) for given in ("cuda", "cuda:1", "cpu")] == [expected, "cuda:1", "cpu"]


@pytest.mark.parametrize(("workers", "policy", "found"), [(1, "", ""), (2, "", "passive"), (2, "active", "active")])
def test_workers_do_not_spin_against_each_other(workers, policy, found, monkeypatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    if not policy:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    pytest_xdist_setupnodes(specs=["popen"] * workers)
    assert os.environ.get("OMP_WAIT_POLICY", "") == found
    os.environ.pop("OMP_WAIT_POLICY", None)


def test_collecting_imports_no_torch() -> None:
    code = "import sys, pytest; pytest.main(['bench', '--collect-only', '-q']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "test_speed[int8+flash+kvcache]" in result.stdout


def test_chosen_variants_bring_the_baseline_and_come_once() -> None:
    result = run_bench("--collect-only", "-q", "--variant=combined,int4", "--variant", "flash+int8")
    collected = [line for line in result.stdout.splitlines() if "test_speed" in line]
    assert [line.split("[")[1] for line in collected] == ["baseline]", "int8+flash]", "int4]"]


def test_a_model_that_the_hub_does_not_give_is_one_line_before_anything_waits_for_it():
    """Without a network, and with one that has no such model."""
    result = run_pytest("bench", "-p", "no:cacheprovider", "--model", "nobody/nothing", "-m", "size", "--device", "cpu")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: nobody/nothing is not on this machine, and the hub does not give it" in result.stderr
    assert "give its folder: --model FOLDER" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_the_order_of_the_benches_is_theirs_whoever_shuffles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-randomly comes first of all, --ff around all others."""
    hook = "def pytest_collection_modifyitems(items):\n"
    first = f"import pytest\n@pytest.hookimpl(tryfirst=True)\n{hook}    items.reverse()\n"
    last = (  # registered as late as pytest's own is
        "import pytest\ndef pytest_configure(config): config.pluginmanager.register(Late(), 'late')\n"
        "class Late:\n @pytest.hookimpl(wrapper=True, tryfirst=True)\n"
        " def pytest_collection_modifyitems(self, items):\n  yield\n  items.reverse()\n"
    )
    (tmp_path / "shuffle_first.py").write_text(first)
    (tmp_path / "shuffle_last.py").write_text(last)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))
    options = ("--collect-only", "-q", "--variant=sdpa,int8")
    orders = [
        [line for line in run_bench(*options, *more).stdout.splitlines() if "::" in line]
        for more in ((), ("-p", "shuffle_first"), ("-p", "shuffle_last"))
    ]
    assert orders[0] == orders[1] == orders[2]
    assert [line.split("[")[1] for line in orders[0] if "test_memory" in line] == ["baseline]", "sdpa]", "int8]"]

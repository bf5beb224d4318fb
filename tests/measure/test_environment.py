import os
import subprocess
import sys
import time
from types import SimpleNamespace

from optsd.measure import environment
from optsd.records import dumps


def test_machine_is_plain_data_and_names_no_person_or_place():
    found = environment.machine()
    text = dumps(found)
    assert found["cpu"]["name"]
    assert found["cpu"]["logical_cores"] >= 1
    assert found["memory_bytes"] > 1 << 28
    assert found["versions"]["numpy"]
    assert os.environ.get("HOME", "/nowhere") not in text
    assert os.uname().nodename not in text


def test_torch_is_not_imported():
    code = "import sys; from optsd.measure.environment import machine; machine(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_torch_adds_its_threads_and_cuda_once_it_is_imported(monkeypatch):
    torch = SimpleNamespace(
        get_num_threads=lambda: 7,
        version=SimpleNamespace(cuda="13.0"),
        backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 91000)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert environment.threads()["torch"] == 7
    assert environment.versions()["cuda"] == "13.0"
    assert environment.versions()["cudnn"] == "91000"


def test_own_work_is_not_taken_for_others(monkeypatch):
    busy = [100.0, 101.0]
    own = [10.0, 11.0]
    monkeypatch.setattr(environment, "_busy_cpu_s", lambda: busy.pop(0))
    monkeypatch.setattr(environment, "_own_cpu_s", lambda: own.pop(0))
    watch = environment.Watch()
    time.sleep(0.01)
    assert watch.read()["others_cpu_share"] == 0


def test_cpu_time_of_children_counts_as_own():
    before = environment._own_cpu_s()
    subprocess.run(
        [sys.executable, "-c", "import time\nt = time.process_time()\nwhile time.process_time() < t + .2: 1"]
    )
    assert environment._own_cpu_s() - before >= 0.2


def test_work_of_others_is_seen(monkeypatch):
    busy = [100.0, 1e6]  # more than any pause could be
    monkeypatch.setattr(environment, "_busy_cpu_s", lambda: busy.pop(0))
    monkeypatch.setattr(environment, "_own_cpu_s", lambda: 10.0)
    watch = environment.Watch()
    time.sleep(0.01)
    assert watch.read()["others_cpu_share"] == 1


def test_git_state_is_that_of_this_project_only(tmp_path):
    assert environment.git_state(tmp_path) is None
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert environment.git_state(tmp_path) is None  # no commit yet
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    (tmp_path / "new").touch()
    state = environment.git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["changed_files"] == 1
    (tmp_path / "site-packages").mkdir()
    assert environment.git_state(tmp_path / "site-packages") is None

"""The wheel, in a fresh environment that borrows the running one's packages, in the folders of strangers."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from optsd.records import Results

ROOT = Path(__file__).parents[1]
STRANGER = ROOT / "tests" / "support" / "stranger.py"
HEAVY = ("torch", "diffusers", "transformers", "numpy", "optsd.models", "optsd.conftest_plugins", "optsd.variants")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=300)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of an environment with the wheel; every other package is the running environment's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    borrowed = [path for path in sys.path if path.endswith("-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return folder / "bin" / "python"


def run(python: Path, where: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    return subprocess.run(
        [str(python), "-m", *map(str, words)],
        cwd=where,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_it_holds_what_it_needs_and_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"optsd", "optsd-0.1.0.dist-info"}
    for name in (
        *("bench/test_speed.py", "conftest_plugins/options.py", "expected/claims/guide.json", "expected/bounds.json"),
        *("init/files/args", "models/shapes/weights/pipeline/model_index.json", "report/templates/page.html"),
    ):
        assert f"optsd/{name}" in names
    assert not [name for name in names if "__pycache__" in name or "baselines/" in name or name.endswith(".pyc")]
    missing = {file.name for file in (ROOT / "bench").glob("*.py")} - {Path(name).name for name in names}
    # This project beside other programs, and what is said of whole machines in this repository.
    assert missing == {"apart.py", "test_layers.py", "test_peers.py", "test_unet.py", "gpu.py"}


def test_a_run_that_does_not_ask_is_left_alone(python: Path, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--model')\n")
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_it(pytestconfig):\n"
        f"    assert not [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert pytestconfig.pluginmanager.hasplugin('optsd.pytest_plugin')\n"
        "    assert pytestconfig.getoption('--model') == 'mine'\n"
    )
    words = ("pytest", "--model", "mine", "-p", "no:hypothesispytest", "-p", "no:anyio", "-p", "no:benchmark")
    done = run(python, tmp_path, *words)
    assert "1 passed" in done.stdout, done.stdout
    listed = run(python, tmp_path, "pytest", "--help")
    assert "--variant" not in listed.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--pyargs", "optsd.bench", "--model", "TRAP", "--variant=sdpa"),
        ("--model", "TRAP", "--strict-markers", "--strict-config", "optsd.bench", "--variant=sdpa", "--pyargs"),
        ("@words", "--model", "TRAP"),
    ],
)
def test_options_in_any_order_and_no_code_of_a_model(python: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "conftest.py").write_text("from pathlib import Path\nPath(__file__).with_name('sprung').touch()\n")
    (tmp_path / "words").write_text("--pyargs\noptsd.bench\n--variant=sdpa\n")
    done = run(python, tmp_path, "pytest", *(word.replace("TRAP", str(trap)) for word in words), "--collect-only", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    collected = [line.rpartition("::")[2] for line in done.stdout.splitlines() if "test_speed" in line]
    assert collected == ["test_speed[baseline]", "test_speed[sdpa]"]
    assert not (trap / "sprung").exists()
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--subject", "mine=nowhere/"), "--subject mine: there is no folder nowhere/"),
        (("--prompts", "bad.csv"), "bad.csv has no column of text among id, title; call one prompt"),
        (("--count", "2"), "--count gives every bench two figures, none of which holds; use --rounds or --repeat"),
    ],
)
def test_a_wrong_option_is_one_line(python: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "bad.csv").write_text("id,title\n1,a dog\n")
    if "--count" in words:
        pytest.importorskip("pytest_repeat")
    done = run(python, tmp_path, "pytest", "--pyargs", "optsd.bench", *words)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_an_option_that_a_project_has_too_is_one_line(python: Path, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--model')\n")
    done = run(python, tmp_path, "pytest", "--pyargs", "optsd.bench", "--collect-only")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "a conftest.py of this project has an option --model of its own, and so have the benches" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's package, installed: a technique under the entry point, and a pipeline."""
    metadata = tmp_path / "stranger-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[optsd.techniques]\nmine = stranger:Mine\n")
    (tmp_path / "stranger.py").write_bytes(STRANGER.read_bytes())
    return tmp_path


def test_a_technique_and_a_subject_of_ones_own(python: Path, project: Path) -> None:
    words = ("bench", "--variant=mine", "--subject=theirs=stranger:Pipeline", "--preset=smoke", "-m", "size")
    done = run(python, project, "optsd.cli", *words, PYTHONPATH=str(project))
    assert done.returncode == 0, done.stdout + done.stderr
    found = Results.read(project / "reports" / "latest" / "results.json")
    assert found.variants == ("baseline", "mine", "theirs")
    assert found.get("mine", "disk_bytes").value == found.get("baseline", "disk_bytes").value
    assert found.get("theirs", "weight_bytes").value > 10**7
    assert found.get("theirs", "disk_bytes").value is None
    assert found.get("theirs", "disk_bytes").note == "it does not tell"
    assert "theirs" in (project / "reports" / "latest" / "table.md").read_text()


@pytest.mark.anybody
@pytest.mark.timeout(3600)
def test_a_strangers_gate(python: Path, project: Path) -> None:
    """Everything measured and recorded; green twice on the same code; red when it is slower, or draws grey pictures."""

    def bench(*words: str, **variables: str) -> tuple[int, Results, str]:
        done = run(
            python, project, "optsd.cli", "bench", "--variant=mine", "--subject=theirs=stranger:Pipeline",
            "--preset=smoke", "--rounds=40", "--images=10", f"--image-store={project / 'store'}", *words,
            PYTHONPATH=str(project), **variables,
        )  # fmt: skip
        return done.returncode, Results.read(project / "reports" / "latest" / "results.json"), done.stdout

    status, found, said = bench("--expected-update")
    assert status == 1, said  # recording fails, so that no gate updates itself
    assert "recorded" in said
    for name in ("latency_s", "speedup", "peak_memory_bytes", "weight_bytes", "objects_right", "lpips_shapes"):
        for subject in ("mine", "theirs"):
            assert found.get(subject, name).value is not None, (subject, name)
    assert {row.variant for row in found.techniques} == {"baseline", "mine", "theirs"}
    assert (project / "reports" / "latest" / "index.html").is_file()
    recorded = json.loads(next((project / "expected" / "baselines").glob("*.json")).read_text())
    assert recorded["runs"][0]["others"] == ["mine", "theirs"]

    for _ in range(2):
        status, found, said = bench("--gate")
        assert status == 0, said
    status, found, said = bench("--gate", "-m", "speed", SLOW="1")
    verdicts = {(row.variant, row.metric): row.status for row in found.verdicts}
    assert status == 1
    assert verdicts["theirs", "speedup"] == "regressed", said
    assert verdicts["mine", "speedup"] == "ok", said
    status, found, said = bench("--gate", "-m", "quality", GREY="1")
    assert status == 1
    assert "theirs draws no pictures: 1 of 1 are of one colour, #808080" in said
    assert found.get("mine", "objects_right").value is not None

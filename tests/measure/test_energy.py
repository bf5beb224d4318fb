"""Counters of joules are made up here: what is tested is what is read of them, and what comes of it."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest

from conftest_plugins.results import Recorder
from optsd.errors import Unsupported
from optsd.measure import energy
from optsd.measure.energy import between, joules_of_a_call, read

END = 1000.0  # joules at which a package begins again


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int, float], None]:
    """Write what a package of the CPU has used, in joules."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)

    def write(number: int, joules: float, name: str = "package") -> None:
        folder = tmp_path / f"intel-rapl:{number}"
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(f"{name}-{number}\n")
        (folder / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")
        (folder / "max_energy_range_uj").write_text(f"{END * 1e6:.0f}\n")

    return write


def test_packages_are_added_and_what_is_in_them_is_not(package, tmp_path: Path) -> None:
    package(0, 10)
    package(1, 990)
    package(2, 5000, "psys")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a package's cores
    before = read("cpu")
    package(0, 25)
    package(1, 40)  # began again
    assert before == [(10, END), (990, END)]
    assert between(before, read("cpu")) == pytest.approx(15 + 50)


def test_a_window_is_filled_with_whole_calls(package) -> None:
    """Calls of 0.7 s and 30 J: three fill a window of two seconds."""
    used = 0.0

    def call() -> float:
        nonlocal used
        used += 30
        package(0, used)
        return 0.7

    package(0, 0)
    assert joules_of_a_call(call, "cpu") == 30
    assert used == 90


def test_no_counter_is_no_figure(package, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(Unsupported, match="this CPU's joules are counted nowhere; RAPL shows them under"):
        read("cpu")
    package(0, 1)
    monkeypatch.setattr(Path, "read_text", lambda self: (_ for _ in ()).throw(PermissionError()))
    with pytest.raises(Unsupported, match=r"energy_uj may not be read; let yourself read it: sudo chmod a\+r"):
        read("cpu")
    monkeypatch.setattr("optsd.measure.gpus.joules", lambda device: None)
    with pytest.raises(Unsupported, match="cuda:0 has no counter of joules of its own"):
        read("cuda:0")


@pytest.mark.parametrize("counted", [True, False])
def test_the_bench(counted: bool, package) -> None:
    """The variant takes half the baseline's joules an image; where nothing counts, both figures say why."""
    total, rows = 0.0, {}

    def bench(name: str, joules: float) -> SimpleNamespace:
        def seconds(doing: str, batch: int) -> float:
            nonlocal total
            total += joules
            package(0, total)
            return 2.0

        return SimpleNamespace(
            variant=name,
            workload=SimpleNamespace(batch_size=4),
            pipe=SimpleNamespace(device="cpu"),
            warm_up=lambda: None,
            seconds=seconds,
        )

    if counted:
        package(0, 0)
    recorder = create_autospec(Recorder, instance=True)  # it takes what the real one takes
    recorder.measure.side_effect = lambda variant, name, value, interval=None, samples=(), note="": rows.setdefault(
        name, (variant, value, interval, samples, note)
    )
    test_energy = import_module("bench.test_energy").test_energy
    if not counted:
        with pytest.raises(pytest.skip.Exception, match="counted nowhere"):
            test_energy(bench("int8", 20), bench("baseline", 40), 6, recorder, None)
        assert [row[:2] for row in rows.values()] == [("int8", None)] * 2
        return
    test_energy(bench("int8", 20), bench("baseline", 40), 6, recorder, None)
    assert rows["energy_j"] == ("int8", 5, (5, 5), (5,) * 6, "")
    assert rows["energy_reduction"][:3] == ("int8", 0.5, (0.5, 0.5))

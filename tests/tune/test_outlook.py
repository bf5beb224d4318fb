"""What the bounds alone say: nothing is run, and nothing of quality is claimed."""

from types import SimpleNamespace

import pytest

from optsd import cli
from optsd.errors import BadInput, Unsupported
from optsd.estimate import bounds, devices
from optsd.records import Measurement
from optsd.tune import candidates, outlook

MIB = 2**20
SPEEDUPS = {"baseline": 1.0, "sdpa": 1.5, "deepcache:2": 1.8, "sdpa+deepcache:2": 2.6}
PEAKS = {"baseline": 400, "sdpa": 200, "deepcache:2": 500, "sdpa+deepcache:2": 300}


def traced(model, variant, work, device):
    if variant.startswith("fbcache"):
        raise Unsupported(f"{variant} is for transformers", "leave it out")
    return SimpleNamespace(variant=variant, peak_bytes=PEAKS[variant] * MIB, device=devices.find(device), workload=work)


@pytest.fixture
def estimated(monkeypatch, capsys):
    """Run the command on traces that are made up; what it prints."""

    def figures(found, baseline, fused):
        return [
            Measurement(found.variant, "speedup", "×", SPEEDUPS[found.variant]),
            Measurement(found.variant, "peak_memory_bytes", "B", found.peak_bytes),
        ]

    def speed(techniques, eager, fused):
        return SimpleNamespace(most=0.9 if techniques == ("kvcache",) else 2.0)

    monkeypatch.setattr(outlook, "estimate", traced)
    monkeypatch.setattr(outlook, "measurements", figures)
    monkeypatch.setattr(bounds, "speed", speed)

    def run(*options: str) -> list[str]:
        names = "sdpa,deepcache:2,fbcache:0.1"
        assert cli.main(["tune", "--device", "estimate:rtx4090", "--variant", names, *options]) == 0
        return capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ").splitlines()

    return run


def test_an_estimate_says_what_could_be_and_that_nothing_was_measured(estimated) -> None:
    first, about, *rows, last = [line for line in estimated("--steps", "2") if line]
    assert first == last == "Nothing was measured: these are bounds, and of quality they say nothing."
    assert about == "shapes on GeForce RTX 4090, float16, 64×64, batch 4, 2 steps"
    named = [row.split()[0] for row in rows[1:]]
    assert named == ["sdpa+deepcache:2", "deepcache:2", "sdpa", "fbcache:0.1"], "the most promising first"
    assert "is for transformers" in rows[-1]
    assert not any("proved" in row for row in rows)


def test_what_cannot_fit_is_said_to_and_comes_last(estimated) -> None:
    rows = [line for line in estimated("--memory", "250MiB") if "MiB at least" in line]
    assert [row.split()[0] for row in rows] == ["deepcache:2"]
    assert "needs 500 MiB at least" in rows[0]


def test_bounds_exclude_what_no_one_could_make_faster(monkeypatch) -> None:
    said = SimpleNamespace(most=0.97)
    monkeypatch.setattr(bounds, "speed", lambda *_: said)
    monkeypatch.setitem(PEAKS, "kvcache", 400)

    def trace(name: str):
        return traced("shapes", name, None, "rtx4090")

    assert candidates.bounded(trace, None, has_rates=True)("kvcache") == "cannot be faster: 0.97× at most"
    assert candidates.bounded(trace, None, has_rates=False)("kvcache") == ""
    assert candidates.bounded(trace, None, has_rates=True)("deepcache:2") == "", "no bound is known: it is measured"
    assert candidates.bounded(trace, 300 * MIB, has_rates=False)("kvcache") == "needs 400 MiB at least"


def test_a_device_that_nobody_knows() -> None:
    with pytest.raises(BadInput, match="no data sheet"):
        outlook.outlook(outlook.Request(), "abacus")

import json
import re
from pathlib import Path

import pytest
import small_pipelines

from optsd.errors import BadInput
from optsd.estimate import architectures
from optsd.estimate.command import NEWEST_ASKED_FOR, main
from optsd.report.findings import ESTIMATED

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """`sd15` is traced in a second."""
    monkeypatch.setitem(architectures.NAMED, "sd15", small_pipelines.CLASSES["SD 1.5"])


def test_tables(capsys):
    words = ["--variant", "flash", "--device", "rtx4090,a100", "--size", "16", "--steps", "2", "--details"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == printed.splitlines()[-1] == ESTIMATED
    assert "sd15, float16, 16×16, batch 4, 2 steps, guidance 7.5" in printed
    heads, *rows = (line.split("  ") for line in printed.splitlines()[3:6])
    assert [row[0].strip() for row in rows] == ["rtx4090", "a100"]
    assert {"at best", "today", "peak"} <= {head.strip() for head in heads}
    assert "flash on GeForce RTX 4090" in printed
    assert "s at the roofline" in printed
    assert "multiplications alone" in printed
    assert "unet." in printed


def test_a_cpu_has_memory_only(capsys):
    assert main(["--device", "cpu", "--size", "16", "--steps", "1", "--batch-size", "1"]) == 0
    printed = capsys.readouterr().out
    assert "float32" in printed
    assert "roofline" not in printed


def test_json(capsys):
    assert main(["--size", "16", "--steps", "1", "--json"]) == 0
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["peak_memory_bytes"]["value"] > 0
    assert rows["speedup"]["value"] == pytest.approx(1)
    assert rows["speedup_unfused"]["value"] == 1


def test_options_are_spelled_as_in_the_benches(capsys):
    words = ["--size", "16", "--steps", "1", "--json", "--batch-size", "1"]
    assert (
        main([*words, "--variant", "flash, int8", "--variant=flash", "--device", "estimate:rtx4090", "--dtype", "fp16"])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert list(dict.fromkeys(row["variant"] for row in rows)) == ["flash", "int8"]


def test_help_teaches_by_example(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "optsd estimate --variant int8+flash --device rtx4090" in printed
    assert "rtx3090" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu"], "no data sheet for device 'gpu'"),
        (["--size", "65"], "65 is not a positive multiple of 8"),
        (["--steps", "0"], "--steps 0 is too small; give 1 or more"),
        (["--batch-size", "-1"], "--batch-size -1 is too small"),
        (["--dtype", "int8"], "unknown dtype 'int8'; use auto, float32"),
        (["--variant", "flash,nosuch"], "unknown variant 'nosuch'"),
        (["--model", "./nowhere"], "no model './nowhere'"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(BadInput, match=message):
        main(arguments)


def test_one_trace_serves_all_gpus_on_which_every_kernel_of_ours_runs():
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "optsd").rglob("*.py"))
    asked = re.findall(r"get_device_capability\(\w+\) < \((\d+), (\d+)\)", code)
    assert len(asked) >= 3
    assert max((int(major), int(minor)) for major, minor in asked) == NEWEST_ASKED_FOR

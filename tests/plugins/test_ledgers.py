"""`--device estimate:a100 --gate`, seen through pytest itself. Nothing is traced here."""

import sys

import numpy  # noqa: F401 - pytester forgets what a run imported, and NumPy cannot be imported twice
import pytest

import optsd.report  # noqa: F401 - likewise: imported anew it would not be the one that is replaced
from optsd.ledger import Entry, Ledger
from optsd.records import Results

PLUGINS = ("options", "results", "verdicts")

CONFTEST = """
from conftest_plugins.options import WORKLOAD
from optsd.records import Workload

def pytest_configure(config):
    config.stash[WORKLOAD] = Workload("sd15", "estimate:a100", "float16", 50, 7.5, 512, 512, 4)
"""

BENCH = """
from conftest_plugins.ledgers import ledgers_of_run
from optsd.ledger import Ledger, file_name
from optsd.files import write_atomically
from optsd.records import Technique

def test_estimate(recorder, pytestconfig):
    text = {text!r}
    for name, figure in Ledger.from_text(text, "it").figures().items():
        recorder.measure("int8", name, figure)
    recorder.measure("int8", "latency_s", 1.0)
    recorder.technique(Technique("int8", False, ("unet",), {{"kernel": {kernel!r}}}))
    write_atomically(ledgers_of_run(pytestconfig) / file_name("int8"), text)
"""

CONV = "unet.mid_block.resnets.0.conv1"


@pytest.fixture
def project(pytester, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # benches are rewritten within a second
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    versions = {"torch": "2.15.0+cpu", "diffusers": "0.42.1"}
    monkeypatch.setattr("optsd.measure.environment.machine", lambda device="cpu": {"cpu": {}, "versions": versions})
    monkeypatch.setattr("optsd.report.write", lambda results, folder: None)
    monkeypatch.setattr("optsd.report.print_table", lambda results, console: None)
    pytester.makeconftest(CONFTEST)

    def run(*arguments, entries, kernel="flash"):
        pytester.makepyfile(test_bench=BENCH.format(text=Ledger(tuple(entries)).to_text(), kernel=kernel))
        words = [word for plugin in PLUGINS for word in ("-p", f"conftest_plugins.{plugin}")]
        options = ("--device=estimate:a100", "--variant=int8", "-p", "no:cacheprovider")
        return pytester.runpytest_inprocess(*words, *options, *arguments, no_reraise_ctrlc=True)

    run.path, run.versions = pytester.path, versions
    return run


def quantized(launches: int = 20) -> list[Entry]:
    return [
        Entry("runs", CONV, "optsd::int8_conv2d", "int8", launches, 100 * launches, 64),
        *(Entry(what, "unet", "weight", "", 1, 0, 1024) for what in ("weights", "peak")),
    ]


def test_what_is_counted_is_recorded_and_gated_to_the_last_one(project):
    result = project("--expected-update", entries=quantized())
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["recorded 8 figures in *estimate-a100.json", "RECORDED 8 figures: *status 1 on purpose"]
    )
    folder = project.path / "expected" / "ledgers" / "estimate-a100"
    assert [file.name for file in folder.rglob("*.tsv")] == ["int8.tsv"]
    assert project("--gate", entries=quantized()).ret == 0
    result = project("--gate", entries=quantized(21))
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [f"REGRESSED int8 kernel_launches: 20 → 21 (+5.00%); {CONV}: optsd::int8_conv2d (int8) 20 → 21"]
    )
    result.stdout.no_fnmatch_line("REGRESSED int8 weight_bytes*")


def test_a_layer_that_is_no_longer_quantized_is_named(project):
    project("--expected-update", entries=quantized())
    plain = [Entry("runs", CONV, "aten::convolution", "float16", 20, 2000, 64), *quantized()[1:]]
    result = project("--gate", entries=plain)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [f"REGRESSED int8 flops_16bit: 0 → 2,000; {CONV}: aten::convolution (float16) 0 → 2,000"]
    )


def test_less_is_offered_and_never_taken(project):
    project("--expected-update", entries=quantized())
    result = project("--gate", entries=quantized(19))
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["improved: int8 kernel_launches, 20 → 19*tighten the baseline with --expected-update*"]
    )


def test_other_libraries_are_not_compared_and_another_attention_kernel_is(project):
    project("--expected-update", entries=quantized())
    assert project("--gate", entries=quantized(), kernel="eager").ret == 0
    project.versions["torch"] = "2.15.0+cu130"
    assert project("--gate", entries=quantized()).ret == 0
    project.versions["torch"] = "2.16.0"
    result = project("--gate", entries=quantized())
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["GATE FAILED: nothing could be judged: *torch 2.16.0 instead of 2.15.0; record again with *"]
    )
    found = Results.read(project.path / "reports" / "latest" / "results.json")
    assert {row.status for row in found.verdicts} == {"not comparable"}

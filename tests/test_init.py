"""`optsd init` writes what a repository needs, overwrites nothing, and says what is out of date."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optsd import benching, init, pytest_plugin

ROOT = Path(__file__).parents[1]


def test_everything_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert init.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for name in init.FILES:
        assert f"wrote  {name}" in said
        assert "@STAMP@" not in (tmp_path / name).read_text()
    assert "optsd bench @bench/args --gate" in said
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert len(before) == len(init.FILES)
    assert init.main([str(tmp_path)]) == 0
    assert "wrote" not in capsys.readouterr().out
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert init.main([str(tmp_path), "--check"]) == 0


def test_nothing_of_the_users_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "subjects.py").write_text("mine = 1\n")
    assert init.main([str(tmp_path)]) == 0
    assert "kept   bench/subjects.py (without its stamp)" in capsys.readouterr().out
    assert (tmp_path / "bench" / "subjects.py").read_text() == "mine = 1\n"


def test_check_says_what_is_out_of_date(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    init.main([str(tmp_path)])
    (tmp_path / "bench" / "args").unlink()
    page, workflow = tmp_path / "bench" / "README.md", tmp_path / ".github" / "workflows" / "optsd-gpu.yml"
    page.write_text(re.sub("optsd init [0-9a-f]{12}", "optsd init 0123456789ab", page.read_text()))
    workflow.write_text(workflow.read_text().replace("720", "60"))  # the user's own change
    capsys.readouterr()
    assert init.main([str(tmp_path), "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "missing           bench/args" in lines
    assert "out of date       bench/README.md" in lines
    assert "current           .github/workflows/optsd-gpu.yml" in lines
    assert not (tmp_path / "bench" / "args").exists()


def test_what_is_written_is_what_it_should_be(tmp_path: Path) -> None:
    init.main([str(tmp_path)])
    ast.parse((tmp_path / "bench" / "subjects.py").read_text())
    first, *more = (tmp_path / "bench" / "args").read_text().splitlines()
    assert first == "@bench/variants"  # which argparse reads in its place
    words = (tmp_path / "bench" / "variants").read_text().splitlines() + more
    assert pytest_plugin.joined(words) == words
    assert all(word.partition("=")[0] in pytest_plugin.TAKE_A_VALUE for word in words)
    for name in ("cpu", "gpu"):
        text = (tmp_path / ".github" / "workflows" / f"optsd-{name}.yml").read_text()
        assert "optsd bench @bench/args" in text
        assert "\t" not in text


def test_the_workflow_of_any_runner_gates_what_needs_no_machine(tmp_path: Path) -> None:
    """With the variants alone: an estimate and another build refuse subjects, and rounds would cut the latter short."""
    init.main([str(tmp_path)])
    text = (tmp_path / ".github" / "workflows" / "optsd-cpu.yml").read_text()
    assert "- run: optsd bench @bench/variants --device=estimate:a100 --gate\n" in text
    assert '- run: optsd bench @bench/variants "--against=origin/$BASE" ' in text
    variants = (tmp_path / "bench" / "variants").read_text()
    assert "--subject" not in variants
    assert "--rounds" not in variants
    ours = (ROOT / ".github" / "workflows" / "cpu.yml").read_text()
    assert "--device=estimate:a100 --gate" in ours
    assert "--against=origin/$BASE" in ours


def test_its_options_are_read_in_any_folder(tmp_path: Path) -> None:
    """The folder of benches that it writes is enough for pytest to know what to run."""
    init.main([str(tmp_path)])
    code = (
        "import json, sys; from optsd.pytest_plugin import asked, _words; from types import SimpleNamespace as S\n"
        "from pathlib import Path\n"
        "p = S(args=('--pyargs', 'optsd.bench', '@bench/args'), dir=Path())\n"
        "print(json.dumps(_words(S(getini=lambda name: [], invocation_params=p))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--subject=mine=bench.subjects:Mine" in json.loads(done.stdout)


def test_a_file_of_options_may_name_another(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    init.main([str(pytester.path)])
    (pytester.path / "bench" / "__init__.py").write_text("")  # so that this checkout's own is not found before it
    words = ["-p", "conftest_plugins.options", "-p", "conftest_plugins.results", "-p", "conftest_plugins.verdicts"]
    pytester.makepyfile("def test_it(pytestconfig): assert 0, pytestconfig.getoption('--variant')")
    monkeypatch.syspath_prepend(pytester.path)
    result = pytester.runpytest_inprocess(*words, "@bench/args", "--collect-only")
    result.stdout.fnmatch_lines(["optsd: model shapes, 2 variants and 1 subject, *"])


def test_the_command_becomes_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(benching.os, "execv", lambda file, words: called.append(words))
    benching.main(["--model", "shapes", "-m", "speed"])
    assert called == [[sys.executable, "-m", "pytest", str(ROOT / "bench"), "--model=shapes", "-m", "speed"]]
    monkeypatch.setattr(benching.importlib.util, "find_spec", lambda name: object())
    assert benching.words(["--gate"]) == ["--pyargs", "optsd.bench", "--gate"]


def test_help_has_every_option_of_the_benches(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        benching.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in (*pytest_plugin.TAKE_A_VALUE, "--gate", "--claims"))

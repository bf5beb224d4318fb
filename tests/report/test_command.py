import shutil
import sys

import pytest

from optsd import report
from optsd.errors import BadInput, Unsupported
from optsd.report.command import main


def test_it_prints_the_table_and_writes_the_report(make_results, tmp_path, capsys):
    results = make_results(tmp_path, variants=("baseline", "int8"), prompts=2)
    (tmp_path / "results.json").write_text(results.to_json(), encoding="utf-8")
    assert main([str(tmp_path / "results.json")]) == 0
    assert "speedup" in capsys.readouterr().out
    assert (tmp_path / "index.html").is_file()
    assert (tmp_path / "contact-sheet.png").is_file()


def test_table_only_writes_nothing(run_folder, tmp_path, capsys):
    shutil.copy(run_folder / "results.json", tmp_path)
    assert main([str(tmp_path / "results.json"), "--table-only"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert "int8+flash+kvcache" in capsys.readouterr().out


def test_a_file_that_is_no_results_is_refused_by_name(tmp_path):
    file = tmp_path / "results.json"
    with pytest.raises(BadInput, match=r"cannot read .*results.json"):
        main([str(file)])
    file.write_text("{}")
    with pytest.raises(BadInput, match="no results file of schema"):
        main([str(file)])


def test_help_teaches_by_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "optsd report results.json" in capsys.readouterr().out


def test_a_missing_library_is_one_line_with_the_remedy(results, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("optsd.report.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(report, name.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(Unsupported, match=r"a report needs jinja2, which is not installed; .*optsd\[bench\]"):
        report.write(results, tmp_path)

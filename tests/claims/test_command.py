import json
from pathlib import Path

import pytest

from optsd.claims import files
from optsd.cli import main

ROOT = Path(__file__).parents[2]
FOLDER = f"--folder={ROOT / 'expected' / 'claims'}"


def test_list_and_show(capsys):
    assert main(["claims", "list", FOLDER]) == 0
    said = capsys.readouterr().out
    assert "guidance 99" in said  # DeepCache's 99 claims state none
    assert main(["claims", "show", "nunchaku", "3", FOLDER]) == 0
    said = capsys.readouterr().out
    assert '"kind": "speedup"' in said
    assert "unstated: model, steps, scheduler, guidance, size, batch" in said


def test_check_says_what_it_assumes_and_fails_on_a_contradiction(capsys):
    assert main(["claims", "check", "diffusers-docs-nunchaku", "--no-bounds", FOLDER]) == 1
    said = capsys.readouterr().out
    assert "speedup 1.8× is 1.356× by its own figures" in said
    assert "assuming that the three figures are of the same run" in said
    assert "most often unstated: model in 100%" in said
    assert main(["claims", "check", "lcm-readme", "--no-bounds", "--json", FOLDER]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_import(tmp_path, row, capsys):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row(source="A"), row(source="B", metric="beauty", unit="points")]))
    assert main(["claims", "import", str(file), f"--folder={tmp_path / 'claims'}"]) == 0
    assert "2 claims of 2 sources" in capsys.readouterr().out
    assert files.read(tmp_path / "claims" / "b.json").claims[0].metric.kind == "other"


def test_convert(tmp_path, capsys):
    old = ROOT / "tests" / "judge" / "claims-schema-1.json"
    assert main(["claims", "convert", str(old), str(tmp_path / "new.json")]) == 0
    assert "30 claims written" in capsys.readouterr().out
    assert main(["claims", "convert", str(tmp_path / "new.json"), str(tmp_path / "newer.json")]) == 2


def test_template(capsys):
    assert main(["claims", "template"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 2
    assert main(["claims", "template", "--markdown"]) == 0
    assert "| guidance scale; 1 or 0 where there is none | 7.5 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "nothing"], "no claims 'nothing'; choose from"),
        (["show", "lcm-readme", "9"], "lcm-readme has no claim 9; give a number from 1 to 1"),
        (["import", "nowhere.json"], "cannot read nowhere.json"),
        (["list", "--folder=nowhere"], "no claims in nowhere; run it where expected/claims is"),
    ],
)
def test_mistakes(words, message, capsys):
    extra = [] if any(word.startswith("--folder") for word in words) or words[0] == "import" else [FOLDER]
    assert main(["claims", *words, *extra]) == 2
    assert message in capsys.readouterr().err

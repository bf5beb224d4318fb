"""`optsd coco`."""

import json
import re
from pathlib import Path

import pytest

from optsd.data.coco import main
from optsd.errors import BadInput


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch) -> None:
    for name in ("OPTSD_HOME", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def test_prompts_of_the_shipped_model(capsys) -> None:
    assert main(["prompts", "--model", "shapes", "--count", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "a large purple triangle to the right of a large blue triangle on a black background"
    assert second.endswith("on a black background")


def test_no_prompt_is_an_error() -> None:
    with pytest.raises(BadInput, match="--count 0 asks for no prompt"):
        main(["prompts", "--count", "0"])


def test_verify_goes_on_where_a_file_is_missing_or_wrong(tmp_path: Path, capsys) -> None:
    assert main(["verify"]) == 1
    said = capsys.readouterr().out
    assert re.search("captions: there is no caption file .*optsd coco fetch captions", said)
    assert len(said.splitlines()) == 7
    assert re.search("clip-large: cmmd needs clip-vit-large-patch14-336.bin.*optsd coco fetch clip-large", said)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"images": [], "annotations": []}))
    assert main(["verify", "--captions", str(wrong)]) == 1
    assert "is not captions_val2017.json" in capsys.readouterr().out


def test_verify_says_what_is_there_and_what_is_not(coco_captions: Path, tmp_path: Path, capsys) -> None:
    assert main(["verify", "--captions", str(coco_captions)]) == 1
    said = capsys.readouterr().out
    assert "1,000 prompts, SHA-256 77312c16df0a0388" in said
    assert "1,270 generic, 3 too long, 212 too short" in said
    assert "images: 0 of the 1,000" in said
    assert "run `optsd coco fetch images`" in said
    assert "run `optsd coco fetch inception`" in said
    weights = tmp_path / "OPTSD_HOME" / "weights"
    weights.mkdir(parents=True)
    (weights / "alexnet-owt-7be5be79.pth").write_bytes(b"wrong")
    assert main(["verify", "--captions", str(coco_captions)]) == 1
    assert "its SHA-256 differs" in capsys.readouterr().out


def test_help_teaches_by_example(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "optsd coco fetch captions" in capsys.readouterr().out


def test_fetching_an_unknown_name() -> None:
    with pytest.raises(BadInput, match="no download 'nosuch'"):
        main(["fetch", "nosuch"])

"""Prompts of one's own: what the field writes is read, and what is malformed is one line that names the row."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.data import prompt_files, reference_files
from optsd.data.prompt_files import Row, identity, parse, read
from optsd.errors import BadInput, NotFound, OptsdError

COCO = {
    "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 9, "file_name": "9.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "a dog"},
        {"id": 2, "image_id": 7, "caption": "one dog"},
        {"id": 3, "image_id": 9, "caption": "two cats"},
    ],
}


@pytest.mark.parametrize(
    ("name", "text", "texts"),
    [
        ("lines.txt", "a dog, running\n\n  two   cats\r\n", ["a dog, running", "two cats"]),
        ("geneval.jsonl", '{"tag": "two", "prompt": "a dog", "include": []}\n{"prompt": "two cats"}\n', None),
        ("texts.json", '["a dog", "two cats"]', None),
        ("objects.json", '[{"text": "a dog"},\n {"text": "two cats"}]', None),
        ("drawbench.csv", 'Prompts,Category\n"a dog, red",Colors\ntwo cats,Counting\n', ["a dog, red", "two cats"]),
        ("by-content", "Prompts,Category\na dog,Colors\ntwo cats,Counting\n", None),
        ("parti", 'Prompt\tCategory\tChallenge\tNote\n"a" dog\tA\tB\t\ntwo cats\tA\tB\t\n', ['"a" dog', "two cats"]),
        (
            "captions_source.tsv",
            "id\timage_id\tcaption\theight\twidth\tfile_name\tcoco_url\n"
            '1\t7\t"a ""red"" dog"\t1\t1\t7.jpg\tu\n2\t9\ttwo cats\t1\t1\t9.jpg\tu\n',
            ['a "red" dog', "two cats"],
        ),
        ("with-a-mark.txt", "\ufeffa dog\ntwo cats", None),
        ("brackets.txt", "[1girl] a dog\n[2girls] two cats", ["[1girl] a dog", "[2girls] two cats"]),
    ],
)
def test_what_the_field_writes(tmp_path: Path, name: str, text: str, texts: list[str] | None) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    rows = read(tmp_path / name)
    assert [row.text for row in rows] == (texts or ["a dog", "two cats"])


def test_coco_gives_one_caption_an_image(tmp_path: Path) -> None:
    (tmp_path / "captions_val2014.json").write_text(json.dumps(COCO))
    rows = read(tmp_path / "captions_val2014.json")
    assert {row.file_name for row in rows} == {"7.jpg", "9.jpg"}
    assert len(rows) == 2


def test_a_manifest_has_seeds_and_files() -> None:
    assert parse('{"id": 1, "prompt": "a dog", "seed": 42, "file": "0.png"}', "it") == [Row("a dog", "1", "0.png", 42)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("long.txt", "x" * 10 * 2**20, "long.txt, line 1: 10,485,760 characters are no prompt; give 4,096 or fewer"),
        ("long.csv", "prompt,id\n" + "x" * 10 * 2**20 + ",1", "long.csv, line .* is no row of a table \\(field larger"),
        (
            "long.jsonl",
            '{"prompt": "a"}\n{"prompt": "' + "x" * 10 * 2**20 + '"}',
            "long.jsonl, line 2: 10,485,760 char",
        ),
        ("latin.txt", b"a caf\xe9", "latin.txt is not UTF-8 \\(byte 5\\); save it as UTF-8"),
        ("none.csv", "id,title\n1,a dog\n", "none.csv has no column of text among id, title; call one prompt"),
        ("none.tsv", "id\ttitle\n1\ta dog\n", "none.tsv has no column of text among id, title"),
        ("none.jsonl", '{"title": "a dog"}', "none.jsonl, entry 1 has no text, but title; call it prompt"),
        ("twice.csv", "id,prompt\n1,a dog\n1,a cat\n", "the id '1' is there twice; give each prompt an id of its own"),
        ("out.csv", "prompt,file\na dog,../../etc/passwd\n", "'../../etc/passwd' is no plain file name"),
        ("out.jsonl", '{"prompt": "a", "file": "/etc/passwd"}', "'/etc/passwd' is no plain file name"),
        ("short.csv", "id,prompt\n1,a,b\n", "short.csv, line 2 has 3 fields, the header 2"),
        ("quote.csv", 'id,prompt\n1,"a\n', "quote.csv, line 2 is no row of a table"),
        ("empty.txt", "\n  \n", "empty.txt holds no prompt"),
        ("empty.csv", "prompt\n", "empty.csv holds no prompt"),
        ("no-text.csv", "id,prompt\n1,\n", "no-text.csv, line 2: its prompt is no text"),
        ("number.json", "[1, 2]", "number.json, entry 1 has no text, but no keys"),
        ("half.json", '[{"prompt": "a"},\n', "half.json is no JSON"),
        ("half.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', "half.jsonl, line 2 is no JSON"),
        ("deep.json", "[" * 10**5, "deep.json is no JSON"),
        ("nul.txt", "a\0dog", "there are characters in it that no one can read"),
        ("seed.jsonl", '{"prompt": "a", "seed": -1}', "'-1' is no seed"),
        ("seed.json", '{"prompt": "a", "seed": ' + "9" * 5000 + "}", "seed"),
        ("coco.json", json.dumps(COCO | {"images": COCO["images"] * 2}), "image id 7 is there twice"),
        ("coco.json", json.dumps(COCO).replace("7.jpg", "../7.jpg"), "'../7.jpg' is no plain file name"),
    ],
)
def test_what_is_malformed_is_one_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput, match=message) as caught:
        read(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file .*nowhere.txt; give one prompt a line, JSON lines"):
        read(tmp_path / "nowhere.txt")


@given(st.text(max_size=200), st.booleans())
def test_any_text_is_read_or_refused(text: str, is_table: bool) -> None:
    try:
        rows = parse(text, "it", is_table)
    except OptsdError:
        return
    assert rows
    assert all(row.text.isprintable() and row.text.strip() == row.text for row in rows)


@given(
    st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["C", "Z"]), min_size=1))
)
def test_json_lines_of_any_texts_come_back(texts: list[str]) -> None:
    text = "".join(json.dumps({"prompt": each}) + "\n" for each in texts)
    if texts:
        assert [row.text for row in parse(text, "it")] == texts


def test_identity_is_of_what_is_asked_for() -> None:
    rows = [Row("a dog"), Row("two cats")]
    others = [rows[::-1], [Row("a dog."), rows[1]], rows[:1], [Row("a dog", seed=1), rows[1]]]
    assert len({identity(each) for each in (rows, *others)}) == 5
    assert identity(parse("a dog\ntwo cats", "a")) == identity(parse('["a dog", "two cats"]', "b")) == identity(rows)


def test_a_reference_is_its_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "notes.txt"):
        (tmp_path / name).write_text(name)
    assert reference_files.names(tmp_path) == ["a.jpg", "b.png"]
    before = reference_files.identity(tmp_path)
    (tmp_path / "notes.txt").write_text("other")
    assert reference_files.identity(tmp_path) == before
    (tmp_path / "a.jpg").write_text("other")
    assert reference_files.identity(tmp_path) != before
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(NotFound, match="holds 1 pictures; give a folder of two or more"):
        reference_files.identity(tmp_path)


def test_prompts_keep_their_order() -> None:
    made = prompt_files.prompts([Row("a", file_name="1.jpg"), Row("b")])
    assert [(each.text, each.image_id, each.file_name) for each in made] == [("a", 0, "1.jpg"), ("b", 1, "")]

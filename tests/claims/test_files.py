"""Files of claims: written and read back, found by name, and every mistake in one said with its place."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from optsd.claims import files, template, words
from optsd.claims.schema import Published, Stated
from optsd.errors import BadInput, NotFound
from optsd.metrics import METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "expected" / "claims"


def unlabelled(claims):
    return [replace(claim, label="") for claim in claims]


def test_written_and_read_back(claims_of, tmp_path):
    claims = claims_of(
        {"source": "One (2024)", "dtype": "float16 (script)", "batch": "not said"},
        {"source": "One (2024)", "technique": "DeepCache", "dtype": "float16 (script)", "value": "OOM"},
        {"source": "One (2024)", "url_or_path": "arXiv 1, Table 2", "value": "5 to 300", "notes": 'says "5-300 %"'},
        {"source": "Another"},
    )
    written = files.publish(claims, tmp_path / "claims")
    assert [file.name for file in written] == ["one.json", "another.json"]
    back = [claim for file in written for claim in files.read(file).claims]
    assert unlabelled(back) == unlabelled(claims)
    assert [claim.label for claim in back] == ["one 1", "one 2", "one 3", "another 1"]
    # Two rows of one place share what they have in common, once.
    table = json.loads(written[0].read_text())["tables"][0]
    assert table["all"]["setting"]["dtype"] == {"value": "float16", "from": "script"}
    assert "setting" not in table["claims"][1] or "dtype" not in table["claims"][1]["setting"]


def test_the_committed_files_are_what_the_schema_says():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "expected" / "schema" / "claims.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for file in sorted(FOLDER.glob("*.json")):
        assert not list(validator.iter_errors(json.loads(file.read_text()))), file.name
    assert set(schema["$defs"]["metric"]["properties"]["kind"]["enum"]) == {*words.KINDS, *METRICS}
    assert set(schema["$defs"]["value"]["properties"]["unit"]["enum"]) == set(words.UNITS)
    broken = template.data()
    broken["tables"][0]["claims"][0]["metric"]["kind"] = "speed"
    assert list(validator.iter_errors(broken))


def test_the_committed_files_are_those_of_the_collection(shared, tmp_path):
    from optsd.claims import rows

    source = shared / "claims" / "published.json"
    if not source.is_file():
        pytest.skip(f"needs {source}")
    for file in files.publish(rows.read_rows(source), tmp_path / "claims"):
        assert file.read_text() == (FOLDER / file.name).read_text(), f"optsd claims import {source}"


@pytest.mark.parametrize(
    ("name", "stems"),
    [
        ("guide", ["guide"]),
        ("deepcache", ["deepcache"]),
        ("tome", ["diffusers-docs-tome", "tome-sd-readme"]),
        ("deepcache,guide", ["deepcache", "guide"]),
        ("DeepCache", ["deepcache"]),
    ],
)
def test_names(name, stems):
    assert [file.stem for file in files.find(name, FOLDER)] == stems


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(NotFound, match=r"no claims 'nothing'; choose from aitemplate-readme, .*guide.* or give a file"):
        files.find("nothing", FOLDER)


def changed(change):
    data = template.data()
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(colour=1), "the file: unknown key 'colour'; use $schema"),
        (lambda d: d.pop("source"), "it has no source; name the paper"),
        (lambda d: d.update(tables={}), "tables: it is no list"),
        (lambda d: d["tables"][0].update(rows=[]), "table 1: it is no table of claims"),
        (lambda d: d["tables"][0]["claims"].append(3), "table 1 claim 6: it is no table"),
        (lambda d: d["tables"][0]["claims"][0].pop("technique"), "claim 1: 'technique' is missing"),
        (lambda d: d["tables"][0]["claims"][0].update(tecnique=1), "claim 1: unknown key 'tecnique'"),
        (lambda d: d["tables"][0]["claims"][0]["value"].update(figure="1.6"), "value figure: '1.6' is no int or float"),
        (lambda d: d["tables"][0]["claims"][0]["value"].update(readings=["a"]), "readings: 'a' is no number"),
        (
            lambda d: d["tables"][0]["all"]["setting"].update(steps=[50]),
            "setting steps: [50] states nothing; give a value",
        ),
        (lambda d: d["tables"][0]["all"].update(setting=3), "claim 1 setting: it is no table"),
        (lambda d: d.update(schema=3), "is no file of claims of schema 2"),
        (lambda d: d.update(schema=1), "schema 1; convert it: optsd claims convert"),
        (lambda d: d.update(models=3), "models: it is no table"),
    ],
)
def test_mistakes(tmp_path, change, message):
    file = tmp_path / "file.json"
    file.write_text(json.dumps(changed(change)))
    with pytest.raises(BadInput) as error:
        files.read(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_an_unstated_field_in_each_of_its_forms(tmp_path):
    data = template.data()
    setting = data["tables"][0]["all"]["setting"]
    setting |= {"guidance": "unstated", "steps": {"unstated": "not said"}, "dtype": {"value": "fp16", "from": "script"}}
    del setting["batch"]
    file = tmp_path / "file.json"
    file.write_text(json.dumps(data))
    found = files.read(file).claims[0].setting
    assert found.guidance == found.batch == Stated()
    assert found.steps == Stated(None, "not said")
    assert found.dtype == Stated("fp16", "script")
    assert found.missing() == ("steps", "guidance", "batch")


def test_the_template_is_a_file_of_claims_with_nothing_unstated(tmp_path):
    file = tmp_path / "template.json"
    file.write_text(template.json_text())
    published = files.read(file)
    assert not any(claim.setting.missing() for claim in published.claims)
    text = template.markdown(published.claims)
    assert "| 2.13× | the row above: SDPA, eager |" in text


def test_a_file_of_schema_1_is_converted(tmp_path):
    from optsd.judge.reading import read_claims

    old = Path(__file__).parents[1] / "judge" / "claims-schema-1.json"
    new = tmp_path / "new.json"
    files.write(files.from_schema_1(json.loads(old.read_text())), new)
    before, after = read_claims(old), read_claims(new)
    assert [replace(claim, label="") for claim in after.claims] == list(before.claims)
    assert after.workload == before.workload
    assert isinstance(files.read(new), Published)

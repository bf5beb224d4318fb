"""Every mistake in a file of expectations is an error that names file, row and remedy."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.judge.reading import read_baselines, read_claims
from optsd.judge.recording import update

ROOT = Path(__file__).parents[2]
OLD_CLAIMS = Path(__file__).parent / "claims-schema-1.json"
GUIDE = ROOT / "expected" / "claims" / "guide.json"


@pytest.fixture(scope="module")
def good_claims():
    return json.loads(OLD_CLAIMS.read_text())


@pytest.fixture(scope="module")
def good_baselines(make_run, tmp_path_factory):
    file = tmp_path_factory.mktemp("baselines") / "test.json"
    update(file, make_run())
    return json.loads(file.read_text())


@pytest.fixture
def refused(tmp_path):
    """Read a changed copy, which must be refused; gives the message without the folder."""

    def check(read, good, change):
        data = copy.deepcopy(good)
        changed = change(data)
        data = changed if isinstance(changed, str) else data
        file = tmp_path / "file.json"
        file.write_text(data if isinstance(data, str) else json.dumps(data))
        with pytest.raises(BadInput) as error:
            read(file)
        assert str(file) in str(error.value)
        return str(error.value).replace(f"{tmp_path}/", "")

    return check


def first(**changes):
    """Change the first claim."""
    return lambda data: data["claims"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first(variant="int9"), "claims row 1: unknown variant 'int9'; choose from"),
        (first(variant="combined"), "claims row 1: 'combined' is another name of int8+flash; write int8+flash"),
        (first(metric="speed"), "claims row 1: unknown metric 'speed'; use a name of optsd/metrics.py"),
        (first(expectd=1), "claims row 1: unknown key 'expectd'; use at_least, at_most, expected, from"),
        (first(at_least=1), "(baseline speedup): it says no single expectation; give one of expected, at_least"),
        (first(expected=0.0), "expected 0 is not above zero and would hide any regression; record a measured one"),
        (first(expected=-1), "expected -1 is not above zero"),
        (first(expected="1.39"), "expected '1.39' is no number"),
        (first(expected=True), "expected True is no number"),
        (first(source=" "), "it has no source; name the table or sentence of the guide"),
        (first(tolerance=0.1), 'its tolerance is not one number; write {"relative": 0.1} or {"absolute": 0.02}'),
        (first(tolerance={"relative": 10}), "relative tolerance 10 is out of range; write 0.1 for ±10 %"),
        (first(tolerance={"relative": -0.1}), "relative tolerance -0.1 is out of range"),
        (lambda data: data["claims"].append(data["claims"][0]), "baseline speedup is there twice; remove one"),
        (lambda data: data["claims"][0].pop("metric") and None, "claims row 1: 'metric' is missing; add it"),
        (lambda data: data["claims"].insert(0, 3), "claims row 1: it is no table; give keys and values"),
        (lambda data: data.update(claims={}), "claims: it is no list; give a list of rows"),
        (lambda data: data.update(claim=[]), "the file: unknown key 'claim'"),
        (lambda data: data.update(images=0), "images: 0 is no number of pictures; give a whole number above zero"),
        (lambda data: data.update(schema=3), "is no expectations file of schema 1; begin it with"),
        (lambda data: data["workload"].pop("steps"), "workload: 'steps' is missing"),
        (lambda data: data.update(workload=3), "workload: it is no table"),
        (lambda data: data["tolerance"].pop("quality"), "tolerance: 'quality' is missing"),
        (lambda data: data["tolerance"].update(speed={}), "tolerance: unknown key 'speed'"),
        (lambda data: json.dumps(data).replace("1.39", "NaN", 1), "NaN is no number that JSON knows; record"),
        (lambda data: json.dumps(data)[:-200], "is no JSON, or a part of it is missing"),
        (lambda data: "", "restore it from version control"),
    ],
)
def test_claims(refused, good_claims, change, message):
    assert message in refused(read_claims, good_claims, change)


def test_zero_needs_an_absolute_tolerance(refused, good_claims):
    row = {"variant": "int8", "metric": "memory_reduction", "expected": 0.0, "source": "made up"}
    message = refused(read_claims, good_claims, lambda data: data["claims"].append(row))
    assert "claims row 31 (int8 memory_reduction): expected 0 is not above zero" in message
    assert message.endswith("or give the row an absolute tolerance")


def test_a_range_the_wrong_way_round(refused, good_claims):
    row = {"variant": "int8", "metric": "speedup", "from": 1.4, "to": 1.3, "source": "made up"}
    assert "from 1.4 is above to 1.3; swap them" in refused(
        read_claims, good_claims, lambda data: data["claims"].append(row)
    )


def test_an_old_file_is_read_and_the_guides_new_one_says_the_same(good_claims):
    old, new = read_claims(OLD_CLAIMS), read_claims(GUIDE)
    unlabelled = tuple(replace(claim, label="") for claim in new.claims)
    assert replace(new, file=old.file, unstated=(), claims=unlabelled) == old
    assert new.claims[4].label == "guide 5"
    assert new.unstated == ("scheduler",)


def row_of(**changes):
    return lambda data: data["runs"][0]["rows"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (row_of(variant="int9"), "runs row 1 rows row 1: unknown variant 'int9'"),
        (row_of(value=0), "rows row 1 (baseline latency_s): value 0 is not above zero and would hide any regression"),
        (row_of(value=None), "value None is no number; record a measured one, or remove the row"),
        (row_of(samples=[1.0, -1.0]), "samples -1 is not above zero"),
        (row_of(samples=3), "samples is no list; record the file again with --expected-update"),
        (row_of(valeu=3), "unknown key 'valeu'; use high, low, metric, pictures, samples, tolerance, value, variant"),
        (row_of(tolerance={}), "its tolerance is not one number"),
        (lambda data: data["runs"][0]["rows"].append(data["runs"][0]["rows"][0]), "baseline latency_s is there twice"),
        (lambda data: data["runs"].append(data["runs"][0]), "is there twice; remove one of the two rows"),
        (lambda data: data["runs"][0].update(kernels=[]), "runs row 1 kernels: it is no table; record the file again"),
        (lambda data: data["runs"][0].update(noise_floor="small"), "noise_floor 'small' is no number"),
        (lambda data: data["runs"][0].pop("identity"), "runs row 1: 'identity' is missing"),
        (lambda data: data["runs"][0]["workload"].pop("seed"), "runs row 1 workload: 'seed' is missing"),
        (lambda data: data.update(machine=""), "machine: it is no name of a machine"),
        (lambda data: json.dumps(data)[:300], "a part of it is missing"),
    ],
)
def test_baselines(refused, good_baselines, change, message):
    assert message in refused(read_baselines, good_baselines, change)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"cannot read .*none\.json .*; give the path of an expectations file"):
        read_claims(tmp_path / "none.json")


def test_the_schema_for_editors_agrees(good_baselines):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "expected" / "schema" / "baselines.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(good_baselines, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good_baselines, "runs": [{"rows": []}]}, schema)


@pytest.mark.parametrize("read", [read_claims, read_baselines])
@given(data=st.data())
def test_any_damage_is_an_error_that_names_the_file_or_none(
    good_claims, good_baselines, tmp_path_factory, junk, refusal, read, data
):
    good = good_claims if read is read_claims else good_baselines
    file = tmp_path_factory.mktemp("damaged") / "file.json"
    file.write_text(json.dumps(junk(data, good)), encoding="utf-8")
    said = refusal(read, file)
    assert not said or str(file) in said


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"[" * 100_000, b'{"schema": 1, "schema": 1}'])
def test_bytes_that_are_no_expectations(tmp_path, content):
    file = tmp_path / "file.json"
    file.write_bytes(content)
    for read in (read_claims, read_baselines):
        with pytest.raises(BadInput, match="file.json"):
            read(file)


def test_a_byte_order_mark_is_no_mistake(tmp_path, good_claims):
    file = tmp_path / "file.json"
    file.write_text(json.dumps(good_claims), encoding="utf-8-sig")
    assert len(read_claims(file).claims) == len(good_claims["claims"])

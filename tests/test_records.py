import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.errors import BadInput
from optsd.files import write_atomically
from optsd.records import Measurement, Results, Technique, Verdict, Workload, dumps

WORKLOAD = Workload("shapes", "cpu", "float32", 20, 5.0, 64, 64, 4)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.text(), FINITE, st.lists(FINITE, max_size=5))
def test_results_survive_json(name: str, value: float, samples: list[float]) -> None:
    results = Results(
        machine={"cpu": {"name": name}},
        workload=WORKLOAD,
        measurements=(Measurement(name, "latency_s", "s", value, samples=tuple(samples)),),
        verdicts=(Verdict(name, "speedup", "missed", 1.0, 2.0, "±10 %", "claims.json"),),
        techniques=(Technique(name, True, ("unet.conv_in",), {"calls": 3}),),
        complete=True,
    )
    assert Results.from_json(results.to_json()) == results


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_measurement_is_a_finite_number(number: float) -> None:
    with pytest.raises(BadInput, match="is no measurement; record None"):
        Measurement("int8", "latency_s", "s", number)
    with pytest.raises(BadInput, match="is no measurement"):
        Measurement("int8", "latency_s", "s", 1.0, samples=(1.0, number))


def test_a_missing_value_says_why() -> None:
    with pytest.raises(BadInput, match="say in its note why"):
        Measurement("int8", "fid", "", None)
    assert Measurement("int8", "fid", "", None, note="no weights").value is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[]", "is no results file of schema 1"),
        ('{"schema": 2}', "is no results file of schema 1"),
        ('{"schema": 1}', "does not fit the schema"),
        ('{"schema": 1, "machine": {}, "workload": {}, "measurements": [{"value": NaN}]}', "is no JSON"),
    ],
)
def test_what_is_no_results_file_is_said_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem) as caught:
        Results.from_json(text, "some.json")
    assert "some.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(BadInput, match="give the path of a results.json"):
        Results.read(tmp_path / "none.json")


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError):
        dumps({"value": math.nan})
    assert json.loads(dumps({"b": 1, "a": "é"})) == {"b": 1, "a": "é"}


def test_lookup_by_variant_and_metric() -> None:
    found = Measurement("int8", "latency_s", "s", 1.5)
    results = Results({}, WORKLOAD, (found,))
    assert results.get("int8", "latency_s") is found
    assert results.get("int8", "fid") is None
    assert results.variants == ("int8",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": []}, "it is \\[\\], not dict"),
        ({"workload": {**vars(WORKLOAD), "steps": "20"}}, "steps is '20', not a number"),
        ({"workload": {**vars(WORKLOAD), "guidance": 1e999}}, "guidance is inf, not a number|is no JSON"),
        ({"measurements": "none"}, "it is 'none', not dict"),
        ({"measurements": [{"variant": 3, "metric": "m", "unit": "", "value": 1.0}]}, "variant is 3, not str"),
        ({"measurements": [{"variant": "a", "metric": "m", "unit": "", "value": "1"}]}, "value is '1', not a number"),
        (
            {"measurements": [{"variant": "a", "metric": "m", "unit": "", "value": 1, "samples": "12"}]},
            "samples is '12'",
        ),
        ({"images": [{"variant": "a"}]}, "file"),
        ({"failures": [{"variant": None}]}, "variant is None, not str"),
        ({"techniques": [{"variant": "a", "exact": True, "touched": [1]}]}, "touched is 1, not str"),
        ({"verdicts": {}}, "verdicts is {}, not list"),
        ({"complete": "yes"}, "it is 'yes', not bool"),
    ],
)
def test_a_row_of_another_type_is_said_in_one_line(change: dict, said: str) -> None:
    text = json.dumps({**json.loads(Results({}, WORKLOAD).to_json()), **change})
    with pytest.raises(BadInput, match=f"some.json.*({said})"):
        Results.from_json(text, "some.json")


def test_an_argument_that_is_not_utf8_survives(tmp_path) -> None:
    """Half of a surrogate pair is what Python makes of such bytes on a command line; UTF-8 has no place for it."""
    results = Results({}, WORKLOAD, command="pytest bench --output=caf\udce9")
    write_atomically(tmp_path / "results.json", results.to_json())
    assert Results.read(tmp_path / "results.json") == results

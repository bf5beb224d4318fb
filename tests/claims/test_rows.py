"""Rows as claims and back: nothing lost, nothing invented, whatever the words."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsd.claims import rows
from optsd.claims.schema import Claim, Stated, from_json, to_json
from optsd.errors import BadInput


@pytest.fixture(scope="module")
def published(shared):
    file = shared / "claims" / "published.json"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    return json.loads(file.read_text())


def test_every_published_row_is_expressed_field_by_field(published):
    lost = Counter()
    understood = 0
    for row in published:
        claim = rows.from_row(row)
        again = from_json(Claim, json.loads(json.dumps(to_json(claim))), "claim")  # through the file's own form
        back = rows.to_row(again.__class__(**{**vars(again), "source": claim.source}))
        lost.update(key for key in row if back[key] != row[key] or type(back[key]) is not type(row[key]))
        understood += claim.metric.kind != "other" and bool(claim.value.numbers or claim.value.outcome)
    assert not lost
    assert understood >= 0.95 * len(published)


def test_nothing_is_invented(published):
    """Every number and word of the typed parts stands somewhere in the row."""
    for row in published:
        claim = rows.from_row(row)
        text = json.dumps(row, ensure_ascii=False).lower()
        numbers = {float(each) for each in re.findall(r"\d+(?:\.\d+)?", text)}
        value = claim.value
        for number in (*value.numbers, *value.readings, value.spread, value.before, claim.against.seconds):
            assert number is None or abs(number) in numbers, (row, number)
        for number in (claim.metric.count, claim.metric.resized, claim.against.steps):
            assert number is None or number in numbers or number / 1000 in numbers
        for word in (
            claim.metric.network,
            claim.prompts,
            claim.metric.over,
            claim.metric.device,
            claim.against.text_says,
        ):
            assert word.lower() in text
        for name in vars(claim.setting):
            stated = getattr(claim.setting, name)
            assert stated.known == (row[name] is not None and not str(row[name]).startswith("not "))


TEXT = st.text(max_size=40)
SAID = st.one_of(
    st.none(), st.integers(0, 10**6), st.floats(0, 1e6, allow_nan=False), TEXT,
    st.sampled_from(["float16 (script)", "16 (README command)", "not said", "x (y) (z)", "(a)", "a (b"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({
        **dict.fromkeys(("source", "url_or_path", "technique", "baseline", "metric", "unit", "notes", "seen"), TEXT),
        **dict.fromkeys(("model", "device", "dtype", "steps", "scheduler", "guidance", "size", "batch"), SAID),
        "images": SAID,
        "parameters": st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.booleans()), max_size=3),
        "value": st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False),
                           st.text(min_size=1, max_size=40),
                           st.sampled_from(["OOM", "5 to 300", "4.8 -> 1.4", "~3", "24.5 ± 0.2", "up to 4.2x"])),
    })
)  # fmt: skip
def test_any_row_comes_back(row):
    claim = rows.from_row(row)
    assert rows.to_row(claim) == row
    again = from_json(Claim, json.loads(json.dumps(to_json(claim))), "claim")
    assert again == claim


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"value": None}, "value None is no figure"),
        ({"value": [1, 2]}, "is no figure"),
        ({"steps": True}, "steps True is neither number nor text"),
        ({"metric": 3}, "metric is no text"),
    ],
)
def test_what_would_be_lost_is_refused(row, changes, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        rows.from_row(row(**changes), "rows.json row 3")


def test_a_missing_key_is_unstated(row):
    short = {key: value for key, value in row().items() if key not in ("guidance", "batch")}
    claim = rows.from_row(short)
    assert claim.setting.guidance == claim.setting.batch == Stated()


def test_a_source_in_its_parts(row):
    source = rows.from_row(row(url_or_path="owner/name@0123456789ab (v0.14.0) docs/a.mdx, float16 table, row 3")).source
    assert (source.repository, source.commit) == ("owner/name", "0123456789ab")
    assert (source.document, source.place) == ("(v0.14.0) docs/a.mdx", "float16 table, row 3")

"""What `optsd claims check` finds by itself, in rows like the field's; and that it is silent where all is well."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optsd.claims import rows
from optsd.claims.checks import check
from optsd.claims.files import read

TIME = {"metric": "latency per call (batch)", "unit": "s"}
RATIO = {"metric": "speedup", "unit": "x"}


def found(claims, status="contradiction"):
    return [each for each in check(claims).findings if each.status == status]


def pair(claims_of, before, after, ratio, **more):
    """A baseline, a technique and the ratio that is said of them."""
    return claims_of(
        {**TIME, "value": before, **more}, {**TIME, "technique": "Faster", "value": after, **more},
        {**RATIO, "technique": "Faster", "value": ratio, **more},
    )  # fmt: skip


# --- ratios and their seconds


def test_a_ratio_that_is_another_one_by_its_own_seconds(claims_of):
    (finding,) = found(pair(claims_of, 2.271, 1.675, 1.8))
    assert finding.says == "speedup 1.8× is 1.356× by its own figures"
    assert finding.arithmetic == "2.271 s ÷ 1.675 s = 1.356×"
    assert "of the same run" in finding.assumption
    assert set(finding.claims) == {"1", "2", "3"}


@pytest.mark.parametrize("ratio", [1.36, 1.35, 1.4, 1.356])
def test_rounded_or_cut_off_is_no_contradiction(claims_of, ratio):
    assert not found(pair(claims_of, 2.271, 1.675, ratio))


def test_a_percentage_of_time_saved(claims_of):
    said = {"metric": '"speed-up percentage"', "unit": "% of time saved", "technique": "ToMe + xFormers"}
    wrong = claims_of(
        {**TIME, "value": 4.99}, {**TIME, "technique": "ToMe + xFormers", "value": 2.1}, {**said, "value": 37.88}
    )
    (finding,) = found(wrong)
    assert finding.arithmetic == "1 − 2.1 s ÷ 4.99 s = 57.91 %"
    right = claims_of(
        {**TIME, "value": 4.99}, {**TIME, "technique": "ToMe + xFormers", "value": 2.1}, {**said, "value": 57.92}
    )
    assert not found(right)
    (reading,) = found(right, "reading")
    assert "share of the time saved, not a rate gained" in reading.says
    assert "2.38×" in reading.arithmetic


def test_a_ratio_printed_as_an_improvement(claims_of):
    rate = {"metric": "it/s", "unit": "it/s"}
    claims = claims_of(
        {**rate, "value": 2.99}, {**rate, "technique": "OneDiff", "value": 7.08},
        {"technique": "OneDiff", "metric": '"Percentage improvement"', "unit": "%", "value": 236.79},
    )  # fmt: skip
    assert not found(claims)
    (reading,) = found(claims, "reading")
    assert "is a ratio in %, not a rate gained" in reading.says
    assert "136.8 %" in reading.arithmetic


def test_over_a_named_baseline(claims_of):
    said = {"technique": "SDPA + torch.compile", "metric": '"Speed over xformers"', "unit": "% of time saved"}
    rows_ = (
        {**TIME, "technique": "vanilla attention", "value": 12.0},
        {**TIME, "technique": "xFormers", "value": 8.7},
        {**TIME, "technique": "SDPA + torch.compile", "value": 7.89},
    )
    assert not found(claims_of(*rows_, {**said, "value": 9.31}))
    (finding,) = found(claims_of(*rows_, {**said, "value": 34.3}))  # true of the other baseline
    assert "8.7 s" in finding.arithmetic


def test_a_figure_taken_of_another_baseline_than_the_text_says(claims_of):
    claims = claims_of(
        {**TIME, "technique": "none + compile", "value": 4.209},
        {"technique": "fp8 + compile", "metric": '"speedup"', "unit": "% of time saved", "value": 53.88,
         "baseline": "bf16 uncompiled, 6.431 s (text says compiled)"},
    )  # fmt: skip
    (finding,) = found(claims)
    assert "not taken of the baseline that the text names (compiled)" in finding.says
    assert "1 − 2.966 s ÷ 6.431 s = 53.88 %, 2.17×" in finding.arithmetic
    assert "29.5 %" in finding.arithmetic


def test_a_factor_of_memory(claims_of):
    memory = {"metric": "peak memory", "unit": "GB"}
    claims = claims_of(
        {**memory, "value": 3.41}, {**memory, "technique": "ToMe", "value": 1.71},
        {"technique": "ToMe", "metric": "memory factor", "unit": "x less", "value": 2.5},
    )  # fmt: skip
    (finding,) = found(claims)
    assert "is 1.994× by its own figures" in finding.says


@pytest.mark.parametrize(
    ("said", "right", "wrong"),
    [
        ({"metric": "memory saved", "unit": "%"}, 49.9, 99.4),
        ({"metric": "memory reduction", "unit": ""}, 0.499, 0.9),
        ({"metric": "memory factor", "unit": "x less"}, 1.99, 1.5),
    ],
)
def test_memory_saved_is_a_share_of_the_baselines(claims_of, said, right, wrong):
    memory = {"metric": "peak memory", "unit": "GB"}
    before = ({**memory, "value": 3.41}, {**memory, "technique": "ToMe", "value": 1.71})
    assert not check(claims_of(*before, {"technique": "ToMe", **said, "value": right})).findings
    assert len(check(claims_of(*before, {"technique": "ToMe", **said, "value": wrong})).findings) == 1


@pytest.mark.parametrize(("name", "right"), [("latency reduction", 50), ("speed improvement", 100)])
def test_a_bare_percentage_is_what_its_name_says(claims_of, name, right):
    times = ({**TIME, "value": 2.0}, {**TIME, "technique": "Faster", "value": 1.0})
    said = {"technique": "Faster", "metric": name, "unit": "%"}
    assert not check(claims_of(*times, {**said, "value": right})).findings
    (finding,) = check(claims_of(*times, {**said, "value": 150 - right})).findings
    assert finding.status == "reading"


def test_another_batch_is_another_run(claims_of):
    claims = claims_of(
        {**TIME, "value": 2.0, "batch": 4}, {**TIME, "technique": "Faster", "value": 1.0},
        {**RATIO, "technique": "Faster", "value": 3.0},
    )  # fmt: skip
    assert not check(claims).findings
    assert "3" not in check(claims).compared


def test_a_change_printed_beside_a_figure(claims_of):
    rate = {"metric": "iterations per second", "unit": "it/s"}
    right = ({**rate, "value": 21.25}, {**rate, "technique": "OneDiff", "value": 46.34, "notes": "printed +118.1%."})
    assert not found(claims_of(*right))
    wrong = ({**rate, "value": 3.97}, {**rate, "technique": "OneDiff", "value": 6.91, "notes": "printed +95.2%."})
    (finding,) = found(claims_of(*wrong))
    assert finding.says == "printed +95.2%, by its own figures 74.06 %"


# --- units


@pytest.mark.parametrize(
    "evidence",
    [
        [{"notes": "695 ms / 1 = 0.69 s per image"}],
        [{}, {"technique": "AITemplate", "metric": "Pipeline latency", "value": 1283, "unit": "ms", "steps": 100}],
        [{}, {"technique": "AITemplate", "metric": "latency per image", "value": 0.7, "unit": "s"}],
    ],
)
def test_pictures_a_second_that_are_seconds_a_picture(claims_of, evidence):
    said = {"technique": "AITemplate", "metric": '"AVG im/s"', "value": 0.69, "unit": "im/s"}
    (finding,) = found(claims_of({**said, **evidence[0]}, *evidence[1:]))
    assert finding.says == "AVG im/s 0.69 images/s is 0.69 s/image"


def test_a_page_whose_times_are_percent_on_its_sister_page(claims_of):
    page = "some/project@0123abc docs/a.md, text"
    said = {"metric": "speedup", "technique": "torch.compile over SDPA", "value": "5 to 300", "unit": "x (as printed)",
            "device": None, "batch": None, "url_or_path": page}  # fmt: skip
    noted = claims_of({**said, "notes": 'docs/b.md of the same tag prints the same claim as "5 - 300% faster".'})
    own_row = claims_of(
        said, {**said, "unit": "% faster", "url_or_path": "some/project@0123abc docs/b.md", "source": "The sister page"}
    )
    for claims in (noted, own_row):
        (finding,) = found(claims)
        assert "1.05× to 4×, not 5× to 300×" in finding.arithmetic


def test_a_headline_beyond_its_own_tables(claims_of):
    rate = {"metric": "iterations per second", "unit": "it/s"}
    claims = claims_of(
        {**rate, "technique": "SDPA", "value": 21.66}, {**rate, "technique": "SDPA + compile", "value": 44.03},
        {**RATIO, "technique": "torch.compile over SDPA", "value": 5, "device": None, "batch": None},
    )  # fmt: skip
    (finding,) = found(claims)
    assert "1 pairs of rows give 2.03× to 2.03×" in finding.arithmetic


@pytest.mark.parametrize(
    "said",
    [
        {"metric": '"saved"', "unit": "% of time saved", "value": 120},
        {"metric": "CLIP score", "unit": "cosine", "value": 31.2},
        {"metric": "SSIM", "unit": "", "value": 1.2},
        {"metric": "latency per image", "unit": "s", "value": 0.0},
        {"metric": "FID", "unit": "", "value": -3.0},
    ],
)
def test_units_that_cannot_be(claims_of, said):
    assert len(found(claims_of(said))) == 1


def test_parts_and_wholes(claims_of):
    whole = {"metric": "s/image, whole model", "unit": "s", "value": 2.42}
    assert not found(claims_of(whole, {"metric": "s/image, UNet only", "unit": "s", "value": 2.23}))
    assert len(found(claims_of(whole, {"metric": "s/image, UNet only", "unit": "s", "value": 2.8}))) == 1
    loop = {"metric": "iterations per second", "unit": "it/s"}
    assert not found(claims_of(whole, {**loop, "value": 21.0}))
    (finding,) = found(claims_of(whole, {**loop, "value": 15.0}))
    assert "take longer than the whole picture" in finding.says


# --- one setting, two figures


def test_two_places_of_one_source(claims_of):
    clip = {"metric": "CLIP score", "unit": "cosine x100", "images": 5000}
    claims = claims_of(
        {**clip, "value": 30.24, "url_or_path": "arXiv 1, Table 14", "notes": "Prompts: COCO2017 val."},
        {**clip, "value": 30.3, "url_or_path": "arXiv 1, Table 3"},
    )
    (finding,) = found(claims)
    assert "30.24 and 30.3" in finding.says
    assert "Table 14 and Table 3" in finding.says


def test_a_row_that_leaves_a_parameter_open_need_agree_with_one_of_those_that_give_it(claims_of):
    said = {"technique": "DeepCache", "metric": "CLIP score", "unit": "cosine x100"}
    given_ = [
        {**said, "value": 29.41, "parameters": {"schedule": "uniform"}, "url_or_path": "arXiv 1, Table 13"},
        {**said, "value": 29.52, "parameters": {"schedule": "non-uniform"}, "url_or_path": "arXiv 1, Table 13"},
    ]
    vague = {**said, "parameters": {"schedule": "not said"}, "url_or_path": "arXiv 1, Table 3"}
    assert not found(claims_of(*given_, {**vague, "value": 29.52}))
    assert len(found(claims_of(*given_, {**vague, "value": 29.46}))) == 1


def test_two_sources(claims_of):
    step = {"metric": "iterations per second", "unit": "it/s"}
    claims = claims_of(
        {**step, "source": "docs", "technique": "SDPA", "value": 21.66, "parameters": {"torch": "2.0"}},
        {**step, "source": "README", "technique": "Vanilla PyTorch (2.1.0)", "value": 35.6, "steps": None,
         "baseline": "Vanilla PyTorch 2.1.0 (SDPA by default)"},
    )  # fmt: skip
    assert not found(claims)
    (finding,) = found(claims, "differs")
    assert "21.66 it/s" in finding.says
    assert "35.6 it/s" in finding.says
    assert "steps unstated in one of them" in finding.assumption


@pytest.mark.parametrize(
    "other", [{"device": "H100"}, {"batch": 4}, {"dtype": "float32"}, {"technique": "xFormers"}, {"value": 22.0}]
)
def test_sources_that_say_different_things_do_not_differ(claims_of, other):
    step = {"metric": "iterations per second", "unit": "it/s", "technique": "SDPA"}
    claims = claims_of({**step, "value": 21.66}, {**step, "source": "another", "value": 35.6, **other})
    assert not check(claims).findings


def test_a_mean_and_its_readings(claims_of):
    said = {"metric": "FID mean of 3 seeds", "unit": "", "notes": "seeds (24.628, 24.164, 24.661); sd 0.227."}
    assert not found(claims_of({**said, "value": 24.484}))
    assert len(found(claims_of({**said, "value": 25.1}))) == 1


# --- properties


@st.composite
def tables(draw):
    """Rows that follow from each other: times of a baseline and of techniques, to so many places, and their ratios."""
    places = draw(st.integers(1, 3))
    rows_, used = [], draw(st.lists(st.sampled_from("ABCDEF"), min_size=1, max_size=4, unique=True))
    unit = draw(st.sampled_from(["x", "% of time saved", "% faster"]))
    for batch in draw(st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True)):
        base = draw(st.floats(1.0, 100.0))
        kind = draw(st.sampled_from(["s", "images/s", "it/s"]))

        def shown(seconds, kind=kind):
            return round(seconds if kind == "s" else 40 / seconds, places)

        said = {
            "s": {"metric": "latency per call (batch)", "unit": "s"},
            "images/s": {"metric": "throughput", "unit": "images/s"},
            "it/s": {"metric": "iterations per second", "unit": "it/s"},
        }[kind]
        rows_.append({**said, "batch": batch, "value": shown(base)})
        for name in used:
            factor = draw(st.floats(0.7, 5.0))
            technique = f"Technique {name}"
            ratio = {"x": factor, "% of time saved": 100 - 100 / factor, "% faster": 100 * factor - 100}[unit]
            rows_.append({**said, "technique": technique, "batch": batch, "value": shown(base / factor)})
            rows_.append({
                "technique": technique, "batch": batch, "metric": "gain", "unit": unit, "value": round(ratio, 2),
            })  # fmt: skip
    return rows_


@settings(max_examples=40, deadline=None)
@given(table=tables())
def test_a_consistent_table_has_no_finding(claims_of, table):
    assert not check(claims_of(*table)).findings


@settings(max_examples=40, deadline=None)
@given(table=tables(), which=st.integers(0, 99), off=st.sampled_from([0.5, 1.6, 3.0]))
def test_a_planted_ratio_is_found(claims_of, table, which, off):
    ratios = [number for number, row in enumerate(table) if row["metric"] == "gain"]
    place = ratios[which % len(ratios)]
    row = table[place]
    # What the ratio is in ×, wrong by a factor that no rounding of its seconds explains.
    as_ratio = {
        "x": lambda v: v, "% of time saved": lambda v: 100 / (100 - v), "% faster": lambda v: 1 + v / 100,
    }[row["unit"]](row["value"])  # fmt: skip
    wrong = as_ratio * off
    value = {"x": wrong, "% of time saved": 100 - 100 / wrong, "% faster": 100 * wrong - 100}[row["unit"]]
    table = [*table[:place], {**row, "value": round(value, 2)}, *table[place + 1 :]]
    small = min(each["value"] for each in table if each["metric"] != "gain" and each["batch"] == row["batch"])
    if small < 5:  # printed with one place, a rate of 0.8 is anything within 6 %
        return
    assert str(place + 1) in {label for each in found(claims_of(*table)) for label in each.claims}


# --- the field's own


def test_what_the_committed_field_says_of_itself():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "expected" / "claims"
    claims = [claim for file in sorted(folder.glob("*.json")) for claim in read(file).claims]
    result = check(claims)
    assert all(each.assumption and each.arithmetic for each in result.findings)
    text = "\n".join(f"{each.says} {each.arithmetic}" for each in result.findings)
    for told in (
        "speedup 1.8× is 1.356×", "37.88 % is 57.91 %", "5 to 300 % faster is 1.05× to 4×",
        "0.69 images/s is 0.69 s/image", "53.88 % is not taken of the baseline that the text names",
        "21.66 it/s", "35.6 it/s",
    ):  # fmt: skip
        assert told in text
    assert Counter(each.status for each in result.findings)["contradiction"] < 25  # of 1,650: they are exceptions
    assert rows.KEYS  # the rows that these files were made of have these keys

import dataclasses
import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.records import Measurement
from optsd.report.drawing import COLOURS, STYLE
from optsd.report.plots import chain_to_fastest, draw_all, memory_saved, speedups, stages, waterfall
from optsd.report.runs import prepare, style_of
from optsd.report.tables import figure
from optsd.report.tradeoffs import front


@pytest.fixture(scope="module")
def drawings(results):
    return {drawing.name: drawing for drawing in draw_all(results)}


def test_every_plot_of_a_full_run_is_drawn(drawings):
    assert list(drawings) == [
        "speed-objects_right", "memory-objects_right", "speedup", "stages", "waterfall", "latencies", "memory-saved",
        "memory-over-run",
    ]  # fmt: skip


def test_a_point_names_itself_and_belongs_to_its_variant(drawings, results):
    root = ElementTree.fromstring(drawings["speed-objects_right"].inline)
    points = {e.get("data-variant"): e.get("aria-label") for e in root.iter() if e.get("class") == "point"}
    assert len(points) == len(results.variants)
    speed = results.get("int8", "speedup")
    assert points[str(results.variants.index("int8"))].startswith(f"int8: speedup {speed.value:.2f}× (")
    assert all(e.get("tabindex") == "0" for e in root.iter() if e.get("class") == "point")


def test_the_plot_on_the_page_follows_the_theme_and_is_described(drawings):
    for drawing in drawings.values():
        assert not any(colour in drawing.inline for colour in COLOURS.values())
        assert "var(--ink)" in drawing.inline
        assert ElementTree.fromstring(drawing.inline).get("aria-label").startswith(drawing.title)
        assert "<style" not in drawing.inline  # it would hold for the whole page


def test_ids_differ_between_the_plots_of_a_page_and_all_references_resolve(drawings):
    page = "".join(drawing.inline for drawing in drawings.values())
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_the_files_are_a_png_and_a_standalone_svg_without_a_date(drawings):
    for drawing in drawings.values():
        assert drawing.png.startswith(b"\x89PNG")
        assert "<dc:date>" not in drawing.svg
        assert COLOURS["ink"] in drawing.svg


def with_rows(results, change):
    return dataclasses.replace(results, measurements=tuple(map(change, results.measurements)))


def draw(plot, results):
    with mpl.rc_context(STYLE):
        return plot(prepare(results))


def ends_of_bars(drawing) -> dict[str, tuple[float, float]]:
    """Of each variant where its bars end, and where its mark is, in the drawing's own units."""
    bars, marks = {}, {}
    for element in ElementTree.fromstring(drawing.inline).iter():
        number = element.get("data-variant")
        for part in element.iter() if number else ():
            if part.tag.endswith("path") and element.get("class") != "point" and " L " in (d := part.get("d", "")):
                bars.setdefault(number, []).extend(map(float, re.findall(r"[ML] (\S+) \S+", d)))
            if part.tag.endswith("use") and element.get("class") == "point":
                marks[number] = float(part.get("x"))
    return {number: (max(bars[number]), mark) for number, mark in marks.items()}


@pytest.mark.parametrize("slower", [0.4, 3.0])
def test_stages_fill_the_whole_that_was_measured_however_slow_their_own_pass_was(results, slower):
    def timed_apart(row):
        if row.metric not in ("text_encoder_s", "unet_step_s", "vae_decode_s"):
            return row
        samples = tuple(reading * slower for reading in row.samples)
        return dataclasses.replace(row, value=row.value * slower, samples=samples)

    drawn = draw(stages, with_rows(results, timed_apart))
    ends = ends_of_bars(drawn)
    assert len(ends) == len(results.variants)
    assert all(end == pytest.approx(mark, abs=0.7) for end, mark in ends.values())
    assert "a pass of their own" in drawn.svg
    shares = [float(share) for share in re.findall(r"([\d.]+)\N{NO-BREAK SPACE}% \(", drawn.words.split(";")[1])]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    seconds = slower * sum(results.get("baseline", "unet_step_s").samples) / results.workload.batch_size
    assert f"({figure(seconds, 's')} in its own pass)" in drawn.words


def test_of_a_variant_that_lacks_a_stage_no_shares_are_drawn(results):
    rows = [row for row in results.measurements if (row.variant, row.metric) != ("int8", "vae_decode_s")]
    drawn = draw(stages, dataclasses.replace(results, measurements=tuple(rows)))
    assert "int8:" not in drawn.words
    assert len(ends_of_bars(drawn)) == len(results.variants) - 1


def test_a_claim_about_another_workload_is_not_drawn_beside_a_figure(results):
    assert "Speedup, measured and claimed" in draw(speedups, results).svg
    elsewhere = tuple(dataclasses.replace(row, status="not comparable") for row in results.verdicts)
    for plot in (speedups, memory_saved):
        drawn = draw(plot, dataclasses.replace(results, verdicts=elsewhere))
        assert "claimed" not in drawn.svg + drawn.inline + drawn.words
    one = next(row for row in results.verdicts if row.metric == "speedup" and row.status == "reproduced")
    drawn = draw(speedups, dataclasses.replace(results, verdicts=(*elsewhere, one)))
    assert drawn.words.count("; claimed ") == 1


def test_the_waterfall_says_that_its_seconds_are_of_the_speedups(drawings, results):
    assert "÷ the speedup of rounds" in drawings["waterfall"].svg
    workload = dataclasses.replace(results.workload, device="estimate:a100")
    estimated = dataclasses.replace(results, workload=workload)
    assert "rounds" not in draw(waterfall, estimated).svg
    assert draw(speedups, estimated).title.startswith("Speedup, estimated")
    last = chain_to_fastest(prepare(results))[-1]
    seconds = results.get("baseline", "latency_s").value / results.get(last, "speedup").value
    assert f"{last} {seconds:.3f}" in drawings["waterfall"].words


def test_the_waterfall_goes_through_measured_subsets(results):
    chain = chain_to_fastest(prepare(results))
    assert chain == ["baseline", "int8", "int8+flash", "int8+flash+kvcache"]
    for left_out, start in (("int8", ["baseline", "flash"]), ("baseline", [])):
        rows = tuple(row for row in results.measurements if row.variant != left_out)
        assert chain_to_fastest(prepare(dataclasses.replace(results, measurements=rows)))[:2] == start


def test_a_plot_without_figures_is_left_out(cut_off, results):
    assert "speed-fid_shapes" not in [drawing.name for drawing in draw_all(cut_off)]
    assert draw_all(dataclasses.replace(results, measurements=())) == []


def test_names_are_text_and_no_mathematics_or_markup():
    names = ("baseline", "<script>alert(1)</script>", "$x^2$", "bell\x07", "a" * 300)
    rows = [
        Measurement(name, metric, unit, value + place / 10, value - 0.1, value + 1)
        for place, name in enumerate(names)
        for metric, unit, value in (("speedup", "×", 1.0), ("fid", "", 20.0), ("latency_s", "s", 1.0))
    ]
    from optsd.records import Results, Workload

    drawn = draw_all(Results({}, Workload("m", "cpu", "float32", 1, 1, 8, 8, 1), tuple(rows)))
    assert [drawing.name for drawing in drawn] == ["speed-fid", "speedup"]
    for drawing in drawn:
        ElementTree.fromstring(drawing.svg)
        assert "<script" not in drawing.svg + drawing.inline
        assert "$x^2$" in drawing.inline


def test_zero_equal_and_negative_figures_are_drawn():
    from optsd.records import Results, Workload

    rows = [
        Measurement(name, metric, unit, value, value, value, (value, value))
        for name in ("baseline", "int8")
        for metric, unit, value in (
            ("speedup", "×", 1.0), ("fid", "", 0.0), ("memory_reduction", "fraction", -0.2), ("latency_s", "s", 0.0),
            ("peak_memory_bytes", "B", 0.0),
        )
    ]  # fmt: skip
    assert len(draw_all(Results({}, Workload("m", "cpu", "float32", 1, 1, 8, 8, 1), tuple(rows)))) == 6


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:Tight layout")
def test_fifty_variants_are_drawn(make_results):
    many = make_results(variants=("baseline", *(f"int8+tome:{number}" for number in range(49))))
    assert len(draw_all(many)) == 7  # without a waterfall: no technique was measured by itself


def test_the_style_tells_weights_attention_and_cache_apart():
    looks = {name: style_of(name) for name in ("baseline", "int8", "int4", "flash", "sdpa", "kvcache", "deepcache:3")}
    assert len(set(looks.values())) == len(looks)
    assert style_of("int8-torchao+flash")[0] == COLOURS["int8"]


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=30))
def test_the_front_is_what_no_point_beats(points):
    kept = [points[place] for place in front(points)]
    for x, y in kept:
        assert not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    for x, y in points:
        assert any(a >= x and b >= y for a, b in kept)
    assert kept == sorted(kept)

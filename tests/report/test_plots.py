import dataclasses
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.records import Measurement
from optsd.report.drawing import COLOURS
from optsd.report.plots import chain_to_fastest, draw_all
from optsd.report.runs import prepare, style_of
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


def test_stages_are_shares_of_an_image_and_say_so(drawings, results):
    words = drawings["stages"].words
    step = results.get("baseline", "unet_step_s")
    seconds = sum(step.samples) / results.workload.batch_size
    assert f"denoiser step {seconds:.3f}" in words


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

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from optsd import report
from optsd.records import Measurement, Results, Technique, Verdict
from optsd.report import page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"{{ 7*7 }}"


class Outline(HTMLParser):
    """Elements, and the text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def text(written):
    return (written / "index.html").read_text(encoding="utf-8")


def test_the_folder_has_the_page_tables_plots_and_contact_sheet(written):
    names = {file.name for file in written.iterdir()}
    assert names >= {"index.html", "table.md", "table.csv", "summary.md", "contact-sheet.png", "plots"}
    assert len(list((written / "plots").glob("*.svg"))) == len(list((written / "plots").glob("*.png"))) == 8


def test_the_page_is_one_small_file_that_asks_nothing_of_a_network(text):
    assert len(text.encode()) < 2_000_000
    for tag, attributes in Outline(text).tags:
        for name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
            link = attributes.get(name) or ""
            assert not re.match(r"(?i)\s*(https?:|//|file:|javascript:)", link), (tag, link)
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_every_link_to_a_file_leads_to_one(written, text):
    links = {a["href"] for tag, a in Outline(text).tags if tag == "a" and not a["href"].startswith("#")}
    assert {"table.md", "table.csv", "results.json", "plots/waterfall.svg"} <= links
    assert all((written / link).is_file() for link in links)


def test_every_link_into_the_page_leads_somewhere(text):
    tags = Outline(text).tags
    ids = {attributes["id"] for _, attributes in tags if attributes.get("id")}
    assert {a["href"][1:] for tag, a in tags if tag == "a" and a["href"].startswith("#")} <= ids


def test_inputs_have_labels_tables_have_heads_and_pictures_alternative_texts(text):
    tags = Outline(text).tags
    assert all("alt" in attributes for tag, attributes in tags if tag == "img")
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    assert dict(tags)["html"] == {"lang": "en"}
    for tag, attributes in tags:
        if tag in ("input", "select") and not attributes.get("aria-label"):
            at = text.index(f'id="{attributes["id"]}"') if attributes.get("id") else text.index("data-toggle")
            assert text.rfind("<label", 0, at) > text.rfind("</label>", 0, at)


def test_the_page_shows_every_verdict_figure_and_variant(text, results):
    seen = Outline(text).text
    assert all(variant in seen for variant in results.variants)
    assert text.count('data-status="') == len(results.verdicts) + 1 + len({row.status for row in results.verdicts})
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in seen
    assert results.command in seen
    assert "avx512_vnni" in seen


def test_text_from_the_results_appears_as_text(results, tmp_path):
    prompt = {"variant": HOSTILE, "prompt": HOSTILE, "seed": 1, "index": 0, "file": "images/a.png"}
    (tmp_path / "images").mkdir()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    hostile = dataclasses.replace(
        results,
        machine={HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]},
        workload=dataclasses.replace(results.workload, model=HOSTILE),
        measurements=(Measurement(HOSTILE, "speedup", "×", 1.5), Measurement(HOSTILE, HOSTILE, "", None, note=HOSTILE)),
        verdicts=(Verdict(HOSTILE, HOSTILE, HOSTILE, 1.0, 1.0, HOSTILE, HOSTILE, HOSTILE),),
        techniques=(Technique(HOSTILE, True, (HOSTILE,), {HOSTILE: HOSTILE}),),
        images=(prompt, {**prompt, "variant": "baseline"}),
        failures=({"variant": HOSTILE, "stage": HOSTILE, "reason": HOSTILE},),
        command=HOSTILE,
        created=HOSTILE,
    )
    report.write(hostile, tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    tags = Outline(text).tags
    assert len([tag for tag, _ in tags if tag == "script"]) == 2  # the page's own, and its data
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "&lt;script&gt;alert(1)" in text
    assert "{{ 7*7 }}" in text
    for name in ("table.md", "summary.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "<script" not in re.sub(r"(`+).+?\1", "", text)  # in a code span it is text


def test_half_a_surrogate_pair_does_not_stop_the_report(results, tmp_path):
    report.write(dataclasses.replace(results, images=(), command="half \ud800 a pair", measurements=()), tmp_path)
    assert "half ? a pair" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_run_that_was_cut_off_says_what_is_missing(cut_off, tmp_path):
    report.write(cut_off, tmp_path)
    seen = Outline((tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert "This run was cut off before its end" in seen
    assert "int4 cannot run here; choose int8" in seen
    assert "No pictures: none were recorded." in seen
    assert not (tmp_path / "contact-sheet.png").exists()


def test_a_run_that_found_out_nothing_still_gives_a_page(results, tmp_path):
    report.write(Results({}, results.workload), tmp_path)
    assert "This run was cut off" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_same_results_give_the_same_bytes_in_another_process(make_results, tmp_path):
    small = make_results(tmp_path / "a", variants=("baseline", "int8", "int8+flash"), prompts=3)
    (tmp_path / "a/results.json").write_text(small.to_json(), encoding="utf-8")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    report.write(Results.read(tmp_path / "a/results.json"), tmp_path / "a")
    code = (
        "import pathlib, sys; from optsd import report; from optsd.records import Results;"
        "f = pathlib.Path(sys.argv[1]); report.write(Results.read(f / 'results.json'), f);"
        "assert 'torch' not in sys.modules"
    )
    seeded = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "b"], check=True, env=seeded)
    files = [file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file()]
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_trees_lists_and_plain_values_are_told_apart():
    assert [page.shape_of(value) for value in ({}, [], (), "text", None, 3)] == ["tree", "list", "list", *["text"] * 3]


def test_what_is_read_first_comes_first(text):
    order = [text.index(f'<section id="{name}">') for name in ("answer", "figures", "trade-offs", "pictures", "claims")]
    assert order == sorted(order)
    last = [text.index(f'<section id="{name}">') for name in ("claims", "speed", "evidence")]
    assert last == sorted(last)


def test_every_figure_of_a_card_has_its_name(text, results):
    """On a phone a row is a card, and its headings are these."""
    for label in ("s / image", "speedup, ×", "objects right, %", "peak memory, MiB"):
        assert text.count(f'data-label="{label}"') == len(results.variants)

import csv
import dataclasses
import io

from optsd.report.text import escape, in_words, summary_md, table_csv, table_md


def test_the_csv_has_every_figure_unrounded_with_its_note(results):
    rows = list(csv.DictReader(io.StringIO(table_csv(results))))
    assert len(rows) == len(results.measurements)
    for row, measured in zip(rows, results.measurements, strict=True):
        assert row["value"] == ("" if measured.value is None else repr(measured.value))
        assert (row["variant"], row["note"]) == (measured.variant, measured.note)


def test_the_markdown_tables_have_a_row_for_each_variant_and_verdict(results):
    text = table_md(results)
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == (
        2 + len(results.variants) + 2 + len(results.verdicts)
    )
    assert "(1) it is compared with itself" in text


def test_every_row_of_a_table_has_as_many_cells_as_its_head(results):
    hostile = dataclasses.replace(results.measurements[0], variant="a|b\nc <script>`x`", note="n|n")
    text = table_md(dataclasses.replace(results, measurements=(hostile, *results.measurements)))
    first = [line.replace("\\|", "") for line in text.split("\n\n")[1].splitlines()]
    assert {line.count("|") for line in first} == {first[0].count("|")}
    assert "<script>" not in text


def test_escaping_keeps_the_text_on_one_line_and_inert():
    assert escape("a\n<b> *c* [d](e) `f` | & $x$") == "a &lt;b&gt; \\*c\\* \\[d\\](e) \\`f\\` \\| &amp; \\$x\\$"


def test_the_summary_leads_with_answers_and_names_every_missed_claim(results):
    text = summary_md(results)
    assert "**Fastest with the quality kept:** int8+flash+kvcache" in text
    missed = [row for row in results.verdicts if row.status == "missed"]
    assert text.count(": missed,") == len(missed) > 0
    assert results.command in text


def test_the_summary_of_a_run_that_was_cut_off_says_what_is_missing(cut_off):
    text = summary_md(cut_off)
    assert text.startswith("## OptSD (the run was cut off)")
    assert "Failed or skipped: int4, build" in text


def test_backticks_in_the_command_do_not_end_its_code_span(results):
    assert "`` echo `date` ``" in summary_md(dataclasses.replace(results, command="echo `date`"))


def test_the_machine_in_words_and_units():
    machine = {
        "system": "Linux",
        "cpu": {"name": "AMD EPYC", "usable_cores": 2, "flags": ["avx2"]},
        "memory_bytes": 24 * 2**30,
        "gpus": [],
        "versions": {"python": "3.11.7", "torch": "2.15.0", "scipy": "1"},
    }
    assert in_words(machine) == [
        "AMD EPYC, 2 cores (avx2)", "24.0\N{NO-BREAK SPACE}GiB of memory", "no GPU",
        "Linux, python 3.11.7, torch 2.15.0",
    ]  # fmt: skip
    assert in_words({}) == ["no GPU"]
    assert in_words({"gpus": [{"name": "NVIDIA H100"}]}) == ["NVIDIA H100"]

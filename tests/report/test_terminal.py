import dataclasses
import io

import pytest
from rich.console import Console

from optsd.report import print_table


def printed(results, **options) -> str:
    stream = io.StringIO()
    print_table(results, Console(file=stream, **options))
    return stream.getvalue()


def test_in_a_pipe_it_is_at_most_100_columns_wide_and_plain(results):
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert "int8+flash+kvcache" in text
    assert "…" not in text


def test_every_variant_has_one_row_and_the_speedup_its_interval(results):
    lines = printed(results).splitlines()
    for variant in results.variants:
        assert len([line for line in lines if line.startswith(f"{variant} ")]) == 1
    row = results.get("int8", "speedup")
    line = next(line for line in lines if line.startswith("int8 "))
    assert f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]" in line
    assert "[95 %]" in text_above(lines)


def text_above(lines: list[str]) -> str:
    return " ".join(lines[: next(number for number, line in enumerate(lines) if set(line) & {"─", "-"} == set(line))])


def test_a_speedup_of_two_rounds_has_no_interval_and_is_no_bound(results):
    rows = [
        dataclasses.replace(row, low=None, high=None, samples=(row.value,) * 2) if row.metric == "speedup" else row
        for row in results.measurements
    ]
    above = text_above(printed(dataclasses.replace(results, measurements=tuple(rows))).splitlines())
    assert "speedup" in above
    assert "[95 %]" not in above
    assert "at best" not in above


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_columns_that_do_not_fit_are_left_out_and_named(results, width):
    text = printed(results, width=width, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("Not shown for want of width" in text) == (width < 200)
    assert ("SSIM" in text.split("Not shown")[0]) == (width == 200)


def test_a_missing_figure_has_a_footnote_and_the_same_reason_one_number(cut_off):
    text = printed(cut_off)
    assert "¹ the run did not get that far" in text
    assert "² int4 cannot run here; choose int8" in text
    assert text.count("the run did not get that far") == 1


def test_it_says_what_failed_and_that_the_run_was_cut_off(cut_off):
    text = printed(cut_off)
    assert "Failed or skipped: int4, build: int4 cannot run here; choose int8" in text
    assert "The run was cut off" in text


def test_what_many_variants_lack_for_one_reason_is_one_line(results):
    def with_failures(*names):
        rows = tuple({"variant": name, "stage": "quality", "reason": "no captions"} for name in names)
        return printed(dataclasses.replace(results, failures=rows))

    said = f"Failed or skipped: all {len(results.variants)} variants, quality: no captions"
    assert with_failures(*results.variants).count("no captions") == 1
    assert said in with_failures(*results.variants)
    assert "Failed or skipped: sdpa, int8, quality: no captions" in with_failures("sdpa", "int8", "int8")


def test_names_are_no_markup(results):
    row = dataclasses.replace(results.measurements[0], variant="[red]int9[/red]")
    text = printed(dataclasses.replace(results, measurements=(row,), techniques=(), verdicts=()))
    assert "[red]int9[/red]" in text


def test_verdicts_are_summed_up_with_signs(results):
    assert "✗ 5 missed" in printed(results)


def test_without_figures_it_says_so(results):
    empty = dataclasses.replace(results, measurements=(), techniques=(), verdicts=(), images=())
    assert "Nothing was measured." in printed(empty)


def test_the_callers_console_keeps_its_width(results):
    console = Console(file=io.StringIO(), width=80)
    print_table(results, console)
    assert console.width == 80

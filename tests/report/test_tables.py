import dataclasses
import math
import re

from hypothesis import given
from hypothesis import strategies as st

from optsd.records import Measurement
from optsd.report.tables import (
    SIDE_BY_SIDE,
    aligned,
    all_variants,
    figure,
    interval,
    metric_of,
    one_line,
    overview,
    scale_for,
)  # fmt: skip

NBSP = "\N{NO-BREAK SPACE}"


def test_pictures_that_are_equal_have_no_ratio_to_no_error(results):
    rows = tuple(Measurement(name, "psnr_db", "dB", value) for name, value in [("baseline", 100.0), ("int8", 51.2)])
    told = overview(dataclasses.replace(results, measurements=rows))
    (column,) = (column for column in told.columns if column.metric == "psnr_db")
    assert [cell.text for cell in column.cells if cell.value is not None] == ["equal", "51.2"]


def test_one_figure_is_written_with_its_unit():
    assert figure(6.25e9, "B") == f"5.82{NBSP}GiB"
    assert figure(1.39, "×") == "1.39×"
    assert figure(0.34, "fraction") == f"34.0{NBSP}%"
    assert figure(0.0042, "s") == f"0.00420{NBSP}s"
    assert figure(0.32, "cosine") == "0.320"
    assert figure(0, "fraction") == f"0.00{NBSP}%"
    assert figure(-0.00001, "fraction") == f"0.0{NBSP}%"


def test_a_column_has_one_unit_and_one_precision():
    scale = scale_for("B", [26e6, 310e6])
    assert (scale.unit, scale.write(26e6), scale.write(310e6)) == ("MiB", "25", "296")
    assert scale_for("", [300.0, 3.1]).write(3.1) == "3.1"
    assert scale_for("", [1.0, 0.984]).write(0.984) == "0.984"


@given(st.lists(st.floats(1e-9, 1e12), min_size=1), st.sampled_from(["", "s", "B", "fraction", "×", "cosine", "dB"]))
def test_every_figure_reads_back_to_within_its_precision(values, unit):
    scale = scale_for(unit, values)
    largest = max(values)
    read = float(scale.write(largest).replace(",", "")) * scale.divisor
    assert math.isclose(read, largest, rel_tol=0.01) or (scale.decimals == (1 if unit == "fraction" else 6))


def test_the_interval_has_the_precision_of_its_value():
    row = Measurement("int8", "speedup", "×", 2.1, 1.9996, 2.2)
    assert interval(row) == "2.00× to 2.20×"
    assert interval(dataclasses.replace(row, low=None)) == ""


def test_the_overview_says_why_a_figure_is_missing(results):
    table = overview(results)
    lpips = next(column for column in table.columns if column.metric == "lpips_shapes")
    assert lpips.cells[0].text == "-"
    assert lpips.cells[0].note == "it is compared with itself"
    assert "fid" not in [column.metric for column in table.columns]  # nobody has it: no column of dashes


def test_what_a_run_was_not_about_has_no_column_and_what_it_failed_at_has_one(results):
    sizes = [row for row in results.measurements if row.metric in ("weight_bytes", "disk_bytes")]
    table = overview(dataclasses.replace(results, measurements=tuple(sizes)))
    assert [column.metric for column in table.columns] == ["weight_bytes", "disk_bytes"]
    tried = dataclasses.replace(
        results.get("int8", "peak_memory_bytes"), value=None, samples=(), note="others are there"
    )
    table = overview(dataclasses.replace(results, measurements=(*sizes, tried)))
    assert table.columns[0].metric == "peak_memory_bytes"


def test_what_speed_costs_stands_beside_it(results):
    assert [column.metric for column in overview(results).columns][:3] == ["latency_s", "speedup", "objects_right"]


def test_nothing_is_bold_inside_the_noise(results):
    def with_interval(row, low, high):
        return dataclasses.replace(row, low=low, high=high) if row.metric == "speedup" else row

    noisy = tuple(with_interval(row, 0.5, 3.0) for row in results.measurements)
    speedup = overview(dataclasses.replace(results, measurements=noisy)).columns[1]
    assert not any(cell.best for cell in speedup.cells)


def test_a_peak_within_the_passes_of_the_baseline_is_not_bold(results):
    def peak_of(low, high):
        def passes(row):
            is_it = (row.variant, row.metric) == ("baseline", "peak_memory_bytes")
            return dataclasses.replace(row, low=low, high=high) if is_it else row

        few = dataclasses.replace(results, measurements=tuple(map(passes, results.measurements)))
        columns = {column.metric: column for column in overview(few).columns}
        return [cell.best for cell in columns["peak_memory_bytes"].cells]

    assert not any(peak_of(1, 2**40))
    assert peak_of(2**39, 2**40).count(True) == peak_of(None, None).count(True)


def test_seconds_that_disagree_with_the_speedup_say_why(results):
    def slowed(row):
        late = row.metric == "latency_s" and row.variant == "int8"
        return dataclasses.replace(row, value=row.value * 1.5) if late else row

    rows = tuple(map(slowed, results.measurements))
    speedup = overview(dataclasses.replace(results, measurements=rows)).columns[1]
    place = results.variants.index("int8")
    assert [cell.aside for cell in speedup.cells if cell.aside] == [SIDE_BY_SIDE]
    assert speedup.cells[place].aside == SIDE_BY_SIDE


def test_if_nothing_was_measured_one_column_says_why(results):
    table = overview(dataclasses.replace(results, measurements=(), images=(), complete=False))
    assert [column.metric for column in table.columns] == ["latency_s"]
    assert table.columns[0].cells[0].note == "the run did not get that far"
    assert "not part of this run" in overview(dataclasses.replace(results, measurements=())).columns[0].cells[0].note


def test_a_variant_that_failed_before_its_first_figure_stands_in_the_table_with_its_reason(cut_off):
    table = overview(cut_off)
    assert table.variants == all_variants(cut_off)
    assert table.columns[0].cells[table.variants.index("int4")].note == "int4 cannot run here; choose int8"


def test_only_a_best_figure_that_stands_out_is_marked(results):
    columns = {column.metric: column for column in overview(results).columns}
    best = [variant for variant, cell in zip(results.variants, columns["speedup"].cells, strict=True) if cell.best]
    assert best == ["int8+flash+kvcache"]
    assert not any(cell.best for cell in columns["objects_right"].cells)  # all exact variants share the best


def test_a_metric_that_the_table_of_metrics_lacks_is_called_by_its_name():
    assert metric_of("new_thing", "s").label == "new thing"
    assert metric_of("fid_retention").label == "FID kept"


def test_columns_stand_under_their_heads():
    assert aligned([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"


def test_one_line_has_what_a_run_found_of_a_variant_so_far(results):
    said = one_line(results, "int8").replace(NBSP, " ")
    assert re.fullmatch(
        r"0\.\d+ s / image, speedup \d\.\d\d× \(\d\.\d\d× to \d\.\d\d×\), peak memory \d+ MiB, objects right 9\d\.\d %",
        said,
    )
    assert one_line(results, "nosuch") == ""
    skipped = {"variant": "int8", "stage": "test_memory", "reason": "no /proc here"}
    failed = dataclasses.replace(results, failures=(skipped,))
    assert one_line(failed, "int8").endswith(", memory: no /proc here")
    assert "memory:" not in one_line(failed, "int4")
    workload = dataclasses.replace(results.workload, device="estimate:a100")
    assert ") at best, peak memory" in one_line(dataclasses.replace(results, workload=workload), "sdpa")

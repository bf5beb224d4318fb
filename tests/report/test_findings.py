import dataclasses

import pytest

from optsd.records import Measurement, Verdict
from optsd.report.findings import ESTIMATED, answers, disturbances, missing, said_first


def with_retention(results, kept: dict[str, float]):
    rows = [row for row in results.measurements if not row.metric.endswith("_retention")]
    rows += [Measurement(variant, "fid_shapes_retention", "fraction", value) for variant, value in kept.items()]
    return dataclasses.replace(results, measurements=tuple(rows))


def test_a_fast_variant_that_loses_quality_is_not_the_first_answer(results):
    kept = {variant: 0.94 if "int" in variant else 0.99 for variant in results.variants}
    first, second, *_ = answers(with_retention(results, kept))
    assert (first.question, first.variant) == ("Fastest with the quality kept", "flash+kvcache")
    assert second.variant == "int8+flash+kvcache"
    assert "94.0" in second.reason


def test_the_least_of_several_retentions_decides(results):
    rows = with_retention(results, dict.fromkeys(results.variants, 0.99))
    worse = Measurement("int8+flash+kvcache", "objects_right_retention", "fraction", 0.5)
    assert answers(dataclasses.replace(rows, measurements=(*rows.measurements, worse)))[0].variant == "int8+flash"


def test_nothing_is_recommended_without_quality(make_results):
    first = answers(make_results(with_quality=False))[0]
    assert (first.variant, first.figure, first.reason) == ("", "unknown", "quality was not measured")


def test_nothing_is_recommended_when_every_fast_variant_loses_too_much(results):
    first = answers(with_retention(results, dict.fromkeys(results.variants, 0.5)))[0]
    assert (first.variant, first.figure) == ("", "none")


def of_shapes(results, variant, low, high=1.0, pictures=200, exact=False):
    """The run with one judged metric, whose retention has an interval over so many pictures."""
    kept = Measurement(variant, "objects_right_retention", "fraction", 0.98, low, high)
    rows = tuple(row for row in results.measurements if not row.metric.endswith("_retention"))
    images = tuple({"variant": variant, "file": f"{number}.png"} for number in range(pictures))
    techniques = tuple(dataclasses.replace(row, exact=exact) for row in results.techniques)
    return dataclasses.replace(results, measurements=(*rows, kept), images=images, techniques=techniques)


def test_quality_that_the_pictures_do_not_show_to_be_kept_is_said_to_be_kept_by_its_figures(results):
    doubtful = answers(of_shapes(results, "int8", 0.946, pictures=32))[0]
    assert doubtful.variant == "int8"
    assert "is kept by its figures; 32 pictures do not show it: objects right: 98.0" in doubtful.reason
    assert "(94.6" in doubtful.reason
    for low in (0.96, None):  # thirty equal pictures have an interval of no width
        few = answers(of_shapes(results, "int8", low, pictures=94))[0]
        assert "94 pictures do not show it, which takes 95 or more" in few.reason
    shown = answers(of_shapes(results, "int8", 0.96, pictures=95))[0]
    assert "do not show it" not in shown.reason
    assert "by the whole intervals; least of objects right: 98.0" in shown.reason
    exact = answers(of_shapes(results, "flash", 0.9, pictures=3, exact=True))[0]
    assert "exact by its mathematics" in exact.reason


def asked(results, share=0.95, **statuses):
    """The run after `--quality`, which found `kept` but for the variants that are named."""
    source, names = "--quality: objects_right", {name.replace("_", "+"): said for name, said in statuses.items()}
    verdicts = [
        Verdict(variant, "objects_right", names.get(variant, "kept"), 0.9, share, "", source, "90.0% [80.0%, 99.0%]")
        for variant in results.variants
        if variant != "baseline"
    ]
    return dataclasses.replace(results, verdicts=(*results.verdicts, *verdicts))


def test_a_variant_that_lost_its_quality_answers_nothing(results):
    everywhere = with_retention(results, dict.fromkeys(results.variants, 0.99))
    assert {answer.variant for answer in answers(everywhere)} == {"int8+flash+kvcache", "int4+flash"}
    found = answers(asked(everywhere, int8_flash_kvcache="lost", int4_flash="lost"))
    assert [answer.variant for answer in found] == ["int8+flash", "int8+flash"]
    assert found[-1].reason.endswith("; left out, as their quality was lost: int4+flash, int8+flash+kvcache")
    assert "int8+flash+kvcache" not in found[0].reason
    # Nor one that is merely the fastest.
    worse = with_retention(results, dict.fromkeys(results.variants, 0.5))
    assert "int8+flash+kvcache" not in {row.variant for row in answers(asked(worse, int8_flash_kvcache="lost"))}


@pytest.mark.parametrize("status", ["insufficient data", "not measured"])
def test_what_the_pictures_could_not_say_is_said(results, status):
    everywhere = with_retention(results, dict.fromkeys(results.variants, 0.99))
    found = {row.question: row for row in answers(asked(everywhere, int8_flash_kvcache=status, int4_flash=status))}
    fastest = found["Fastest with the quality kept" if status == "insufficient data" else "Fastest"]
    assert fastest.variant == "int8+flash+kvcache"
    assert status in fastest.reason
    assert found["Least memory"].reason.endswith(f"; quality: {status}")
    kept = answers(asked(everywhere))[0]
    assert (
        "it keeps at least 95\N{NO-BREAK SPACE}% of every judged quality metric; --quality 0.95: kept, 90"
        in kept.reason
    )


def test_the_share_that_was_asked_for_decides(results):
    kept = with_retention(results, dict.fromkeys(results.variants, 0.92))
    assert answers(kept)[0].figure == "none"
    assert answers(asked(kept, 0.9))[0].variant == "int8+flash+kvcache"
    strict = answers(asked(with_retention(results, dict.fromkeys(results.variants, 0.97)), 0.98))[0]
    assert (strict.figure, "keeps 98\N{NO-BREAK SPACE}% of every" in strict.reason) == ("none", True)


def test_variants_that_may_be_as_fast_are_named(results):
    everywhere = dict.fromkeys(results.variants, 0.99)
    alone = answers(with_retention(results, everywhere))[0]
    assert (alone.variant, "int8+flash" in alone.reason) == ("int8+flash+kvcache", True)
    assert "sdpa" not in alone.reason

    def as_wide(row):
        return dataclasses.replace(row, low=1.01, high=3.0) if row.metric == "speedup" else row

    wide = dataclasses.replace(results, measurements=tuple(map(as_wide, results.measurements)))
    first = answers(with_retention(wide, everywhere))[0]
    assert first.reason.endswith("as fast, by the intervals: int8+flash, int8, int4+flash, 6 more")
    assert first.figure.endswith(", tied with 9 others")
    assert "tied" in answers(with_retention(wide, {}))[-2].figure  # the fastest whatever its quality has them too

    def as_narrow(row):
        return dataclasses.replace(row, low=row.value, high=row.value) if row.metric == "speedup" else row

    narrow = dataclasses.replace(results, measurements=tuple(map(as_narrow, results.measurements)))
    assert "tied" not in answers(with_retention(narrow, everywhere))[0].figure
    # One that loses quality is no alternative to one that does not.
    kept = {variant: 0.94 if variant == "int8+flash" else 0.99 for variant in results.variants}
    assert "int8+flash," not in answers(with_retention(wide, kept))[0].reason


def with_speedup(results, value: float, low: float | None):
    changed = [
        dataclasses.replace(row, value=value, low=low, high=value + 0.1) if row.metric == "speedup" else row
        for row in results.measurements
    ]
    return dataclasses.replace(results, measurements=tuple(changed))


def test_a_speedup_counts_only_when_its_whole_interval_is_above_one(results):
    for value, low in ((1.08, 0.95), (0.9, 0.8), (0.9, None), (1.08, 0.0), (1.08, None)):
        first = answers(with_speedup(results, value, low))[0]
        assert (first.question, first.variant) == ("Faster than the baseline", "")
    assert answers(with_speedup(results, 1.08, 1.01))[0].variant == "sdpa"


def test_the_baseline_may_need_the_least_memory(results):
    rows = [row for row in results.measurements if row.metric != "peak_memory_bytes" or row.variant == "baseline"]
    last = answers(dataclasses.replace(results, measurements=tuple(rows)))[-1]
    assert (last.question, last.variant, last.reason) == ("Least memory", "baseline", "no variant's peak is lower")


def test_less_memory_is_less_than_in_any_pass_of_the_baseline(results):
    least = min(row.value for row in results.measurements if row.metric == "peak_memory_bytes")

    def after(low, high):
        def passes(row):
            is_it = (row.variant, row.metric) == ("baseline", "peak_memory_bytes")
            return dataclasses.replace(row, low=low, high=high) if is_it else row

        return answers(dataclasses.replace(results, measurements=tuple(map(passes, results.measurements))))[-1]

    assert after(1.01 * least, 1e9).variant == "int4+flash"
    assert "% less than the baseline, whose passes took 200" in after(1.01 * least, 1e9).reason
    within = after(0.99 * least, 1e9)
    assert (within.question, within.variant, within.figure) == ("Least memory", "", "none for sure")
    assert within.reason.startswith("no variant's peak lies below all passes of the baseline, 19")


def test_a_run_without_figures_has_no_answers(results):
    assert answers(dataclasses.replace(results, measurements=())) == []


def test_what_is_missing_is_said_once_with_its_reason(results):
    said = missing(results)
    start = "FID, KID, IS, CLIP, LPIPS: not measured for all 11 variants (Inception"
    assert any(line.startswith(start) for line in said)
    assert not any("retention" in line or "kept" in line for line in said)  # the baseline has none, by definition


def test_a_run_that_was_cut_off_says_everything_that_it_lacks(cut_off):
    said = "\n".join(missing(cut_off))
    assert "The run was cut off before its end" in said
    assert "Failed or skipped: int4, build: int4 cannot run here; choose int8" in said
    assert "speedup: no figure for int8, int4 (the run did not get that far)" in said
    assert "No verdicts" in said
    assert "No pictures" in said


def test_a_run_that_met_others_says_so(results):
    busy = dataclasses.replace(results, machine={**results.machine, "load": {"others_cpu_share": 0.4}})
    assert disturbances(busy) == ["Others used 40% of the CPU while this was measured."]
    clock = {"median_mhz": 990, "highest_mhz": 1980, "held_by": {"power cap": 0.9}}
    for load, told in (
        ({"others_on_gpu": 2}, "2 other processes used the GPU while this was measured."),
        (
            {"gpu_clock": clock},
            "The GPU's clock was 990 MHz in the median, 50% of its highest (power cap: 90% of the time).",
        ),
    ):
        assert disturbances(dataclasses.replace(results, machine=results.machine | {"load": load})) == [told]
    quick = {"gpu_clock": clock | {"median_mhz": 1900}}
    assert disturbances(dataclasses.replace(results, machine=results.machine | {"load": quick})) == []
    row = results.get("int8", "latency_s")
    late = dataclasses.replace(row, samples=(*row.samples, 11 * row.value))
    rows = tuple(late if each is row else each for each in results.measurements)
    (told,) = disturbances(dataclasses.replace(results, measurements=rows))
    assert told == "A round of int8 took 11 times its median (variants with one: 1)."
    assert disturbances(results) == []


def test_an_estimate_measured_nothing_that_others_could_disturb(results):
    workload = dataclasses.replace(results.workload, device="estimate:a100")
    busy = {**results.machine, "load": {"others_cpu_share": 0.68}}
    estimated = dataclasses.replace(results, machine=busy, workload=workload)
    assert disturbances(estimated) == []
    assert said_first(estimated) == [ESTIMATED]
    assert said_first(dataclasses.replace(results, machine=busy)) != []


def _on_a_gpu(results, speedups: dict[str, float]):
    rows = [row for row in results.measurements if row.metric != "speedup"]
    rows += [Measurement(name, "speedup", "×", value, 0.9 * value, 1.1 * value) for name, value in speedups.items()]
    there = dataclasses.replace(results.workload, device="cuda")
    return dataclasses.replace(results, workload=there, measurements=tuple(rows))


def test_a_quantized_variant_that_is_slower_on_a_gpu_is_told_of_graph(results):
    slow = {"flash": 0.5, "int8": 0.6, "int8+flash": 0.7, "int4": 0.95}
    last = answers(_on_a_gpu(results, slow))[-1]
    assert (last.question, last.variant) == ("Slower than the baseline", "int8")
    assert last.figure.startswith("0.600×")
    assert last.reason.endswith("try int8+graph; slower too: int8+flash")
    elsewhere = dataclasses.replace(_on_a_gpu(results, slow), workload=results.workload)
    unsure = [dataclasses.replace(row, low=None, high=None) for row in _on_a_gpu(results, slow).measurements]
    hasty = dataclasses.replace(_on_a_gpu(results, slow), measurements=tuple(unsure))
    compiled = _on_a_gpu(results, {"int8+compile": 0.6})  # graph takes compile's place
    for other in (
        elsewhere,
        hasty,
        compiled,
        _on_a_gpu(results, {"int8": 1.2}),
        _on_a_gpu(results, slow | {"int8+flash+graph": 1.8}),
    ):
        assert all(answer.question != "Slower than the baseline" for answer in answers(other))


def test_too_few_rounds_make_nothing_the_fastest(results):
    """As of `--preset smoke`, whose two rounds have no interval."""
    rows = [
        dataclasses.replace(row, low=None, high=None, samples=row.samples[:2] or (row.value,) * 2)
        if row.metric in ("speedup", "latency_s")
        else row
        for row in results.measurements
    ]
    first = answers(dataclasses.replace(results, measurements=tuple(rows)))[0]
    assert (first.variant, first.figure) == ("", "none for sure")
    assert first.reason == "2 rounds are too few for an interval: --rounds 6 or more has one"

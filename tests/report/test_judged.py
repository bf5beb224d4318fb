"""What the verdicts come to, in every form of the report."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from optsd.records import Verdict
from optsd.report import page, print_table, text
from optsd.report.judged import count_verdicts, judged_nothing, sign_of, tally

WHY = "model shapes instead of sd15"
FLOOR = Verdict(
    "baseline", "images", "agrees", None, None, "identical", "noise floor: baseline against baseline",
    "4 pictures made twice: the furthest pixel differs by 0 of 255",
)  # fmt: skip
FOREIGN = tuple(
    Verdict(variant, "speedup", "not comparable", 1.0, 1.4, "±10 %", "claims/guide.json: Table 1", WHY)
    for variant in ("int8", "int4", "flash")
)
BOUNDS = tuple(
    {
        "variant": variant, "metric": "memory_reduction", "claimed": 0.5, "bound": 0.3, "measured": None,
        "status": status, "arithmetic": "by the data sheet", "source": "Table 1",
    }
    for variant, status in (("int8", "unattainable"), ("int4", "unattainable"), ("flash", "possible"))
)  # fmt: skip


def recorded(status, note="", variant="int8"):
    return Verdict(variant, "speedup", status, 1.0, 1.2, "±5 %", f"epyc.json: {variant} speedup", note)


def printed(results) -> str:
    stream = io.StringIO()
    print_table(results, Console(file=stream))
    return stream.getvalue()


def test_verdicts_are_counted_worst_first_and_unknown_ones_kept(results):
    odd = Verdict("int8", "speedup", "puzzling", 1.0, 1.0, "", "somewhere")
    counts = count_verdicts((odd, *results.verdicts))
    assert next(iter(counts)) == "missed"
    assert counts["puzzling"] == 1
    assert sum(counts.values()) == len(results.verdicts) + 1
    assert sign_of("puzzling") == ("?", "unknown")


def test_the_noise_floor_is_no_claim_and_every_claim_is_accounted_for(results):
    run = dataclasses.replace(results, verdicts=(FLOOR, *FOREIGN), bounds=BOUNDS)
    assert [str(entry) for entry in tally(run)] == [
        "≠ 3 not comparable", "✗ 2 unattainable by their bound", "0 of 3 claims judged here",
    ]  # fmt: skip
    judged = dataclasses.replace(FOREIGN[0], status="reproduced")
    absent = dataclasses.replace(FOREIGN[1], status="not measured")
    run = dataclasses.replace(results, verdicts=(judged, absent, *FOREIGN, recorded("ok"), FLOOR))
    assert [str(entry) for entry in tally(run)][-1] == "1 of 5 claims judged here"
    run = dataclasses.replace(results, verdicts=(*FOREIGN, recorded("not comparable")))
    assert [str(entry) for entry in tally(run)] == [
        "≠ 3 claims not comparable", "≠ 1 recorded figures not comparable", "0 of 3 claims judged here",
    ]  # fmt: skip
    assert tally(dataclasses.replace(results, verdicts=(FLOOR,))) == []


def test_what_no_implementation_can_reach_is_counted_once(results):
    beyond = dataclasses.replace(FOREIGN[0], status="unattainable", metric="memory_reduction")
    run = dataclasses.replace(results, verdicts=(beyond,), bounds=BOUNDS)
    assert [str(entry) for entry in tally(run)] == ["✗ 2 unattainable by their bound", "1 of 1 claims judged here"]
    assert str(tally(dataclasses.replace(run, bounds=()))[0]) == "✗ 1 unattainable"


def test_terminal_summary_and_card_have_the_same_tally(results, tmp_path):
    run = dataclasses.replace(results, verdicts=(FLOOR, *FOREIGN), bounds=BOUNDS)
    line = "Claims and baselines: ≠ 3 not comparable, ✗ 2 unattainable by their bound, 0 of 3 claims judged here"
    assert line in printed(run)
    assert line in text.summary_md(run)
    html = page.render(run, [], tmp_path)
    card = re.sub(r"<[^>]+>|\s+", " ", html[html.index('<ul class="counts">') :].partition("</ul>")[0])
    assert " ".join(card.split()) == line.partition(": ")[2].replace(",", "")
    assert "The baseline against itself agrees: 4 pictures made twice" in html
    assert "agrees" not in html[html.index('id="claims"') :].partition("</section>")[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([recorded("not comparable", "torch 3, not 2", name) for name in ("int8", "int4")],
         ["Nothing was judged by epyc.json: not comparable, torch 3, not 2; record again with --expected-update"]),
        ([recorded("insufficient data", "this run has 3 rounds", "int8"), recorded("not measured", "no file", "int4"),
          recorded("insufficient data", "this run has 3 rounds", "flash")],
         ["Nothing was judged by epyc.json: insufficient data, this run has 3 rounds (2 of 3 rows)"]),
        ([recorded("not comparable", "torch 3 instead of 2"), recorded("ok")], []),
        ([*FOREIGN, FLOOR], []),  # of claims every run has some that are not about it
        ([], []),
    ],
)  # fmt: skip
def test_recorded_figures_that_judge_nothing_say_why_and_what_to_do(results, tmp_path, rows, said):
    run = dataclasses.replace(results, verdicts=tuple(rows))
    assert judged_nothing(run) == said
    summary, html = text.summary_md(run), page.render(run, [], tmp_path)
    assert ("Nothing was judged" in summary) == ("Nothing was judged" in html) == bool(said)
    assert all(text.escape(line) in summary.splitlines() for line in said)


def test_recorded_figures_are_expected_and_not_claimed(results, tmp_path):
    gate = dataclasses.replace(results, verdicts=(recorded("regressed"),), bounds=())
    section = page.render(gate, [], tmp_path).partition('id="claims"')[2].partition("</section>")[0]
    assert "Is it as expected?" in section
    assert ">expected</button>" in section
    assert "claimed" not in section


def test_an_estimate_says_so_first_wherever_it_is_read(results, tmp_path):
    workload = dataclasses.replace(results.workload, device="estimate:a100")
    busy = {**results.machine, "load": {"others_cpu_share": 0.68}}
    run = dataclasses.replace(results, machine=busy, workload=workload, verdicts=(recorded("regressed"),))
    assert "regressed, 1.00× estimated, 1.20× expected" in text.summary_md(run)
    assert "| metric | estimated | expected |" in text.table_md(run)
    assert ">estimated</button>" in page.render(run, [], tmp_path)
    for shown in (text.table_md(run), text.summary_md(run), page.render(run, [], tmp_path), printed(run)):
        assert "of the CPU while this was measured" not in shown
        assert "nothing was run" in shown.lower()

"""Claims that belong to another workload are one line with the reason, in every form of the report."""

from dataclasses import replace

from optsd.records import Verdict
from optsd.report import page, text
from optsd.report.judged import set_apart
from optsd.report.tables import all_variants

WHY = "model shapes instead of sd15, device cpu instead of cuda"


def foreign(count, source="claims/guide.json", why=WHY):
    return tuple(
        Verdict(
            f"deepcache:{number}", "speedup", "not comparable", None, 1.4, "±10 %", f"{source}: Table {number}", why
        )
        for number in range(2, 2 + count)
    )


def test_one_line_a_file_and_reason():
    here = Verdict("int8", "speedup", "missed", 1.0, 1.39, "±10 %", "claims/guide.json: Table 1")
    verdicts, told = set_apart(
        [*foreign(30), here, *foreign(1, "claims/tome.json"), *foreign(2, why="4 steps instead")]
    )
    assert verdicts == [here, *foreign(1, "claims/tome.json")]  # a row alone is a line already
    assert told == [
        ("30 figures of claims/guide.json cannot be compared", WHY),
        ("2 figures of claims/guide.json cannot be compared", "4 steps instead"),
    ]


def test_in_the_page_and_the_table(make_results, tmp_path):
    bound = {
        "variant": "deepcache:2", "metric": "speedup", "claimed": 1.4, "bound": 1.2, "measured": None,
        "status": "unattainable", "arithmetic": "by the data sheet", "source": "Table 2",
    }  # fmt: skip
    seen = replace(make_results(), verdicts=foreign(30), bounds=(bound,))
    html = page.render(seen, [], tmp_path)
    assert html.count(WHY) == 1
    assert "30 figures of claims/guide.json cannot be compared" in html
    assert "by the data sheet" in html
    assert 'id="verdicts"' not in html
    table = text.table_md(seen)
    assert table.count(WHY) == 1
    assert "Of 1 claims with a bound 1 are beyond it" in table
    assert "deepcache:2" not in all_variants(seen)

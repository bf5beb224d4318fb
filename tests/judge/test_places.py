"""Which operator in which module changed a figure."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from optsd.judge.places import describe, places, with_places
from optsd.ledger import FIGURES, Entry, Ledger, file_name
from optsd.records import Verdict

ENTRIES = st.lists(
    st.builds(
        Entry,
        st.sampled_from(["weights", "runs", "peak", "kept"]),
        st.sampled_from(["unet.conv", "vae"]), st.sampled_from(["aten::mm", "aten::clone"]),
        st.sampled_from(["int8", "float16", "float32"]),
        *[st.integers(0, 1000)] * 3,
    ),
    max_size=6,
)  # fmt: skip


def ledger(*entries: Entry) -> Ledger:
    return Ledger(tuple(sorted(entries)))


@given(ENTRIES, ENTRIES, st.sampled_from(FIGURES))
def test_the_places_are_the_whole_difference(before, after, figure):
    then, now = ledger(*before), ledger(*after)
    found = places(figure, then, now)
    assert sum(place.after - place.before for place in found) == now.figures()[figure] - then.figures()[figure]
    assert all(place.after != place.before for place in found)


def test_what_grew_is_named_first_and_many_are_counted():
    before = ledger(Entry("runs", "unet.a", "aten::mm", "int8", 5, 0, 0))
    after = ledger(*(Entry("runs", f"unet.{name}", "aten::_to_copy", "float32", 20, 0, 0) for name in "bcdef"))
    said = describe(places("kernel_launches", before, after), worse=True)
    assert said.startswith("unet.b: aten::_to_copy (float32) 0 → 20; unet.c: ")
    assert said.endswith("and 2 more places (beside it less in unet.a: aten::mm (int8) 5 → 0)")
    assert describe(places("kernel_launches", before, after), worse=False).startswith("unet.a: aten::mm (int8) 5 → 0")


def verdict(status: str, metric: str = "kernel_launches") -> Verdict:
    return Verdict("int8", metric, status, 2, 1, "±0", "estimate-a100.json", "1 → 2")


def test_notes_say_where(tmp_path: Path):
    for folder, number in (("then", 1), ("now", 2)):
        (tmp_path / folder).mkdir()
        text = ledger(Entry("runs", "unet.conv", "aten::clone", "float16", number, 0, 0)).to_text()
        (tmp_path / folder / file_name("int8")).write_text(text)
    given = (verdict("regressed"), verdict("ok"), verdict("regressed", "speedup"))
    red, fine, other = with_places(given, tmp_path / "then", tmp_path / "now")
    assert red.note == "1 → 2; unet.conv: aten::clone (float16) 1 → 2"
    assert (fine, other) == given[1:]


def test_a_ledger_that_is_not_there_costs_the_place_and_not_the_verdict(tmp_path: Path):
    (red,) = with_places([verdict("regressed")], tmp_path, tmp_path)
    assert red.status == "regressed"
    assert "where is not known: cannot read" in red.note

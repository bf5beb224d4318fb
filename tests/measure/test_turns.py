"""Two calls in turn."""

import itertools

from optsd.measure import turns
from optsd.measure.turns import in_turn


def test_each_is_read_once_a_round_and_the_order_is_drawn():
    order = []

    def reading(name, seconds):
        def call():
            order.append(name)
            return seconds

        return call

    found = in_turn(reading("theirs", 2.0), reading("ours", 3.0), lambda ratios: len(ratios) == 64, 60.0, seed=1)
    assert found.theirs == (2.0,) * 64
    assert found.ratios == (1.5,) * 64
    firsts = order[::2]
    assert 16 < firsts.count("ours") < 48
    assert all({one, other} == {"ours", "theirs"} for one, other in zip(order[::2], order[1::2], strict=True))


def test_it_ends_with_the_time_or_the_number_of_rounds(monkeypatch):
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr(turns.time, "monotonic", lambda: next(clock))
    slow = in_turn(lambda: 1.0, lambda: 1.0, lambda ratios: False, 10.0)
    assert 1 <= len(slow.ratios) <= 4
    assert len(in_turn(lambda: 1.0, lambda: 1.0, lambda ratios: False, 1e9, most=3).ratios) == 3
    assert len(in_turn(lambda: 1.0, lambda: 1.0, lambda ratios: False, 0.0).ratios) == 1

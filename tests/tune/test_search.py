"""The search on made-up readings: how often it claims a gain that is none, what it finds, and what stops it."""

import math
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import pytest

from optsd.tune.search import (
    BASELINE,
    COMBINATIONS,
    FIRST_ROUNDS,
    Ask,
    Candidate,
    Demand,
    Failed,
    Search,
    TimeUp,
)

OBJECTS = (Demand("objects_right", 0.95),)


@dataclass
class Made:
    """Readings drawn at random, each by its place alone: (true speedup, share kept, bytes at the peak) by name.

    `spread` of a round's log-ratio is that of a shared machine, where one round in ten is off by any factor.
    """

    truth: dict[str, tuple[float, float, int]]
    seed: int = 0
    spread: float = 0.15
    stops_after: float = math.inf  # readings
    failing: tuple[str, ...] = ()
    raises: type[BaseException] = TimeUp
    kept: dict = field(default_factory=dict)  # the journal: what was read is not read again
    made: int = 0

    def _reading(self, *place):
        if place not in self.kept:
            if self.made >= self.stops_after:
                raise self.raises
            self.made += 1
            generator = np.random.default_rng([self.seed, *(crc32(str(part).encode()) for part in place)])
            self.kept[place] = self._make(generator, *place)
        return self.kept[place]

    def _make(self, generator, kind, name, number):
        speedup, keeps, _ = self.truth[name]
        if kind == "ratio":
            x = generator.normal(0, self.spread)
            if generator.random() < 0.1:
                x = generator.choice([-1, 1]) * (math.log(1.4) + generator.exponential(0.5))
            return math.exp(x) / speedup
        before = np.random.default_rng([self.seed, number]).binomial(2, 0.95, 8) / 2
        return list(zip(np.where(generator.random(8) < keeps, before, 0).tolist(), before.tolist(), strict=True))

    def trial(self, name):
        return 1 / self.truth[name][0] if name == "hopeless" else 1.0

    def ratio(self, name, number):
        if name in self.failing:
            raise Failed("out of memory")
        return self._reading("ratio", name, number)

    def scores(self, name, number):
        return {"objects_right": self._reading("scores", name, number)}

    def peak(self, name):
        return self.truth[name][2]


def search(bench: Made, exact=(), ask: Ask | None = None, **more) -> Search:
    names = [name for name in bench.truth if name != BASELINE and "+" not in name]
    made = Search(ask or Ask(OBJECTS), [Candidate(name, name in exact) for name in names], bench, **more)
    made.run()
    return made


TRUTH = {
    "exact": (1.15, 1.0, 90),
    "fast": (2.0, 0.999, 100),
    "lossy": (3.0, 0.7, 100),
    "slow": (0.7, 1.0, 50),
    "hopeless": (0.02, 1.0, 40),
    BASELINE: (1.0, 1.0, 100),
}


def test_twenty_searches_among_nothing_but_baselines() -> None:
    """Candidates that all are the baseline under other names, half of them exact: at most one search claims a gain."""
    truth = {f"name {number}": (1.0, 1.0, 100) for number in range(8)}
    ask = Ask(OBJECTS, rounds=32, pictures=64)
    winners = [search(Made(truth, seed), exact=list(truth)[:4], ask=ask).winner for seed in range(20)]
    assert sum(winner is not None for winner in winners) <= 1


def test_an_exact_search_can_tell_a_gain_from_noise() -> None:
    """The same, but for one that is faster: what the test above finds is no blindness."""
    truth = {f"name {number}": (1.0, 1.0, 100) for number in range(7)} | {"better": (1.5, 1.0, 100)}
    found = [search(Made(truth, seed), exact=list(truth), ask=Ask(OBJECTS, rounds=32)).winner for seed in range(5)]
    assert [one.name for one in found if one] == ["better"] * 5


@pytest.mark.parametrize("seed", range(3))
def test_the_fastest_that_keeps_its_quality_wins(seed: int) -> None:
    made = search(Made(TRUTH, seed), exact=("exact",))
    best = made.winner
    assert best is not None
    assert best.name == "fast"
    assert best.quality == "kept"
    assert made.complete
    low, high = best.speed_bounds()
    assert 1 < low < 2 < high
    assert best.kept(OBJECTS[0]).low > 0.95 - 1e-6
    known = made.known
    assert known["hopeless"].out == "a step takes 50 times the baseline's"
    assert known["hopeless"].ratios == [], "it would eat the time of all others"
    assert len(known["slow"].ratios) <= 2 * FIRST_ROUNDS
    assert known["lossy"].quality != "kept"
    assert known["exact"].pictures < known["fast"].pictures, "what is exact is not drawn hundreds of times"


def test_when_the_time_is_up_there_is_an_answer_where_an_exact_one_gains() -> None:
    """Ten approximate ones promise more, and would take all the readings that there is time for."""
    truth = {f"promising {number}": (2.0 + number / 10, 0.96, 100) for number in range(10)} | {"exact": (1.6, 1.0, 100)}
    made = search(Made(truth, spread=0.05, stops_after=120), exact=("exact",))
    assert not made.complete
    assert made.winner is not None
    assert made.winner.name == "exact"


def test_one_bad_picture_among_the_first_is_not_the_end_of_a_fast_candidate() -> None:
    """It keeps 98 %, and one of its first eight pictures is among the lost two of a hundred."""

    class Unlucky(Made):
        def scores(self, name, number):
            pairs = super().scores(name, number)["objects_right"]
            if name == "fast" and number == 0:
                pairs = [(0.0, pairs[0][1]), *pairs[1:]]
            return {"objects_right": pairs}

    made = search(Unlucky(TRUTH), exact=("exact",))
    assert made.known["fast"].scores["objects_right"][0][0] == 0.0
    assert made.winner is not None
    assert made.winner.name == "fast"


def test_what_is_called_exact_and_is_not_is_judged_like_the_others() -> None:
    truth = {"said exact": (2.0, 0.5, 100)}
    made = search(Made(truth), exact=("said exact",))
    assert made.winner is None
    assert made.known["said exact"].out == "loses too much"


def test_combinations_of_what_did_well_are_tried() -> None:
    truth = {"a": (1.4, 1.0, 100), "b": (1.5, 1.0, 100), "worse": (0.6, 1.0, 100), "a+b": (2.1, 1.0, 100)}
    asked = []

    def join(names):
        asked.append(names)
        return Candidate("+".join(sorted(names)), exact=True)

    made = search(Made(truth), exact=("a", "b"), join=join)
    assert set(map(frozenset, asked)) == {frozenset(("a", "b"))}
    assert made.winner
    assert made.winner.name == "a+b"
    names = [f"v{number}" for number in range(8)]
    many = {"+".join(sorted(pair)): (1.5, 1.0, 100) for one in names for other in names for pair in [{one, other}]}
    crowd = search(Made(many), exact=names, join=lambda parts: join(parts) if len(parts) == 2 else None)
    assert len(crowd.known) - len(names) <= COMBINATIONS, "the error rate is divided among no more than these"


def test_a_slow_one_is_not_followed() -> None:
    made = search(Made({"slow": (0.5, 1.0, 100)}, spread=0.01))
    assert made.known["slow"].out == f"slower in each of {FIRST_ROUNDS} rounds"
    assert made.known["slow"].pictures == 0


def test_a_memory_limit_that_nothing_meets() -> None:
    bench = Made(TRUTH)
    made = search(bench, ask=Ask(OBJECTS, memory=30))
    assert made.winner is None
    assert made.complete
    assert {one.out for one in made.known.values()} == {"needs more memory"}
    assert bench.made == 0, "nothing was timed or drawn in vain"


def test_the_smallest() -> None:
    made = search(Made(TRUTH), exact=("exact",), ask=Ask(OBJECTS, goal="memory"))
    assert made.winner
    assert made.winner.name == "hopeless"
    assert made.known["fast"].out == "needs no less memory"
    limited = search(Made(TRUTH), exact=("exact",), ask=Ask(OBJECTS, memory=90))
    assert limited.winner
    assert limited.winner.name == "exact"


def test_a_quality_that_nothing_keeps() -> None:
    truth = dict.fromkeys(("a", "b", "c"), (2.0, 0.8, 100))
    made = search(Made(truth))
    assert made.winner is None
    assert made.complete
    assert {one.out for one in made.known.values()} == {"loses too much"}


def test_too_few_pictures_to_show_it() -> None:
    made = search(Made({"fast": (2.0, 1.0, 100)}), ask=Ask(OBJECTS, pictures=16))
    assert made.winner is None
    assert made.known["fast"].quality == "insufficient data"
    assert made.fewest_pictures > 16


def test_a_candidate_that_fails_is_a_result() -> None:
    made = search(Made(TRUTH, failing=("fast",)), exact=("exact",))
    assert made.known["fast"].out == "out of memory"
    assert made.winner
    assert made.winner.name == "exact"


def test_what_cannot_win_is_never_measured() -> None:
    bench = Made(TRUTH)
    made = Search(Ask(OBJECTS), [Candidate("fast", False, "needs 9 GiB at least"), Candidate("exact", True)], bench)
    made.run()
    assert made.known["fast"].out == "needs 9 GiB at least"
    assert not any(name == "fast" for _, name, _ in bench.kept)


def test_no_time_at_all() -> None:
    made = search(Made(TRUTH, stops_after=0))
    assert made.winner is None
    assert not made.complete


def test_killed_at_random_moments_it_ends_where_it_would_have_ended() -> None:
    def told(made: Search):
        return [
            (one.name, one.out, one.quality, one.ratios, one.scores) for one in made.known.values()
        ], made.winner.name

    whole = Made(TRUTH, 5)
    expected = told(search(whole, exact=("exact",)))
    moments = np.random.default_rng(1).integers(1, whole.made, 10)
    for moment in map(int, moments):
        killed = Made(TRUTH, 5, stops_after=moment, raises=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            search(killed, exact=("exact",))
        resumed = Made(TRUTH, 5, kept=killed.kept)
        assert told(search(resumed, exact=("exact",))) == expected
        assert resumed.made == whole.made - moment, "nothing is measured twice"

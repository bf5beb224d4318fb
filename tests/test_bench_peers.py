"""`pytest bench -m peers`: processes of their own, seconds by stage, and what is no picture."""

import json
import operator
import os
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from benched import run_pytest

from bench import test_peers as peers
from bench.apart import apart, ask, in_turn
from optsd import models
from optsd.errors import BadInput, NotFound, OptsdError, Unsupported
from optsd.records import Workload

WORK = Workload("shapes", "cpu", "float32", 2, 5.0, 64, 64, 1)


@pytest.fixture
def stopwatch() -> SimpleNamespace:
    """As pytest-benchmark's, without its table."""

    def pedantic(call: Callable, setup: Callable, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            call()

    return SimpleNamespace(pedantic=pedantic, extra_info={})


def test_a_subject_lives_in_a_process_of_its_own() -> None:
    with apart(os.getpid) as one, apart(os.getpid) as other:
        assert len({os.getpid(), ask(one, operator.pos), ask(other, operator.pos)}) == 3


def test_what_cannot_run_is_skipped_with_its_reason_in_one_line() -> None:
    with pytest.raises(pytest.skip.Exception, match="^no model 'nosuch'; use shapes, "), apart(models.check, "nosuch"):
        pass


@pytest.mark.parametrize("kind", [OptsdError, Unsupported, BadInput, NotFound])
def test_an_error_comes_from_a_process_as_it_was_raised(kind: type[OptsdError]) -> None:
    come = pickle.loads(pickle.dumps(kind("no kernel", "run it elsewhere")))  # noqa: S301
    assert (type(come), come.problem, come.remedy, str(come)) == (
        kind, "no kernel", "run it elsewhere", "no kernel; run it elsewhere"
    )  # fmt: skip


def test_rounds_are_in_turn_and_the_ratio_is_that_of_pairs(stopwatch: SimpleNamespace) -> None:
    order: list[str] = []

    def clock(name: str, seconds: float) -> Callable[[int], float]:
        return lambda number: order.append(f"{name}{number}") or number * seconds

    told = in_turn(stopwatch, 6, clock("a", 3.0), clock("b", 2.0), unit="s a picture", beside="the eager baseline")
    assert order[:4] == ["a1", "b1", "a2", "b2"]
    assert stopwatch.extra_info["readings"] == {
        "baseline": [3.0 * n for n in range(1, 7)],
        "other": [2.0 * n for n in range(1, 7)],
    }
    assert stopwatch.extra_info["speedup"] == (1.5, 1.5, 1.5)
    assert told.startswith("7 s a picture [")
    assert told.endswith("], 1.50x the eager baseline [1.50, 1.50]")


def test_a_picture_is_timed_by_stage(untrained) -> None:
    seen = peers.draw(peers.Subject("it", untrained(), WORK, dict), 1)
    assert [*seen] == ["text", "denoiser", "decoder", "rest"]
    assert all(seconds > 0 for seconds in seen.values())
    assert peers.medians([seen, {**seen, "text": 9.0}, {**seen, "text": 9.0}]) == {**seen, "text": 9.0}


def test_what_is_not_finite_fails(untrained) -> None:
    pipe = untrained()
    pipe.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(OptsdError, match="it draws no pictures: they are NaN or infinite"):
        peers.draw(peers.Subject("it", pipe, WORK, dict), 1)


def test_it_runs_where_it_is_asked_for() -> None:
    words = ("bench", "-p", "no:cacheprovider", "--collect-only", "-q")
    assert "test_peers" not in run_pytest(*words).stdout

    def asked(*more: str) -> list[str]:
        lines = run_pytest(*words, "-m", "peers", *more).stdout.splitlines()
        return [line.partition("::")[2] for line in lines if "::" in line]

    theirs = ["baseline", "sdpa", "Compiled", "CompiledInt8", *(f"{name}-bfloat16" for name in peers.PLAIN)]
    both = ["test_openvino", *(f"test_theirs[{name}]" for name in theirs)]
    assert asked() == [*both, *(f"test_ours[{name}]" for name in peers.OURS)]
    assert asked("--variant=int4,sage", "--subject=their=json:dumps") == [*both, "test_ours[int4]", "test_ours[sage]"]


@pytest.mark.slow
def test_the_report_of_a_variant(stopwatch: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    with apart(peers.variant, WORK, "cpu", "baseline") as other, apart(peers.variant, WORK, "cpu", "sdpa") as process:
        peers.compare(process, ("the eager baseline", other), stopwatch, 6)
    assert "x the eager baseline [" in (told := capsys.readouterr().out)
    assert "; text 0." in told
    found = json.loads(json.dumps(stopwatch.extra_info))
    assert found["seconds"][0] == pytest.approx(sum(found["stages"].values()), rel=0.5)
    assert [*found["stages"]] == [*found["reference_stages"]] == ["text", "denoiser", "decoder", "rest"]
    assert (found["reference"], found["dtype"]) == ("the eager baseline", "float32")
    assert found["proof"]["kernel_calls"] > 0

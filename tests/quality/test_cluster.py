"""On a cluster as in one process: the same values, each made once but for what dead nodes were making."""

import collections
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from optsd.errors import BadInput, Unsupported
from optsd.quality.store import Batch, Step, Store

ray = pytest.importorskip("ray")
cluster = pytest.importorskip("optsd.quality.cluster")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SIZE = 2
KILLS = int(os.environ.get("OPTSD_KILLS", "3"))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Three nodes of one core each, and a head that draws nothing."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        made.add_node(num_cpus=1)
    with cluster.connected(made.address):
        yield made
    made.shutdown()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPTSD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)


def _batches(count: int, **recipe) -> list[Batch]:
    return [Batch({"first": first, **recipe}, SIZE) for first in range(count)]


def _maker(log: Path, pause: float = 0.0):
    """Draws from the recipe alone, and writes down what it has drawn."""

    def make(batch: Batch):
        import time

        import numpy as np

        time.sleep(pause)
        with log.open("a") as stream:
            stream.write(f"{batch.recipe['first']}\n")
        rng = np.random.default_rng(batch.recipe["first"])
        return rng.integers(0, 256, (batch.count, 8, 8, 3), dtype=np.uint8)

    return make


def _drawn(log: Path) -> list[int]:
    return sorted(map(int, log.read_text().split()))


def test_as_in_one_process_and_each_once(nodes, tmp_path: Path) -> None:
    steps: list[Step] = []
    said: list[str] = []
    store = cluster.ClusterStore(tmp_path / "shared", steps.append, say=said.append)
    store.fill(_batches(2), _maker(tmp_path / "before"))
    store.fill(_batches(24), _maker(tmp_path / "log", 0.05))
    alone = Store(tmp_path / "alone")
    alone.fill(_batches(24), _maker(tmp_path / "alone.log"))
    for batch in _batches(24):
        np.testing.assert_array_equal(store.take(batch), alone.take(batch))
    assert _drawn(tmp_path / "log") == list(range(2, 24))
    assert store.made == 24
    assert len(store.nodes) > 1
    assert {step.node for step in steps if step.seconds is not None} == store.nodes
    of_the_second = [step for step in steps if step.total == 24 * SIZE]
    assert [of_the_second[0].count, sum(step.count for step in of_the_second)] == [2 * SIZE, 24 * SIZE]
    assert said[-1].startswith("drawing: 22 of 22 batches, ")
    store.fill(_batches(24), lambda batch: pytest.fail("it was drawn again"))


def test_nodes_that_die_cost_what_they_were_making(nodes, tmp_path: Path) -> None:
    """Nodes are taken away at random moments, and as many come, each time after something more was drawn."""
    store, log, rng = cluster.ClusterStore(tmp_path / "shared"), tmp_path / "log", random.Random(1)
    log.touch()
    killed = seen = count = 0
    with ThreadPoolExecutor(1) as executor:  # Ray wants the main thread to add nodes
        while killed < KILLS:  # as long as nodes die there is something to draw
            count += 20
            filling = executor.submit(store.fill, _batches(count), _maker(log, 0.3))
            while not filling.done():
                time.sleep(rng.uniform(0.1, 1.0))
                if killed < KILLS and (now := len(_drawn(log))) > seen:
                    workers = [node for node in nodes.worker_nodes if node is not nodes.head_node]
                    nodes.remove_node(rng.choice(sorted(workers, key=id)), allow_graceful=False)
                    nodes.add_node(num_cpus=1)
                    killed, seen = killed + 1, now
            filling.result()
    alone = Store(tmp_path / "alone")
    alone.fill(_batches(count), _maker(tmp_path / "alone.log"))
    for batch in _batches(count):
        np.testing.assert_array_equal(store.take(batch), alone.take(batch))
    times = collections.Counter(_drawn(log))
    assert set(times) == set(range(count))
    assert sum(times.values()) - count <= KILLS, "nothing was drawn twice but what a dead node had in hand"


def test_an_error_of_a_node_is_the_users_error(nodes, tmp_path: Path) -> None:
    def refuse(batch: Batch):
        raise Unsupported("it cannot be drawn", "draw another")

    store = cluster.ClusterStore(tmp_path / "shared")
    with pytest.raises(Unsupported, match=r"^it cannot be drawn; draw another \(on node .+/\d+\)$"):
        store.fill(_batches(6), refuse)

    def stumble(batch: Batch):
        return {}["nothing"]

    with pytest.raises(KeyError, match="nothing"):
        store.fill(_batches(1), stumble)


@pytest.mark.parametrize("recipe", [{"code": "another's"}, {"reading": "features", "code": "another's"}])
def test_a_node_with_other_code_draws_nothing(nodes, tmp_path: Path, recipe: dict) -> None:
    with pytest.raises(BadInput, match="a node's code is not what .*; install the same packages everywhere"):
        cluster.ClusterStore(tmp_path).fill(_batches(1, **recipe), _maker(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


def test_a_store_that_nodes_do_not_share_is_named(nodes, tmp_path: Path) -> None:
    store = cluster.ClusterStore(f"memory://{tmp_path}/of-each-process-its-own")
    with pytest.raises(BadInput, match="2 of 2 items that were made are not in memory.*; give --image-store a folder"):
        store.fill(_batches(2), _maker(tmp_path / "log"))


def test_who_waits_for_a_gpu_that_is_not_there_is_told(nodes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS_WITHOUT_A_WORKER", 0.0)
    said: list[str] = []
    store = cluster.ClusterStore(tmp_path, device="cuda", say=said.append)

    class Enough(Exception):
        pass

    def stop(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            raise Enough

    store.say = stop
    with pytest.raises(Enough), pytest.warns(UserWarning, match="each needs 1 of gpus, and the cluster has .*'GPU': 0"):
        store.fill(_batches(2), _maker(tmp_path / "log"))
    assert said[0] == "drawing: 0 of 2 batches, waiting for a worker"


def test_another_model_under_the_same_name_draws_nothing() -> None:
    with pytest.raises(BadInput, match="shapes is another model on a node; give --model a folder that all nodes share"):
        cluster.build("shapes", "sdpa", "cpu", "float32", "another's fingerprint")


def test_no_cluster_is_one_line() -> None:
    began = time.monotonic()
    match = "no Ray at 127.0.0.1:1 .*; start one: ray start --head"
    with pytest.raises(BadInput, match=match), cluster.connected("127.0.0.1:1"):
        pass
    assert time.monotonic() - began < 120

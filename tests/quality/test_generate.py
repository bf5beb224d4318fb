"""Images are a function of their recipe: not of the shard, the resume or the number of workers."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from optsd.errors import BadInput, OptsdError
from optsd.quality import generate
from optsd.quality.store import Store
from optsd.records import Workload

WORKLOAD = Workload("shapes", "cpu", "float32", steps=2, guidance=5.0, height=16, width=24, batch_size=4)
PROMPTS = [f"prompt {index}" for index in range(10)]


class FakePipeline:
    """Images that depend, as real ones may, on each prompt, its noise, and the rest of the batch."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, prompts, generator, num_inference_steps, guidance_scale, height, width, output_type):
        self.calls.append(prompts)
        noise = torch.stack([torch.rand(height, width, 3, generator=each) for each in generator]).numpy()
        together = hash(tuple(map(len, prompts))) % 7 / 100
        words = np.array([sum(map(ord, prompt)) % 13 / 13 for prompt in prompts])[:, None, None, None]
        return SimpleNamespace(images=np.clip(noise * 0.5 + words * 0.3 + together, 0, 1))


def _draw(folder: Path, prompts=PROMPTS, seeds: int = 1, workload=WORKLOAD, variant="baseline", weights="w"):
    pipe = FakePipeline()
    pictures = generate.generate(variant, workload, prompts, weights, Store(folder), lambda: pipe, seeds)
    assert len(pictures) == len(prompts) * seeds
    return np.stack(list(pictures)), pipe


def test_shapes_order_and_padding(tmp_path: Path) -> None:
    images, pipe = _draw(tmp_path)
    assert images.shape == (10, 16, 24, 3)
    assert images.dtype == np.uint8
    assert [len(call) for call in pipe.calls] == [4, 4, 4]
    assert pipe.calls[-1] == ["prompt 8", "prompt 9", "prompt 9", "prompt 9"]


def test_a_second_run_draws_nothing_and_builds_nothing(tmp_path: Path) -> None:
    images, _ = _draw(tmp_path)

    def build():
        raise AssertionError("the pipeline was built")

    again = generate.generate("baseline", WORKLOAD, PROMPTS, "w", Store(tmp_path), build)
    np.testing.assert_array_equal(np.stack(list(again)), images)


def test_a_resumed_run_gives_the_same_images(tmp_path: Path) -> None:
    whole, _ = _draw(tmp_path / "whole")
    _draw(tmp_path / "parts", PROMPTS[:8])
    resumed, pipe = _draw(tmp_path / "parts")
    np.testing.assert_array_equal(resumed, whole)
    assert len(pipe.calls) == 1


def test_more_prompts_only_add(tmp_path: Path) -> None:
    few, _ = _draw(tmp_path / "few", PROMPTS[:4])
    many, _ = _draw(tmp_path / "many", PROMPTS)
    np.testing.assert_array_equal(many[:4], few)


def test_seeds_follow_each_other_and_differ(tmp_path: Path) -> None:
    both, _ = _draw(tmp_path / "both", seeds=2)
    first, _ = _draw(tmp_path / "first")
    second, _ = _draw(tmp_path / "second", workload=dataclasses.replace(WORKLOAD, seed=43))
    np.testing.assert_array_equal(both, np.concatenate([first, second]))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Workload)])
def test_every_part_of_the_workload_is_in_the_key(field: str) -> None:
    value = getattr(WORKLOAD, field)
    changed = dataclasses.replace(WORKLOAD, **{field: f"{value}x" if isinstance(value, str) else value + 1})
    assert _keys(WORKLOAD).isdisjoint(_keys(changed))


def _keys(workload: Workload, variant: str = "baseline", prompts=PROMPTS, weights: str = "w") -> set[str]:
    return {batch.key for batch in generate.plan(variant, workload, prompts, weights)}


def test_variant_weights_prompts_code_and_machine_are_in_the_key(monkeypatch) -> None:
    keys = _keys(WORKLOAD)
    assert keys == _keys(WORKLOAD)
    assert keys.isdisjoint(_keys(WORKLOAD, variant="sdpa"))
    assert keys.isdisjoint(_keys(WORKLOAD, weights="v"))
    assert len(keys & _keys(WORKLOAD, prompts=[*PROMPTS[:4], "other", *PROMPTS[5:]])) == 2
    monkeypatch.setattr(generate, "code_version", lambda: "other")
    assert keys.isdisjoint(_keys(WORKLOAD))
    monkeypatch.undo()
    monkeypatch.setattr(generate, "machine", lambda device: "other")
    assert keys.isdisjoint(_keys(WORKLOAD))


def test_the_gpu_that_draws_is_in_the_key_and_not_the_current_one(monkeypatch) -> None:
    monkeypatch.setattr(
        "torch.cuda.get_device_name", lambda device: {"cuda": "A", "cuda:0": "A", "cuda:1": "B"}[device]
    )
    on_cuda = dataclasses.replace(WORKLOAD, device="cuda")
    first, second, current = (
        generate.plan("baseline", on_cuda, PROMPTS, "w", device)[0].recipe["machine"]
        for device in ("cuda:0", "cuda:1", "")
    )
    assert (first, second, current) == ("A", "B", "A")


def test_a_techniques_parameters_are_in_the_key(monkeypatch) -> None:
    keys = _keys(WORKLOAD)

    @dataclasses.dataclass(frozen=True)
    class Technique:
        every: int

    monkeypatch.setattr(generate, "against_eager", lambda name: SimpleNamespace(steps=(Technique(2),)))
    two = _keys(WORKLOAD)
    monkeypatch.setattr(generate, "against_eager", lambda name: SimpleNamespace(steps=(Technique(3),)))
    assert keys.isdisjoint(two)
    assert two.isdisjoint(_keys(WORKLOAD))


def test_the_number_of_threads_is_in_the_key() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = generate.machine("cpu")
        torch.set_num_threads(2)
        assert generate.machine("cpu") != one
    finally:
        torch.set_num_threads(threads)


def test_the_code_that_makes_images_is_hashed_and_other_code_is_not(tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "optsd"
    for name in ("optimizations/a.py", "report/b.py", "quality/generate.py", "quality/metrics.py", "__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("1")
    monkeypatch.setattr(generate.optsd, "__file__", str(root / "__init__.py"))

    def version() -> str:
        generate.code_version.cache_clear()
        return generate.code_version()

    before = version()
    for name, counts in (("report/b.py", False), ("quality/metrics.py", False), ("quality/generate.py", True)):
        (root / name).write_text("2")
        assert (version() != before) == counts, name
    before = version()
    for name in ("new.py", "optimizations/kernels.cpp", "optimizations/kernels.h"):
        (root / name).write_text("new parts count")
        assert version() != before, name
        before = version()
    monkeypatch.undo()
    generate.code_version.cache_clear()


def test_nothing_to_draw(tmp_path: Path) -> None:
    for prompts, seeds in (([], 1), (PROMPTS, 0)):
        with pytest.raises(BadInput, match="there is nothing to draw"):
            _draw(tmp_path, prompts, seeds)


def test_images_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    def broken(*_, **__):
        return SimpleNamespace(images=np.full((4, 16, 24, 3), np.nan))

    with pytest.raises(OptsdError, match="sdpa draws no pictures: they are NaN or infinite; use --dtype float32"):
        generate.generate("sdpa", WORKLOAD, PROMPTS, "w", Store(tmp_path), lambda: broken)
    assert not list(tmp_path.rglob("*.png"))


def test_the_fingerprint_is_of_weights_configuration_and_vocabulary() -> None:
    def pipe(weight: float = 1.0, setting: int = 1, word: str = "a", name: str = "x") -> SimpleNamespace:
        network = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.constant_(network.weight, weight)
        network.register_buffer("scalar", torch.zeros((), dtype=torch.bfloat16))
        network.config = {"setting": setting, "_name_or_path": name}
        tokenizer = SimpleNamespace(get_vocab=lambda: {word: 0})
        return SimpleNamespace(components={"unet": network, "tokenizer": tokenizer, "safety_checker": None})

    one = generate.fingerprint(pipe())
    assert one == generate.fingerprint(pipe(name="another folder"))
    others = [generate.fingerprint(each) for each in (pipe(weight=1.0001), pipe(setting=2), pipe(word="b"))]
    assert len({one, *others}) == 4

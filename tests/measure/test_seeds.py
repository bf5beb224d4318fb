import random

import numpy as np
import torch

from optsd.measure import seeds


def test_the_guides_seeds() -> None:
    assert (seeds.GLOBAL, seeds.TORCH, seeds.NUMPY, seeds.PYTHON) == (42, 12345, 67890, 54321)
    seeds.fix_seeds()
    drawn = (random.random(), np.random.random(), torch.rand(1).item())
    seeds.fix_seeds()
    assert (random.random(), np.random.random(), torch.rand(1).item()) == drawn
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)


def test_a_shard_draws_what_the_whole_draws() -> None:
    def noise(generators: list) -> list[float]:
        return [torch.rand(1, generator=generator).item() for generator in generators]

    whole = noise(seeds.generators(42, 0, 8))
    assert noise(seeds.generators(42, 5, 3)) == whole[5:]
    assert len(set(whole)) == 8
    assert noise(seeds.generators(43, 0, 8)) != whole


def test_any_seed_of_64_bits_draws() -> None:
    for seed in (156680208700286, 2**63, 2**64 - 1):
        first, second = seeds.generators(seed, 999, 2)
        assert torch.rand(1, generator=first).item() != torch.rand(1, generator=second).item()
    assert [made.initial_seed() for made in seeds.generators(42, 5, 2)] == [42 * 1_000_003 + 5, 42 * 1_000_003 + 6]

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optsd.models.shapes import fitting
from optsd.models.shapes.fitting import Stage, fit

STAGE = Stage("line", seed=3, steps=9, batch=4, learning_rate=1e-2, ema=0.9, falling=0.5)


class Interrupted(Exception):
    pass


def line(folder: Path, stop: int | None = None, stage: Stage = STAGE) -> dict[str, Tensor]:
    """The weights of a line fitted to noise; raises Interrupted at the step `stop`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # with buffers, one of them an integer

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        if step == stop:
            raise Interrupted
        points = torch.from_numpy(rng.standard_normal((stage.batch, 3), dtype=np.float32))
        return model(points).square().sum() + model[0].weight.sum()

    fit(stage, model, loss_of, folder)
    return model.state_dict()


@pytest.mark.parametrize("stop", [2, 4, 7, 8])
def test_an_interrupted_run_ends_with_the_same_bits(stop: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_EVERY", 3)
    whole = line(tmp_path / "whole")
    with pytest.raises(Interrupted):
        line(tmp_path / "cut", stop)
    assert not (tmp_path / "cut" / "line.safetensors").exists()
    resumed = line(tmp_path / "cut")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert [file.name for file in (tmp_path / "cut").iterdir()] == ["line.safetensors"]


def test_what_is_finished_is_not_fitted_again(tmp_path: Path) -> None:
    first = line(tmp_path)
    again = line(tmp_path, stop=0)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [fitting._schedule(step, 1000, 0.25, warmup=10) for step in range(1000)]
    assert rates[0] == 0.1
    assert rates[9:751] == [1.0] * 742
    assert rates[875] == pytest.approx(0.5)
    assert 0 < rates[999] < 1e-4
    assert all(after < before for before, after in pairwise(rates[751:]))

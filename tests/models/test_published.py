import pytest
import small_pipelines
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from optsd import models
from optsd.errors import Unsupported
from optsd.models import published


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As counted in the published safetensors; SD3's positions are a buffer, and no parameters.
        ("sd21", {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863}),
        (
            "sdxl",
            {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863},
        ),
        ("flux", {"transformer": 11_901_408_320, "text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656}),
    ],
)
def test_parameters_are_the_published_ones(name: str, parameters: dict[str, int]) -> None:
    with FakeTensorMode():
        pipe = published.BUILDERS[name]()
    counted = {part: sum(each.numel() for each in getattr(pipe, part).parameters()) for part in parameters}
    assert counted == parameters


def test_what_does_not_fit_says_so_before_it_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_free_bytes", lambda place: 10**9)
    seen: list[bool] = []
    build = published.BUILDERS["sd15"]

    def fake_only() -> object:
        pipe = build()
        seen.append(all(isinstance(each, torch._subclasses.FakeTensor) for each in pipe.unet.parameters()))
        return pipe

    monkeypatch.setitem(published.BUILDERS, "sd15", fake_only)
    with pytest.raises(Unsupported, match=r"take 4.3 GB in float32, and 1.0 GB of memory are free; choose --dtype bf"):
        models.load("sd15-random", "cpu", "float32")
    assert seen == [True]
    assert torch.get_default_dtype() == torch.float32


def test_random_weights_are_seeded_and_of_the_wanted_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(published.BUILDERS, "sdxl", small_pipelines.CLASSES["SDXL"])
    state = torch.random.get_rng_state()
    pipes = [models.load("sdxl-random", "cpu", "bfloat16") for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again = (dict(pipe.unet.named_parameters()) for pipe in pipes)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert {tensor.dtype for tensor in first.values()} == {torch.bfloat16}
    assert not any(part.training for part in pipes[0].components.values() if isinstance(part, torch.nn.Module))
    assert small_pipelines.draw("SDXL", pipes[0]).isfinite().all()


@pytest.mark.parametrize(("name", "side"), [("sd15-random", 512), ("sd21-random", 768), ("flux-random", 1024)])
def test_the_size_is_the_models_own(name: str, side: int) -> None:
    assert models.check(name).size == (side, side)

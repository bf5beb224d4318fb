import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd import workloads
from optsd.errors import BadInput
from optsd.models import default_preset
from optsd.workloads import PRESETS, at_least, parse_size


def test_the_guide_is_the_guide() -> None:
    guide = PRESETS["guide"]
    assert (guide.steps, guide.guidance, guide.size, guide.batch_size, guide.images) == (50, 7.5, (512, 512), 4, 1000)
    assert default_preset("shapes") == default_preset("shapes-dit") == "quick"
    assert default_preset("sd15") == default_preset("/some/folder") == "guide"


@given(st.integers(1, 500), st.integers(1, 500))
def test_sizes_are_width_by_height(width: int, height: int) -> None:
    assert parse_size(f"{width * 8}x{height * 8}") == (width * 8, height * 8)
    assert parse_size(str(width * 8)) == (width * 8, width * 8)


@pytest.mark.parametrize("text", ["65", "0", "64x65", "4"])
def test_a_size_that_latents_cannot_have(text: str) -> None:
    with pytest.raises(BadInput, match=r"multiple of 8 pixels; try --size \d+"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "big", "64x64x64", "-64", "64.0"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadInput, match="is no size; write 512"):
        parse_size(text)


@pytest.mark.parametrize("value", [-1, 0, math.nan])
def test_at_least_names_the_option(value: float) -> None:
    with pytest.raises(BadInput, match="--steps .* is too small; give 1 or more"):
        at_least("--steps", value, 1)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *[(each, "float16") for each in ("float16", "torch.float16", "fp16", "half", "FP16")],
        *[(each, "bfloat16") for each in ("bfloat16", "torch.bfloat16", "bf16")],
        *[(each, "float32") for each in ("float32", "torch.float32", "fp32", "float")],
        ("auto", "auto"),
    ],
)
def test_types_as_people_write_them(given: str, name: str) -> None:
    assert workloads.dtype_name(given) == name


@pytest.mark.parametrize("given", ["int8", "", "torch", "float64", "None"])
def test_unknown_types(given: str) -> None:
    with pytest.raises(BadInput, match=f"unknown dtype '{given}'; use auto, float32, float16, bfloat16"):
        workloads.dtype_name(given)


def test_devices_as_people_write_them() -> None:
    names = [workloads.device_name(each) for each in ("cpu", "CUDA:1", "cuda", 1, "auto")]
    assert names == ["cpu", "cuda:1", "cuda", "cuda:1", "auto"]

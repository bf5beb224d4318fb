"""Published claims beside what data sheets allow: of a made-up model whose numbers are round. Imports no torch."""

from dataclasses import replace

import pytest

from optsd.claims import names, rows
from optsd.estimate import published
from optsd.estimate.devices import find
from optsd.estimate.profiles import Profile, Run, Work

ROW = {
    "source": "A README", "url_or_path": "a page", "technique": "SDPA", "parameters": {},
    "model": "runwayml/stable-diffusion-v1-5", "device": "A100 80 GB SXM", "dtype": "float16", "steps": 50,
    "scheduler": "DDIM", "guidance": 7.5, "size": 512, "batch": 1, "images": None, "baseline": "eager attention",
    "metric": "latency per image", "value": 1.0, "unit": "s", "notes": "", "seen": "primary",
}  # fmt: skip


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    """A step of one picture with guidance: 3.12 · 10¹² products, of which an A100 does 312 · 10¹² a second.

    A step that reuses does a tenth; eager attention moves 20.39 · 10⁹ bytes more, 10 ms of an A100's memory.
    """

    def profile(model, variant, width, height):
        step = [
            Work("step", "convolution", 2.25e11, 0, 0, 1),
            Work("step", "linear", 2.895e12, 0, 0, 1),
            Work("vae", "convolution", 3.12e12, 0, 0, 1),
        ]
        if variant == "baseline":
            step.append(Work("step", "other", 0.0, round(20.39e9), 0, 1))
        if variant == "deepcache:2":
            step.append(Work("cached step", "linear", 3.12e11, 0, 0, 1))
        return Profile({"unet": 1_720_000_000, "vae": 10}, tuple(step))

    monkeypatch.setattr(published, "profile", profile)


def bound(**changes):
    claim = replace(rows.from_row({**ROW, **changes}), label="x 1")
    (found,) = published.attainable([claim])
    return found


def test_a_time_below_the_multiplications_is_unattainable():
    # 50 steps of 2.25e11 / 2.25 + 2.895e12 products, and the decoder's 3.12e12 / 2.25, at 312e12 a second
    least = (50 * (1e11 + 2.895e12) + 3.12e12 / 2.25) / 312e12
    found = bound(value=0.47)
    assert found.limit == pytest.approx(least)
    assert found.status == "unattainable"
    assert "all multiplications at A100 80 GB SXM's peak rate" in found.arithmetic
    assert bound(value=0.49).status == "possible"
    assert bound(value=0.47, unit="s (about)").status == "possible"


def test_what_is_unstated_is_read_kindly_and_the_stock_bound_stands_beside():
    found = bound(value=0.4, guidance=None)
    assert found.status == "possible"
    assert found.limit < 0.25
    assert found.strict == pytest.approx((50 * 3.12e12 + 3.12e12) / 312e12)
    assert "no guidance" in found.assumption
    assert bound(value=1.0, guidance=None).strict is None


def test_a_geforce_card_may_add_up_in_float16():
    stated, other = bound(device="RTX 3090", value=2.0), bound(device="RTX A6000", value=2.0)
    assert "sums in float16" in stated.assumption
    assert "sums in float16" not in other.assumption
    assert stated.limit * 142 == pytest.approx(other.limit * 154.8)


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"metric": "latency per call (batch)", "batch": 4}, 1),  # the decoder and the steps of four pictures
        ({"metric": "throughput", "unit": "images/s"}, 1),
        ({"metric": "latency per image", "unit": "ms", "value": 1000}, 1),
    ],
)
def test_every_unit_of_time_has_the_same_bound_a_picture(changes, times):
    assert bound(**changes).limit == pytest.approx(bound().limit * times)


def test_iterations_are_of_the_denoiser_alone():
    found = bound(metric="iterations per second", unit="it/s", value=200, steps=None)
    assert found.limit == pytest.approx((1e11 + 2.895e12) / 312e12)
    assert found.status == "unattainable"


def test_a_speedup_beside_both_runs_at_their_roofline():
    found = bound(technique="DeepCache", parameters={"N": 5}, metric="speedup", unit="x", value=2.3)
    # 10 whole steps of 10 ms and 40 of 1 ms, against 50 of 20 ms; and the decoder's 10 ms in both
    assert found.at_roofline == pytest.approx((50 * 20 + 10) / (10 * 10 + 40 * 1 + 10), rel=0.01)
    assert found.status == "possible"
    assert bound(metric="speedup", unit="x", value=40, technique="SDPA").status == "unattainable"
    assert bound(metric="saved", unit="% of time saved", value=97.6, technique="SDPA").status == "unattainable"


def test_operations_say_how_they_were_counted():
    found = bound(metric="MACs per step", unit="GMAC", value=780, technique="none")
    assert found.status == "possible"
    assert "without guidance" in found.arithmetic
    assert bound(metric="MACs per step", unit="GMAC", value=500, technique="none").status == "not bounded"


def test_memory_below_the_weights():
    memory = {"metric": "peak memory", "unit": "GB", "technique": "none"}
    assert bound(**memory, value=1.5).status == "unattainable"
    assert bound(**memory, value=1.65).status == "possible"  # of 2³⁰ bytes it would be 1.77 · 10⁹
    assert bound(**{**memory, "technique": "int8 weights"}, value=0.9).status == "possible"


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        ("none", 16), ("bf16 + compile", 16), ("FP8 weights", 8), ("GGUF Q8_0", 8), ("GGUF Q4_1", 4), ("GGUF Q2_K", 2),
        ("BnB 4-bit (NF4)", 4), ("BnB 8-bit", 8), ("quanto float8", 8), ("torchao int4_weight_only", 4), ("W4A16", 4),
        ("8 bits, then int4", 4), ("torch 2.4, fp16", 16),
    ],
)  # fmt: skip
def test_weights_of_fewer_bits_take_less(words, bits):
    memory = {"metric": "peak memory", "unit": "GB", "technique": words}
    assert bound(**memory, value=0.01).limit == pytest.approx(1.72e9 * bits / 16)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"model": None}, "the model is unstated"),
        ({"model": "stabilityai/stable-diffusion-3-medium"}, "does not know the architecture"),
        ({"device": None}, "the GPU is unstated"),
        ({"device": "M2 Ultra"}, "no data sheet of M2 Ultra"),
        ({"device": "T4", "dtype": "bfloat16"}, "no rate for bfloat16"),
        ({"steps": None}, "the number of steps is unstated"),
        ({"metric": "latency"}, "whether the seconds are of a call or a picture"),
        ({"metric": "latency per call", "batch": None}, "or the batch, is unstated"),
        ({"technique": "T-GATE"}, "how much work t-gate leaves out is not known"),
        ({"technique": "DeepCache", "parameters": {"N": "not said"}}, "DeepCache's interval is unstated"),
        ({"metric": "speedup", "unit": "x", "baseline": "TensorRT FP16"}, "the baseline is another program"),
        ({"metric": "peak memory", "unit": "GB", "technique": "CPU offload"}, "with offloading"),
        ({"metric": "FID change", "unit": "x"}, ""),
    ],
)
def test_what_cannot_be_bounded_says_what_is_missing(changes, missing):
    claim = replace(rows.from_row({**ROW, **changes}), label="x 1")
    found = published.attainable([claim])
    assert [row.status for row in found] == (["not bounded"] if missing else [])
    assert all(missing in row.arithmetic for row in found)


def test_kept_and_read_again(tmp_path):
    found = [bound(value=0.47), bound(model=None)]
    published.write(found, tmp_path / "bounds.json")
    back = published.read(tmp_path / "bounds.json")
    assert back["x 1"].status == "not bounded"  # the later row of a label
    assert published.read(tmp_path / "none.json") == {}


def test_guidance_that_is_a_number_to_the_network_doubles_nothing():
    flux = {"model": "black-forest-labs/FLUX.1-dev", "size": None}
    said, unsaid = bound(value=0.4, guidance=3.5, **flux), bound(value=0.4, guidance=None, **flux)
    assert said.limit == unsaid.limit == bound(value=0.4, guidance=7.5).limit
    assert "guidance" not in unsaid.assumption
    assert "1024×1024 pixels" in unsaid.assumption


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("FLUX.1 [dev]", "flux"),
        ("Flux.1 Dev", "flux"),
        ("flux1-schnell", "flux"),
        ("FLUX.1-Kontext-dev", ""),
        ("FLUX.2-dev", ""),
    ],
)
def test_the_ways_to_write_flux(said, known):
    assert names.architecture(said) == known


def test_a_profile_scales_with_steps_batch_and_guidance():
    works = (Work("step", "linear", 8.0, 100, 40, 2), Work("vae", "convolution", 5.0, 10, 0, 1))
    made = Profile({}, works)
    assert made.flops(Run(3, 1, True, "float16")) == 2 * 8 * 3 + 5
    assert made.flops(Run(3, 4, False, "float16")) == 2 * 8 * 3 * 2 + 5 * 4
    assert made.flops(Run(3, 1, True, "float16"), "denoiser") == 48
    device = replace(find("a100"), operations_s={"float16": 1.0, "float32": 1.0}, bytes_s=1.0)
    # Weights are read once whatever the batch; in float32 everything is twice as large.
    assert made.roofline_s(Run(1, 2, True, "float16"), device, "denoiser") == 2 * (40 + 60 * 2)
    assert made.roofline_s(Run(1, 2, True, "float32"), device, "denoiser") == 4 * (40 + 60 * 2)

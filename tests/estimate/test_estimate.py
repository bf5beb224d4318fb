import json
import logging
import multiprocessing
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import small_pipelines
import torch

from optsd.errors import BadInput, NotFound, Unsupported
from optsd.estimate import architectures, bounds, estimate, measurements, roofline
from optsd.estimate import run as traced
from optsd.estimate.run import run, trace_real
from optsd.measure import memory
from optsd.models.shapes import networks
from optsd.optimizations import attention
from optsd.records import Workload
from optsd.variants import GUIDE_VARIANTS, against_eager

GIB = 2**30
ON_CPU = Workload("shapes", "cpu", "float32", 2, 5.0, 64, 64, 2)


ONE_OF_EACH_KIND = ("baseline", "flash-enhanced", "int8", "deepcache:3", "tome:0.5")


@pytest.mark.parametrize(
    "technique",
    [
        *ONE_OF_EACH_KIND,
        *(pytest.param(name, marks=pytest.mark.whole) for name in GUIDE_VARIANTS if name not in ONE_OF_EACH_KIND),
    ],
)
def test_estimated_peaks_are_those_of_the_tensors_that_a_real_run_has(technique, untrained):
    pipe = untrained()
    against_eager(technique).apply(pipe)
    real = trace_real(pipe, ON_CPU, ON_CPU.steps).peaks
    found = estimate("shapes", technique, ON_CPU, "cpu").peaks
    assert real.keys() == found.keys()
    for stage, peak in real.items():
        assert found[stage].total == pytest.approx(peak.total, rel=0.1), stage
        # Without the weights, which are most of it and easy, too.
        active = peak.total - sum(peak.weights.values())
        assert found[stage].total - sum(found[stage].weights.values()) == pytest.approx(active, rel=0.1), stage


def added_by_a_call(sender):
    torch.set_num_threads(1)  # a fork has none of its parent's threads, and would wait for them for ever
    unet = networks.unet().eval()
    attention.Eager().apply(SimpleNamespace(unet=unet, components={"unet": unet}))
    sample, text = torch.zeros(2, 4, 128, 128), torch.zeros(2, 32, unet.config.cross_attention_dim)
    with torch.no_grad():
        unet(torch.zeros(2, 4, 8, 8), 1, text)  # libraries allocate for themselves at their first call
        memory.reset_peak()
        before = memory.resident_bytes("VmRSS")
        unet(sample, 1, text)
    sender.send(memory.resident_bytes("VmHWM") - before)


def test_estimated_peaks_are_those_of_a_real_process():
    """With eager attention, whose scores are large beside what libraries take for themselves."""
    large = replace(ON_CPU, steps=1, height=512, width=512, batch_size=1)
    peak = estimate("shapes", "baseline", large, "cpu").peaks["unet"]
    forks = multiprocessing.get_context("fork")
    receiver, sender = forks.Pipe(duplex=False)
    forks.Process(target=added_by_a_call, args=(sender,)).start()
    sender.close()
    measured = receiver.recv()
    assert measured > GIB
    assert peak.total - sum(peak.weights.values()) == pytest.approx(measured, rel=0.1)


def test_the_guides_workload(eager, fused):
    assert eager.peak_alone("unet") == pytest.approx(5.82 * GIB, rel=0.03)
    assert fused.peak_alone("unet") == pytest.approx(2.11 * GIB, rel=0.03)
    assert eager.weight_bytes["unet"] == pytest.approx(1.60 * GIB, rel=0.01)
    assert eager.parameters["unet"] == 859_520_964
    assert eager.calls == 51  # PNDM takes one step more
    flops = dict.fromkeys(("convolution", "linear", "attention"), 0.0)
    for operation in eager.operations:
        if (operation.stage, operation.step) == ("unet", 1):
            flops[operation.kind] = flops.get(operation.kind, 0.0) + operation.flops / 8e9
    assert flops["convolution"] == pytest.approx(444, abs=1)
    assert flops["linear"] == pytest.approx(233, abs=1)
    assert flops["attention"] == pytest.approx(126, abs=1)
    decode = sum(operation.flops for operation in eager.operations if operation.stage == "vae") / 4e9
    assert decode == pytest.approx(2515, abs=2)


def test_the_peak_is_named(eager, fused):
    assert "attn1" in eager.peak.cause.module
    assert eager.peak.cause.shape == (64, 4096, 4096)  # 8 latents × 8 heads
    assert eager.peak.by_kind()["scores"] == 2 * 64 * 4096 * 4096 * 2
    assert fused.peak.by_kind()["scores"] == 0
    assert fused.peak.cause.module.startswith("vae.decoder")


@pytest.mark.parametrize(
    ("model", "size", "component", "parameters"),
    [
        pytest.param("sd21", 768, "unet", 865_910_724, marks=pytest.mark.whole),
        pytest.param("sdxl", 1024, "unet", 2_567_463_684, marks=pytest.mark.whole),
        # DiT-XL/2's own code has 675,129,632 with the 256 positions, which are no parameters in diffusers; there each
        # of the 28 blocks embeds the timestep and the class anew.
        ("dit", 512, "transformer", 675_129_632 - 256 * 1152 + 27 * (257 * 1152 + 1153 * 1152 + 1001 * 1152)),
    ],
)
def test_other_architectures(model, size, component, parameters):
    work = Workload(model, "cuda", "float16", 1, 5.0, size, size, 1)
    found = estimate(model, "baseline", work, "h100")
    assert found.denoiser == component
    assert found.parameters[component] == parameters
    assert found.peaks[component].by_kind()["scores"] > 0
    assert roofline.seconds(found) > roofline.arithmetic_seconds(found) > 0


@pytest.mark.parametrize("family", ["SD3", "FLUX.1"])
@pytest.mark.parametrize("technique", ["flash", "int8+sdpa"])
def test_transformers_with_flow_matching(family, technique, monkeypatch):
    """Their schedulers scale no input, shift by the picture's size, and give timesteps that the network multiplies."""
    monkeypatch.setitem(architectures.NAMED, "flux", small_pipelines.CLASSES[family])
    work = Workload("flux", "cuda", "bfloat16", 6, 3.0, 16, 16, 2)
    found = estimate("flux", technique, work, "h100")
    assert (found.denoiser, found.calls) == ("transformer", 6)
    assert all(name.startswith("transformer.") for name in found.touched)
    kinds = {one.kind for one in found.operations if one.stage == "transformer"}
    assert {"attention", "linear"} <= kinds
    assert roofline.seconds(found) > 0


def test_steps_count_as_the_whole_workload_has_them():
    found = estimate("shapes", "deepcache:3", Workload("shapes", "cuda", "float16", 20, 5.0, 64, 64, 2))
    assert found.calls == 20
    assert found.step_counts == {1: 1, 2: 7, 3: 6, 4: 6}  # whole in steps 1, 4, 7, …, 19
    flops = dict.fromkeys(found.step_counts, 0.0)
    for operation in found.operations:
        if operation.stage == "unet":
            flops[operation.step] += operation.flops
    assert flops[2] == flops[3] < flops[1] / 2
    assert flops[4] == flops[1]


def test_a_cache_spares_work_after_the_first_step(small):
    found = estimate("small", "kvcache", small)
    text = [one for one in found.operations if one.module.endswith(("attn2.to_k", "attn2.to_v")) and one.flops]
    assert {one.step for one in text} == {1}
    assert {found.times(one) for one in text} == {1}


def test_quantized_weights_are_smaller_and_multiply_integers(small):
    plain, mixed, whole, int4 = (
        estimate("small", name, replace(small, steps=1))
        for name in ("baseline", "int8:up_blocks.*=int4", "int8:all", "int4")
    )
    sizes = [found.weight_bytes["unet"] for found in (int4, mixed, whole, plain)]
    assert sizes == sorted(set(sizes))
    assert all(whole.weight_bytes[name] < mixed.weight_bytes[name] for name in ("text_encoder", "vae"))
    for found in (whole, mixed, int4):
        kinds = {one.kind for one in found.operations if one.precision == "int8" and one.flops}
        assert kinds == {"linear", "convolution"}
        assert found.touched


def test_a_folder_of_configurations_is_enough(tmp_path, untrained, small):
    pipe = untrained()
    pipe.save_config(tmp_path)
    for name, part in pipe.components.items():
        if name == "text_encoder":
            part.config.save_pretrained(tmp_path / name)
        elif part is not None:
            getattr(part, "save_config", part.save_pretrained)(tmp_path / name)
    assert not list(tmp_path.rglob("*.safetensors"))
    work = replace(ON_CPU, device="cuda", steps=1, batch_size=1)
    assert estimate(str(tmp_path), "sdpa", work).peak_bytes == estimate("shapes", "sdpa", work).peak_bytes


def test_measurements_are_honest_about_what_they_are(eager, fused):
    rows = {row.metric: row for row in measurements(fused, eager, fused)}
    assert rows["peak_memory_bytes"].value == fused.peak_bytes
    assert rows["memory_reduction"].value == pytest.approx(1 - fused.peak_bytes / eager.peak_bytes)
    assert rows["latency_s"].value == pytest.approx(1 / rows["throughput_images_s"].value)
    assert rows["unet_step_s"].value * 51 + rows["text_encoder_s"].value + rows["vae_decode_s"].value > 0
    assert rows["latency_s"].value <= rows["latency_unfused_s"].value
    assert rows["speedup"].value >= rows["speedup_unfused"].value > 1
    assert all(row.note.startswith(("estimate", "counted in the trace")) for row in rows.values())
    assert not {"speedup", "latency_s"} & {row.metric for row in measurements(fused, eager)}


def test_without_a_data_sheet_there_is_no_time(untrained):
    found = estimate("shapes", "baseline", ON_CPU, "cpu")
    rows = {row.metric: row for row in measurements(found)}
    assert rows["peak_memory_bytes"].value > 0
    assert rows["latency_s"].value is None
    assert "no data sheet" in rows["latency_s"].note
    with pytest.raises(Unsupported, match="CPU has no data sheet, so times cannot be estimated"):
        roofline.seconds(found)


def test_a_measured_time_as_a_share(fused):
    latency = roofline.seconds(fused) / 4
    assert roofline.of_roofline(2 * latency, fused) == pytest.approx(0.5)
    assert 0 < roofline.flops_utilization(latency, fused) < 1
    shares = roofline.shares(fused)
    assert sum(share.seconds for share in shares) == pytest.approx(4 * latency)
    assert all(0 <= share.memory_bound_seconds <= share.seconds for share in shares)


def test_unknown_models(tmp_path, small):
    with pytest.raises(NotFound, match="no model 'nosuch'; use shapes, shapes-dit, sd15"):
        estimate("nosuch", "baseline", small)
    with pytest.raises(NotFound, match="model_index.json is missing; give a whole diffusers folder"):
        estimate(str(tmp_path), "baseline", small)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Mine"}))
    with pytest.raises(BadInput, match="pipeline class 'Mine', which diffusers lacks"):
        estimate(str(tmp_path), "baseline", small)
    for component in ("unet", "vae"):
        (tmp_path / component).mkdir()
        (tmp_path / component / "config.json").write_text("{}")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["my_code", "Net"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="takes 'unet' from 'my_code', code that would have to be trusted"):
        estimate(str(tmp_path), "baseline", small)
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"down_block_types": ["NoSuchBlock"]}))
    with pytest.raises(BadInput, match="unet cannot be built"):
        estimate(str(tmp_path), "baseline", small)
    tiny = {"block_out_channels": [32], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(tiny))
    with pytest.raises(
        BadInput, match=r"is no whole StableDiffusionPipeline \(.*missing.*; check its model_index.json"
    ):
        estimate(str(tmp_path), "baseline", small)


def test_what_cannot_be_estimated_is_refused(small):
    with pytest.raises(Unsupported, match="compile cannot be estimated"):
        estimate("small", "compile", small)
    with pytest.raises(Unsupported, match="T4 has no arithmetic rate for bfloat16"):
        estimate("small", "baseline", replace(small, dtype="bfloat16"), "t4")
    with pytest.raises(BadInput, match="without steps or pictures"):
        estimate("small", "baseline", replace(small, steps=0))
    with pytest.raises(BadInput, match="DiTPipeline draws 512×512 pixels only"):
        estimate("dit", "baseline", replace(small, model="dit"))
    with pytest.raises(Unsupported, match="older than compute capability 8.0"):
        estimate("small", "flash", small, "t4")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("unknown", "the operation .*optsd_test.no_shape.* has no shape rule"),
        ("decides", "a decision depends on the values"),
        ("unrated", "the operation optsd_test::no_rate has no rule for its arithmetic"),
    ],
)
def test_nothing_is_estimated_as_zero(body, message, small, monkeypatch):
    """A technique that does what an estimate cannot follow gives an error that names the operation."""
    from diffusers import UNet2DConditionModel

    library = torch.library.Library("optsd_test", "FRAGMENT")
    for name in ("no_shape", "no_rate"):
        if not hasattr(torch.ops.optsd_test, name):
            library.define(f"{name}(Tensor x) -> Tensor")
            library.impl(name, lambda x: x.clone(), "CPU")
    torch.library.register_fake("optsd_test::no_rate", lambda x: torch.empty_like(x), lib=library, allow_override=True)
    forward = UNet2DConditionModel.forward

    def changed(self, sample, *args, **kwargs):
        if body == "unknown":
            torch.ops.optsd_test.no_shape(sample)
        elif body == "unrated":
            torch.ops.optsd_test.no_rate(sample)
        elif sample.sum() > 0:
            sample = sample * 2
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", changed)
    with pytest.raises(Unsupported, match=message):
        estimate("small", "baseline", small)


def test_an_estimate_leaves_the_process_as_it_was(small, untrained):
    state, dtype = torch.random.get_rng_state(), torch.get_default_dtype()
    estimate("small", "int8", small)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_default_dtype() is dtype
    with torch.no_grad():
        run(untrained(), replace(ON_CPU, steps=1, batch_size=1), 1)


@pytest.mark.slow
@pytest.mark.whole
def test_sd15_itself_on_a_cpu():
    from optsd.models import published

    work = Workload("sd15-random", "cpu", "float32", 1, 7.5, 128, 128, 1)
    found = estimate("sd15-random", "flash-enhanced", work, "cpu").peaks
    pipe = published.random("sd15", torch.float32)
    pipe.set_progress_bar_config(disable=True)
    against_eager("flash-enhanced").apply(pipe)
    for stage, peak in trace_real(pipe, work, 1).peaks.items():
        assert found[stage].total == pytest.approx(peak.total, rel=0.1), stage


def test_what_is_traced_says_nothing(small, monkeypatch, capsys, recwarn):
    """SDXL's pipeline warns of a method that it calls itself: nothing was run, and nobody can mend it."""
    whole = traced.run

    def talking(pipe, *more):
        logging.getLogger("diffusers.models").warning("TALK of the log")
        warnings.warn_explicit("TALK", FutureWarning, "x.py", 1, module="diffusers.pipelines.x", registry={})
        whole(pipe, *more)

    monkeypatch.setattr(traced, "run", talking)
    estimate("small", "baseline", replace(small, steps=1))
    assert "TALK" not in "".join(capsys.readouterr())
    assert not [each for each in recwarn if "TALK" in str(each.message)]


@pytest.mark.parametrize(
    ("device", "products"),
    [("a100", {"optsd::int8_conv2d": 3, "optsd::int8_linear": 3}), ("t4", {"aten::_int_mm": 40})],
)
def test_what_a_quantized_layer_launches_on_a_gpu(device, products, small):
    """Range, integers and product: three at most, where torch took twenty. A T4 has `torch._int_mm`."""
    found = estimate("small", "int8", replace(small, steps=2), device)
    by_layer: dict[str, list[str]] = {}
    for operation in found.operations:
        if operation.step == 2:
            by_layer.setdefault(operation.module, []).append(operation.name)
    for product, most in products.items():
        layers = [names for names in by_layer.values() if product in names]
        assert len(layers) > 8
        assert max(map(len, layers)) <= most


def test_at_best_is_no_less_than_today_s_kernels_give(small):
    """Which add sums in the products, as the technique need not."""
    work = replace(small, steps=2)
    eager, fused, found = (estimate("small", name, work, "a100") for name in ("baseline", "sdpa", "int8+flash"))
    alone = bounds.speed(("flash", "int8"), eager, fused).at_roofline
    rows = {row.metric: row for row in measurements(found, eager, fused)}
    assert rows["speedup"].value == rows["speedup_unfused"].value > alone
    assert "what today's kernels do" in rows["speedup"].note

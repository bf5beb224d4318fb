"""When a step is recorded, replayed and recorded anew, with a recorder that does again what torch's operators did."""

import contextlib
import copy
import gc
from types import SimpleNamespace

import pytest
import torch
from replays import Replays
from small_pipelines import draw, make

import optsd
from optsd import native
from optsd.calls import interpose
from optsd.errors import Unsupported
from optsd.optimizations.graph import MOST_RECORDINGS, CudaGraphs, Graph, check_replayable, state_of
from optsd.variants import Variant, against_eager

STAND_IN = Graph(Replays)


def with_graph(pipe, name=""):
    """The variant, its steps replayed by the stand-in."""
    steps = [*against_eager(name).steps, STAND_IN]
    return Variant(f"{name}+graph", tuple(sorted(steps, key=lambda step: (step.stage, step.name)))).apply(pipe)


def counts(patch):
    return tuple(patch.proof[name] for name in ("steps_eager", "graphs_recorded", "steps_replayed"))


@pytest.fixture
def unet(small_unet):
    return small_unet(layers_per_block=1)


@pytest.fixture
def inputs(unet):
    text = torch.randn(2, 7, unet.config.cross_attention_dim)
    return {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor(900), "encoder_hidden_states": text}


def call(unet, inputs, **more):
    with torch.no_grad():
        return unet(**(inputs | more), return_dict=False)[0]


def test_first_eager_then_recorded_then_replayed_to_the_bit(unet, bare, inputs):
    steps = [{"timestep": torch.tensor(900 - 100 * step), "sample": torch.randn(2, 4, 8, 8)} for step in range(4)]
    expected = [call(unet, inputs, **step) for step in steps]
    patch = STAND_IN.apply(bare(unet))
    found = [call(unet, inputs, **step) for step in steps]
    assert all(map(torch.equal, found, expected))  # the earlier ones too: none lies in the recording's memory
    assert counts(patch) == (1, 1, 3)
    again = torch.randn_like(inputs["encoder_hidden_states"])  # another prompt of the same length
    found = call(unet, inputs, encoder_hidden_states=again)
    assert counts(patch) == (1, 1, 4)
    patch.undo()
    assert torch.equal(found, call(unet, inputs, encoder_hidden_states=again))


@pytest.mark.parametrize(
    "change",
    [
        {"sample": torch.randn(4, 4, 8, 8), "encoder_hidden_states": torch.randn(4, 7, 24)},
        {"sample": torch.randn(2, 4, 8, 16)},
        {"sample": torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)},
        {"encoder_hidden_states": torch.randn(2, 9, 24)},
        {"timestep": torch.tensor([900, 800])},
        {"encoder_attention_mask": torch.ones(2, 7)},
        {"cross_attention_kwargs": {"scale": 0.5}},
    ],
    ids=lambda change: ", ".join(change),
)
def test_another_step_has_a_recording_of_its_own(unet, bare, inputs, change):
    patch = STAND_IN.apply(bare(unet))
    for _ in range(3):
        call(unet, inputs)
    found = [call(unet, inputs, **change) for _ in range(3)]
    assert counts(patch) == (2, 2, 4)
    call(unet, inputs)
    assert counts(patch) == (2, 2, 5)  # both are kept
    patch.undo()
    assert all(torch.equal(each, call(unet, inputs, **change)) for each in found)


def test_a_timestep_may_be_a_number(unet, bare, inputs):
    patch = STAND_IN.apply(bare(unet))
    for kind in (int, float):
        found = [call(unet, inputs, timestep=kind(step)) for step in (900, 800, 700, 600)]
        patch_free = copy.deepcopy(unet)
        patch_free.__class__ = type(unet).__mro__[2]
        vars(patch_free).pop("_optsd_parts")
        expected = [call(patch_free, inputs, timestep=kind(step)) for step in (900, 800, 700, 600)]
        assert all(map(torch.equal, found, expected))
    assert counts(patch) == (2, 2, 6)


def test_weights_in_place_are_read_and_weights_elsewhere_recorded_anew(unet, bare, inputs):
    patch = STAND_IN.apply(bare(unet))
    for _ in range(3):
        before = call(unet, inputs)
    with torch.no_grad():
        unet.conv_out.weight.mul_(2)
    doubled = call(unet, inputs)
    assert counts(patch) == (1, 1, 3)
    assert not torch.equal(doubled, before)
    unet.conv_out.weight.data = unet.conv_out.weight.data / 2
    for _ in range(3):
        found = call(unet, inputs)
    assert counts(patch) == (2, 2, 5)
    torch.testing.assert_close(found, before)


def test_adapters_are_recorded_anew_and_so_are_their_scales(unet, bare, inputs):
    from peft import LoraConfig

    patch = STAND_IN.apply(bare(unet))
    seen = {state_of(unet)}
    outputs = [[call(unet, inputs) for _ in range(3)][-1]]
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    for change in (lambda: None, lambda: unet.set_adapters(["default"], [0.5]), unet.disable_adapters):
        change()
        seen.add(state_of(unet))
        outputs.append([call(unet, inputs) for _ in range(3)][-1])
    assert len(seen) == 4
    assert counts(patch) == (4, 4, 8)
    patch.undo()
    assert torch.equal(call(unet, inputs), outputs[-1])
    torch.testing.assert_close(outputs[-1], outputs[0])
    unet.enable_adapters()
    assert torch.equal(call(unet, inputs), outputs[2])


@pytest.mark.parametrize("name", ["deepcache:2", "kvcache", "tome:0.5", "flash-enhanced", "kvcache+deepcache:3"])
def test_beside_other_techniques(small_unet, bare, denoise, name):
    """What others decide in Python from step to step is decided still."""
    unet, other = small_unet(), small_unet()
    against_eager(name).apply(bare(other))
    patch = with_graph(bare(unet), name)
    for seed in (0, 1):  # another prompt, of the same length
        assert torch.equal(denoise(unet, steps=7, seed=seed), denoise(other, steps=7, seed=seed))
    eager, recorded, replayed = counts(patch)
    assert eager + replayed == 14
    assert replayed >= (10 if "cache" not in name else 6)
    if name == "deepcache:2":
        assert recorded == 2  # a whole step and a shallow one


def test_a_pipeline_draws_the_same_picture(untrained, paint):
    pipe, other = untrained(), untrained()
    against_eager("flash").apply(other)
    patch = with_graph(pipe, "flash")
    for options in ({}, {"guidance_scale": 1.0}, {"prompt": ["a red square"]}):
        assert torch.equal(paint(pipe, steps=5, **options), paint(other, steps=5, **options))
    assert counts(patch) == (2, 2, 13)
    twin = copy.deepcopy(pipe)
    assert torch.equal(paint(twin, steps=3), paint(other, steps=3))
    assert optsd.patches(twin)[0].proof["graphs_recorded"] == 1  # of memory of its own


def test_a_step_cache_is_refused():
    pipe = make("FLUX.1")
    with_graph(pipe, "taylorseer:2")
    with pytest.raises(
        Unsupported, match="graph cannot replay transformer_blocks.*: a hook decides there in every step"
    ):
        draw("FLUX.1", pipe)


def test_recordings_are_few(unet, bare, inputs):
    patch = STAND_IN.apply(bare(unet))
    for width in range(8, 8 + 2 * (MOST_RECORDINGS + 2), 2):
        call(unet, inputs, sample=torch.randn(2, 4, 2, width))
    recorded = patch.changes[0].part
    assert len(recorded.recordings) == MOST_RECORDINGS


def test_training_is_left_alone(unet, bare, inputs):
    patch = STAND_IN.apply(bare(unet))
    unet(**inputs).sample.sum().backward()
    assert unet.conv_in.weight.grad is not None
    assert counts(patch) == (0, 0, 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda unet: unet.mid_block.register_forward_hook(lambda *_: None), "cannot replay mid_block: a hook decides"),
        (lambda unet: setattr(unet.conv_in, "forward", unet.conv_in.forward), "cannot replay conv_in: a hook decides"),
        (lambda unet: interpose(unet.conv_in, lambda call, x: call(x)), "cannot replay conv_in: a technique decides"),
    ],
)
def test_where_it_cannot_hold_one_line_says_so(unet, bare, inputs, spoil, message):
    STAND_IN.apply(bare(unet))
    spoil(unet)
    call(unet, inputs)
    with pytest.raises(Unsupported, match=message):
        call(unet, inputs)


def test_weights_that_come_and_go_are_refused(unet):
    unet.conv_out.to("meta")
    with pytest.raises(Unsupported, match="needs all weights on cpu, and some are on meta"):
        check_replayable(unet, torch.device("cpu"))


@pytest.mark.skipif(bool(native.refusal()), reason=f"numbers are read by Python without: {native.refusal()}")
def test_quantized_layers_are_replayed(unet, bare, inputs):
    with_graph(bare(unet), "int8")
    eager, recorded, replayed = (call(unet, inputs) for _ in range(3))
    assert torch.equal(eager, recorded)
    assert torch.equal(eager, replayed)


def test_what_is_no_tensor_and_autocast_are_refused(unet, bare, inputs):
    STAND_IN.apply(bare(unet))
    with pytest.raises(Unsupported, match="given a SimpleNamespace; leave graph out"):
        call(unet, inputs, cross_attention_kwargs={"x": SimpleNamespace()})
    with pytest.raises(Unsupported, match="under autocast; load the model"), torch.autocast("cpu", torch.bfloat16):
        call(unet, inputs)


def test_a_failure_while_recording_is_one_line(unet, bare, inputs):
    class Broken:
        def record(self, run, device):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    Graph(Broken).apply(bare(unet))
    call(unet, inputs)
    with pytest.raises(Unsupported, match=r"record this denoiser's step \(operation not .* capturing\); leave"):
        call(unet, inputs)


def test_without_a_gpu_it_is_refused(unet, bare):
    with pytest.raises(Unsupported, match="graph records what a GPU does, and this denoiser is on the cpu; move the"):
        Graph().check(bare(unet))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sdpa", "flash", "int8+flash", "deepcache:2", "kvcache"])
def test_on_a_gpu_the_pictures_are_the_same_to_the_byte(gpu, name):
    from optsd.measure.seeds import fix_seeds

    fix_seeds()
    drawn = []
    for variant in (name, f"{name}+graph"):
        pipe = optsd.load("shapes", gpu)
        patch = optsd.apply(pipe, variant)
        generator = torch.Generator().manual_seed(1)
        drawn.append(pipe("a small red circle", num_inference_steps=8, generator=generator, output_type="np").images)
    assert (drawn[0] == drawn[1]).all()
    assert patch.proof["steps_replayed"] >= 3


def test_graphs_share_the_pool_of_one_that_lives(monkeypatch):
    """torch fails at a pool that has ended, as it does when what is recorded is forgotten all at once."""

    class Stand:
        made = 0

        def __init__(self):
            Stand.made += 1
            self.own, self.given = (0, Stand.made), None

        def pool(self):
            return self.given or self.own

        def replay(self):
            pass

    @contextlib.contextmanager
    def capture(graph, pool, **_):
        graph.given = pool
        yield

    for name, value in {"CUDAGraph": Stand, "graph": capture, "device": contextlib.nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    graphs, device = CudaGraphs(), torch.device("cuda", 0)
    (first, _), (second, _) = (graphs.record(lambda: None, device) for _ in range(2))
    assert second.__self__.pool() == first.__self__.pool() == (0, 1)
    del first
    assert graphs.record(lambda: None, device)[0].__self__.pool() == (0, 1)
    del second
    gc.collect()
    assert graphs.record(lambda: None, device)[0].__self__.pool() == (0, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["flash", "int8+flash"])
def test_on_a_gpu_it_goes_on_when_all_that_was_recorded_is_forgotten(gpu, name):
    """As when a bench times the stages, or an adapter comes."""
    from optsd.measure.seeds import fix_seeds

    fix_seeds()
    pipe = optsd.load("shapes", gpu)
    patch = optsd.apply(pipe, f"{name}+graph")
    drawn = []
    for recorded in (1, 2, 3):
        generator = torch.Generator().manual_seed(1)
        drawn.append(pipe("a small red circle", num_inference_steps=5, generator=generator, output_type="np").images)
        assert patch.proof["graphs_recorded"] == recorded
        pipe.unet.conv_out.bias = torch.nn.Parameter(pipe.unet.conv_out.bias.clone(), requires_grad=False)
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] == drawn[2]).all()
    assert torch.randn(2, device=gpu).isfinite().all()

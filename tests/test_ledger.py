"""Figures without noise, and the defects that they are there to find: each planted as a commit would bring it."""

from dataclasses import replace

import pytest
import small_pipelines
from diffusers.models import attention_processor
from hypothesis import given
from hypothesis import strategies as st

from optsd import ledger
from optsd.errors import BadInput
from optsd.estimate import architectures, estimate, measurements
from optsd.estimate.counted import of_estimate
from optsd.judge.places import places
from optsd.ledger import Entry, Ledger
from optsd.optimizations import quantize
from optsd.optimizations.kvcache import CachedText
from optsd.patching import Watch
from optsd.quantization.convert import convert
from optsd.records import Workload

WORK = Workload("small", "cuda", "float16", 3, 5.0, 16, 16, 1)


@pytest.fixture
def count(monkeypatch):
    """The ledger of a variant of a small SD 1.5 on an A100, as the code is now."""
    monkeypatch.setitem(architectures.NAMED, "small", small_pipelines.CLASSES["SD 1.5"])
    return lambda variant: of_estimate(estimate("small", variant, WORK, "a100"))


@pytest.fixture
def recorded(count):
    """The same, before anything is planted: traced once for all tests."""
    return lambda variant: _RECORDED.get(variant) or _RECORDED.setdefault(variant, count(variant))


_RECORDED: dict[str, Ledger] = {}


def worse(before: Ledger, after: Ledger) -> set[str]:
    return {name for name, figure in after.figures().items() if figure > before.figures()[name]}


def test_the_same_code_gives_the_same_ledger_and_the_figures_of_the_estimate(recorded):
    found = recorded("int8")
    traced = estimate("small", "int8", WORK, "a100")
    assert of_estimate(traced) == found
    assert found.figures()["peak_memory_bytes"] == traced.peak_bytes
    assert found.figures()["kernel_launches"] == sum(map(traced.times, traced.operations))
    rows = {row.metric: row.value for row in measurements(traced)}
    assert {name: rows[name] for name in ledger.FIGURES} == found.figures()
    assert found.figures()["kept_bytes"] == 0


def test_a_cast_to_float32_in_one_attention(count, recorded, monkeypatch):
    before, plain = recorded("baseline"), attention_processor.Attention.get_attention_scores

    def in_float32(layer, query, key, mask=None):
        if not layer.is_cross_attention:
            query = query.float().to(query.dtype)
        return plain(layer, query, key, mask)

    monkeypatch.setattr(attention_processor.Attention, "get_attention_scores", in_float32)
    after = count("baseline")
    assert worse(before, after) >= {"moved_bytes", "kernel_launches"}
    found = places("kernel_launches", before, after)
    assert {place.operator for place in found} == {"aten::_to_copy"}
    assert {place.precision for place in found} == {"float16", "float32"}
    assert all(place.module.startswith("unet.") and place.module.endswith(".attn1") for place in found)
    assert {place.after - place.before for place in found} == {4}  # once a call: PNDM has one more than steps


def test_a_layer_that_is_multiplied_in_float32(count, recorded, monkeypatch):
    before, plain = recorded("baseline"), attention_processor.Attention.get_attention_scores
    monkeypatch.setattr(
        attention_processor.Attention,
        "get_attention_scores",
        lambda layer, query, key, mask=None: plain(layer, query.float(), key.float(), mask).to(query.dtype),
    )
    after = count("baseline")
    assert "flops_32bit" in worse(before, after)
    assert "flops" not in worse(before, after)
    assert places("flops_32bit", before, after)[0].module.endswith(("attn1", "attn2"))


def test_a_layer_that_is_no_longer_quantized(count, recorded, monkeypatch):
    before, left = recorded("int8"), "mid_block.resnets.0.conv1"

    def leaving_one(module, bits, group_size, keep, *names):
        return convert(module, bits, group_size, (*keep, left), *names)

    monkeypatch.setattr(quantize, "convert", leaving_one)
    after = count("int8")
    assert {"flops_16bit", "weight_bytes"} <= worse(before, after)
    (place,) = places("flops_16bit", before, after)
    assert (place.module, place.operator, place.precision, place.before) == (
        f"unet.{left}", "aten::convolution", "float16", 0,
    )  # fmt: skip


def test_one_more_clone_of_the_latents(count, recorded, monkeypatch):
    before, plain = recorded("flash"), Watch.__call__

    def cloning(watch, call, *args, **kwargs):
        return plain(watch, call, args[0].clone(), *args[1:], **kwargs)

    monkeypatch.setattr(Watch, "__call__", cloning)
    after = count("flash")
    assert worse(before, after) >= {"moved_bytes", "kernel_launches"}
    (place,) = places("kernel_launches", before, after)
    assert (place.module, place.operator, place.precision) == (ledger.BETWEEN, "aten::clone", "float16")


def test_a_cache_that_keeps_a_pictures_features(count, monkeypatch):
    before, plain, kept = count("kvcache"), CachedText.__call__, []

    def keeping(cache, call, text):
        kept.append(plain(cache, call, text))
        return kept[-1]

    monkeypatch.setattr(CachedText, "__call__", keeping)
    after = count("kvcache")
    assert worse(before, after) == {"kept_bytes"}
    assert {place.module.rpartition(".")[2] for place in places("kept_bytes", before, after)} == {"to_k", "to_v"}
    assert after.figures()["kept_bytes"] >= sum(each.nbytes for each in {id(one): one for one in kept}.values())


def test_the_peak_does_not_depend_on_when_python_collects(count, recorded, monkeypatch):
    """Features in a reference cycle live until Python's collector runs: in a ledger that is always after the run."""
    before, plain = recorded("kvcache"), CachedText.__call__

    class Cycle:
        def __init__(self, text):
            self.own, self.features = self, text.new_empty(2**20)

    def cyclic(cache, call, text):
        Cycle(text)
        return plain(cache, call, text)

    monkeypatch.setattr(CachedText, "__call__", cyclic)
    after = count("kvcache")
    assert worse(before, after) >= {"peak_memory_bytes"}
    assert "kept_bytes" not in worse(before, after)
    assert after.figures()["peak_memory_bytes"] - before.figures()["peak_memory_bytes"] > 8 * 2**20


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)
ENTRIES = st.builds(
    Entry,
    st.sampled_from(["weights", "runs", "peak", "kept"]),
    NAMES, NAMES, st.sampled_from(["", "float16", "int8", "float32"]),
    *[st.integers(0, 2**60)] * 3,
)  # fmt: skip


@given(st.lists(ENTRIES, max_size=5))
def test_a_ledger_is_read_as_it_was_written(entries):
    made = Ledger(tuple(sorted(entries)))
    assert Ledger.from_text(made.to_text(), "it") == made


@pytest.mark.parametrize(
    "text",
    ["", "what\tmodule\n", "{}", Ledger(()).to_text() + "runs\tunet\taten::mul\tfloat16\t1\t0\n",
     Ledger(()).to_text() + "runs\tunet\taten::mul\tfloat16\t1\t0\t-5\n",
     Ledger(()).to_text() + "sings\tunet\taten::mul\tfloat16\t1\t0\t5\n"],
)  # fmt: skip
def test_what_is_no_ledger_is_refused(text):
    with pytest.raises(BadInput, match="file.tsv.*record it again with --expected-update"):
        Ledger.from_text(text, "file.tsv")


def test_names_of_files_are_plain():
    assert ledger.file_name("deepcache:3+flash") == "deepcache-3+flash.tsv"
    name = ledger.folder_name(replace(WORK, model="owner/name"))
    assert name == "owner-name-float16-16x16-batch-1-steps-3-guidance-5"

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.errors import BadInput, NothingMatched, OptsdError, Unsupported
from optsd.variants import ALIASES, GUIDE_VARIANTS, PARAMETERS, TECHNIQUES, Variant, against_eager, canonical, parse


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("baseline", "baseline"),
        ("eager", "baseline"),
        ("combined", "int8+flash"),
        ("flash+int8", "int8+flash"),
        (" kvcache + flash+int8", "int8+flash+kvcache"),
        ("kvcache+int4", "kvcache+int4"),
        ("deepcache", "deepcache:3"),
        ("tome+deepcache:2", "deepcache:2+tome:0.5"),
    ],
)
def test_one_spelling_for_each_variant(given_name, expected):
    assert canonical(given_name) == expected


@given(st.lists(st.sampled_from(sorted(TECHNIQUES)), min_size=1, max_size=5, unique=True), st.randoms())
def test_the_order_of_names_means_nothing(names, random):
    spelled = canonical("+".join(names))
    assert canonical(spelled) == spelled
    random.shuffle(names)
    assert canonical("+".join(names)) == spelled


def test_the_order_of_names_means_nothing_to_what_is_applied():
    for names in itertools.permutations(("tome", "kvcache", "deepcache:2", "flash-enhanced")):
        variant = parse("+".join(names))
        assert variant == parse("flash-enhanced+kvcache+deepcache:2+tome")
        assert [step.stage for step in variant.steps] == sorted(step.stage for step in variant.steps)


def test_what_the_guide_names_is_what_is_measured():
    assert all(canonical(name) == name for name in GUIDE_VARIANTS)
    assert all(parse(name).steps for name in (*GUIDE_VARIANTS, *ALIASES))
    assert set(PARAMETERS) <= set(TECHNIQUES)


@pytest.mark.parametrize("name", sorted(TECHNIQUES))
def test_every_technique_is_what_its_name_says(name):
    variant = parse(name)
    assert name.partition(":")[0] in {step.name.partition(":")[0].partition(" ")[0] for step in variant.steps}
    for step in variant.steps:
        assert hash(step) == hash(type(step)())


def test_benches_compare_with_eager_attention():
    def attention(name: str) -> list[str]:
        return [step.name for step in against_eager(name).steps if step.slot == "attention"]

    assert attention("kvcache") == attention("baseline") == attention("int8") == ["eager"]
    assert attention("kvcache+flash") == ["flash"]
    assert attention("flash-enhanced") == ["flash-enhanced"]
    assert against_eager("kvcache").name == "kvcache"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("int9", BadInput, "unknown variant 'int9'; choose from combined, baseline, eager, .*flash"),
        ("", BadInput, "unknown variant ''"),
        ("flash+", BadInput, "unknown variant 'flash\\+'"),
        ("flash+flash", BadInput, "names a technique twice; name each technique once"),
        ("combined+int8", BadInput, "names a technique twice"),
        ("flash:2", BadInput, "flash takes no parameter, 'flash:2' gives one; write flash"),
        ("deepcache:", BadInput, "deepcache: is no interval"),
        ("deepcache:one", BadInput, "deepcache:one is no interval"),
        ("tome:2", BadInput, "tome:2 is no ratio"),
        ("flash+sdpa", Unsupported, "sdpa and flash cannot be combined: both decide the attention; choose one"),
        ("int8+int4", Unsupported, "int8 and int4 cannot be combined: both decide the weights; choose one"),
        ("deepcache:2+deepcache:4", Unsupported, "deepcache:2 and deepcache:4 cannot be combined"),
    ],
)
def test_names_that_are_refused(name, error, message):
    with pytest.raises(error, match=message):
        parse(name)


def test_names_are_read_without_torch():
    code = "import sys, optsd.variants as v; v.canonical('combined'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_slot_is_given_once_on_one_unet(untrained):
    pipe = untrained()
    flash = parse("flash").apply(pipe)
    caching = parse("kvcache").apply(pipe)
    with pytest.raises(Unsupported, match="sdpa cannot be added: flash decides the attention already; undo\\(\\) the"):
        parse("sdpa").apply(pipe)
    with pytest.raises(Unsupported, match="kvcache decides the text keys and values already"):
        parse("kvcache").check(pipe)
    with pytest.raises(OptsdError, match="flash cannot be undone: kvcache was applied on top"):
        flash.undo()
    caching.undo()
    flash.undo()
    parse("sdpa").apply(pipe)


def test_what_was_applied_is_taken_back_when_a_later_technique_fails(untrained):
    class Failing:
        name, exact, stage, slot = "failing", True, 9, "failing"

        def check(self, pipe):
            pass

        def apply(self, pipe):
            raise NothingMatched("failing found nothing", "leave it out")

    pipe = untrained()
    before = [module.processor for module in pipe.unet.modules() if hasattr(module, "processor")]
    with pytest.raises(NothingMatched, match="failing found nothing"):
        Variant("flash+failing", (*parse("flash+kvcache").steps, Failing())).apply(pipe)
    assert [module.processor for module in pipe.unet.modules() if hasattr(module, "processor")] == before
    assert not any("forward" in vars(module) for module in pipe.unet.modules())
    parse("flash").apply(pipe)

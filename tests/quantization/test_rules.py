"""The rules in a variant's name: one spelling for one meaning, and none that does nothing in silence."""

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optsd.errors import BadInput, NothingMatched
from optsd.quantization.rules import BITS, PRECISIONS, Rule, check, decide, fewest_bits, nearest, parse, read, spelled
from optsd.variants import BY_LAYER, canonical

LAYERS = (
    "down_blocks.0.attn1.to_q",
    "down_blocks.0.ff.net.2",
    "mid_block.resnets.0.conv1",
    "up_blocks.0.attn1.to_q",
    "up_blocks.0.ff.net.2",
    "up_blocks.1.ff.net.2",
)
patterns = st.text("abz_.0-*?", min_size=1, max_size=12)
precisions = st.sampled_from(PRECISIONS)
rule_lists = st.dictionaries(patterns, precisions, min_size=1, max_size=4).map(
    lambda given: [f"{pattern}={precision}" for pattern, precision in given.items()]
)


def allowed(text: str) -> bool:
    try:
        parse(text)
    except BadInput as error:
        if "\n" in str(error):
            raise
        return False
    return True


@given(rule_lists, st.randoms(), st.sampled_from(BY_LAYER))
def test_one_spelling_whatever_the_order(given_rules, random, base):
    if not allowed(":".join(given_rules)):  # two patterns may be one, as ** is *
        return
    name = canonical(f"{base}:{':'.join(given_rules)}")
    assert canonical(name) == name
    assert parse(name.partition(":")[2]) == parse(":".join(given_rules))
    random.shuffle(given_rules)
    assert canonical(f" flash + {base}: {' : '.join(given_rules)} ") == f"flash+{name}"
    assert not set(name) & set(",+ ")


@given(rule_lists, st.sampled_from(LAYERS), st.sampled_from(BY_LAYER))
def test_the_most_precise_rule_counts(given_rules, layer, base):
    made = [Rule(*text.split("=")) for text in given_rules]
    matching = [rule.precision for rule in made if fnmatchcase(layer, rule.pattern)]
    assert decide(layer, made, base) == max(matching, key=PRECISIONS.index, default=base)
    assert decide(layer, [*made, Rule("*", "float")], base) == "float"


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_in_one_line(text):
    if not allowed(text):
        return
    made = parse(text)
    assert parse(":".join(map(str, made))) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no rule for layers; write for example up_blocks.*=int4"),
        ("up_blocks.*", "'up_blocks.\\*' is no rule for layers"),
        ("=int4", "'=int4' is no rule"),
        ("unet.=int4", "'unet.=int4' is no rule"),
        ("a=int4:", "'' is no rule"),
        ("a=int3", "'a=int3' names no precision; choose from int4, int8, float"),
        ("a=", "'a=' names no precision"),
        ("a=b=int4", "'a=b=int4' names no precision"),
        ("a[0]=int4", r"'a\[0\]' is no pattern of layers; use letters, digits, _ . - and the signs \* and \?"),
        ("../a=int4", "'../a' is no pattern"),
        ("a=int4:a=float", "two rules are for 'a'; give each pattern one precision"),
        ("**=int4:*=int8", r"two rules are for '\*'"),
    ],
)
def test_what_is_no_rule_is_refused(text, message):
    with pytest.raises(BadInput, match=message):
        canonical(f"int8:{text}")


def test_the_denoisers_own_name_may_stand_before_a_pattern():
    assert canonical("int8:unet.up*=int4") == canonical("int8:transformer.up*=int4") == "int8:up*=int4"
    assert canonical("int8:transformer_blocks.*=int4") == "int8:transformer_blocks.*=int4"


@pytest.mark.parametrize(
    ("base", "text", "message"),
    [
        ("int8", "up_block.*=int4", r"'up_block.\*' matches no layer of the unet; there are up_blocks.\*"),
        ("int8", "*.attn2.*=int4", r"matches no layer of the unet; there are \*.attn1.\*"),
        ("int8", "zzz=int4", r"matches no layer of the unet; there are down_blocks.\*, mid_block.\*, up_blocks.\*$"),
        ("int4", "conv_in=int8", "matches only layers that stay in high precision, as conv_in; leave that rule out"),
        ("int8", "up_blocks.*=int8", r"up_blocks.\*=int8 changes nothing: .*; leave that rule out"),
        ("int8", "up_blocks.*=float:up_blocks.0.*=int4", r"up_blocks.0.\*=int4 changes nothing"),
        ("int8", "*.ff.*=int4:up_blocks.1.*=int4", r"up_blocks.1.\*=int4 changes nothing"),
        ("int8", "*=int4", "the rules leave no layer to int8; begin with the precision that most layers are to have"),
    ],
)
def test_a_rule_that_does_nothing_is_an_error(base, text, message):
    with pytest.raises(NothingMatched, match=f"^{re.escape(base)}:.*{message}"):
        check(parse(text), base, LAYERS, ["conv_in"], "unet")


@pytest.mark.parametrize("text", ["up_blocks.*=int4", "*=int4:up_blocks.*=int8", "*.ff.*=int4:up_blocks.0.*=float"])
def test_rules_that_do_something(text):
    check(parse(text), "int8", LAYERS, ["conv_in"], "unet")
    check((), "int8", LAYERS, ["conv_in"], "unet")


def test_what_is_near_is_there():
    for pattern in ("down_block.*", "*.attn.*", "*.ff.net", "mid_block.resnets.0.conv2", "no such thing"):
        found = nearest(pattern, LAYERS)
        assert found
        assert all(any(fnmatchcase(layer, each) for layer in LAYERS) for each in found)


def test_all_is_a_word_of_its_own():
    assert canonical("int8: up*=int4 : all ") == canonical("int8:all:up*=int4") == "int8:all:up*=int4"
    assert canonical("flash+int4:all") == "flash+int4:all"
    assert read("all") == (True, ())
    assert read("up*=int4") == (False, parse("up*=int4"))
    assert canonical("int8:all=int4") == "int8:all=int4", "a layer may be called so"
    for wrong in ("all:all", "all:", "everything", "all:up*"):
        with pytest.raises(BadInput):
            canonical(f"int8:{wrong}")


def test_bits_of_a_name():
    assert [fewest_bits(name) for name in ("int8", "int4", "flash", "int8-bnb")] == [8, 4, 0, 0]
    assert fewest_bits("int8:a=int4") == fewest_bits("int4:a=int8") == 4
    assert fewest_bits("int8:a=float") == fewest_bits("int8:all") == 8
    assert set(BITS) == set(BY_LAYER)
    assert spelled("int8", ()) == "int8"


def test_shortcuts_have_8_bits_in_int4_unless_a_rule_says_otherwise() -> None:
    assert decide("up_blocks.0.resnets.1.conv_shortcut", (), "int4") == "int8"
    assert decide("up_blocks.0.resnets.1.conv_shortcut", (), "int8") == "int8"
    assert decide("up_blocks.0.resnets.1.conv1", (), "int4") == "int4"
    for precision in PRECISIONS:
        assert decide("up_blocks.0.resnets.1.conv_shortcut", parse(f"*.conv_shortcut={precision}"), "int4") == precision
    layers = ("up_blocks.0.resnets.0.conv1", "up_blocks.0.resnets.0.conv_shortcut")
    check(parse("*.conv_shortcut=int4"), "int4", layers, (), "unet")
    with pytest.raises(NothingMatched, match=r"\*\.conv_shortcut=int8 changes nothing"):
        check(parse("*.conv_shortcut=int8"), "int4", layers, (), "unet")

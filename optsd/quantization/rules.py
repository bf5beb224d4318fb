"""What the words after a name say: `int8:up_blocks.*=int4` which layers are quantized otherwise, `int8:all` that all
networks are quantized, not the denoiser alone. Imports no torch.

A rule is a shell pattern (`fnmatch`) of the names of the denoiser's layers, and a precision. Where several match a
layer the most precise one counts, so their order means nothing; what stays in high precision by default stays so
whatever they say, as that is the most precise.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from optsd.errors import BadInput, NothingMatched

PRECISIONS = ("int4", "int8", "float")
"""From the least precise to the most."""
BITS = {"int4": 4, "int8": 8}
WHOLE = "all"
IN_8_BITS = "*.conv_shortcut"
"""Of int4 too: the convolutions by which a residual block's input passes the block. They are 2.7 % of the weights of SD
v1.5's UNet, and in 4 bits made 43 % of int4's squared error on the shipped model."""
_PATTERN = re.compile(r"[A-Za-z0-9_.*?-]+")  # nothing that a shell, a list of variants or a table takes for its own
_DENOISER = re.compile(r"^(unet|transformer)\.")
_EXAMPLE = "write for example up_blocks.*=int4, and join several with a colon"


@dataclass(frozen=True, order=True)
class Rule:
    pattern: str
    precision: str

    def __str__(self) -> str:
        return f"{self.pattern}={self.precision}"

    @property
    def rank(self) -> int:
        return PRECISIONS.index(self.precision)


def read(text: str) -> tuple[bool, tuple[Rule, ...]]:
    """Whether `all` is one of the words, and the rules that the others are. Raises BadInput."""
    words = [word.strip() for word in text.split(":")]
    others = [word for word in words if word != WHOLE]
    if len(others) < len(words) - 1:
        raise BadInput(f"{text!r} says {WHOLE} twice", "say it once")
    return len(others) < len(words), parse(":".join(others)) if others else ()


def parse(text: str) -> tuple[Rule, ...]:
    """`up_blocks.*=int4:*.attn?.*=float`, in the one order and spelling that they have here. Raises BadInput.

    A proof calls layers by their place in the pipeline: the denoiser's name before a pattern may stand or not.
    """
    found: dict[str, Rule] = {}
    for part in text.split(":"):
        pattern, equals, precision = (piece.strip() for piece in part.partition("="))
        pattern = re.sub(r"\*+", "*", _DENOISER.sub("", pattern))
        if not equals or not pattern:
            raise BadInput(f"{part.strip()!r} is no rule for layers", _EXAMPLE)
        if not _PATTERN.fullmatch(pattern):
            raise BadInput(f"{pattern!r} is no pattern of layers", "use letters, digits, _ . - and the signs * and ?")
        if precision not in PRECISIONS:
            raise BadInput(f"{part.strip()!r} names no precision", f"choose from {', '.join(PRECISIONS)}")
        if pattern in found:
            raise BadInput(f"two rules are for {pattern!r}", "give each pattern one precision")
        found[pattern] = Rule(pattern, precision)
    return tuple(sorted(found.values()))


def spelled(technique: str, rules: Collection[Rule], whole: bool = False) -> str:
    """The name of a technique with these rules: `read` reads what comes after its first colon."""
    return ":".join((technique, *([WHOLE] if whole else []), *map(str, rules)))


def fewest_bits(technique: str) -> int:
    """Of the weights of the denoiser's layers with `int8:up_blocks.*=int4`; 0 where that is no such technique."""
    base, _, text = technique.partition(":")
    given = [base, *(rule.precision for rule in (read(text)[1] if text else ()))] if base in BITS else []
    return min((BITS[each] for each in given if each in BITS), default=0)


def usual(layer: str, base: str) -> str:
    """The precision of a layer that no rule is about: `base`, but for `IN_8_BITS`."""
    return "int8" if base == "int4" and fnmatchcase(layer, IN_8_BITS) else base


def decide(layer: str, rules: Collection[Rule], base: str) -> str:
    """The precision of a layer, of `PRECISIONS`: the usual one where no rule matches."""
    ranks = [rule.rank for rule in rules if fnmatchcase(layer, rule.pattern)]
    return PRECISIONS[max(ranks)] if ranks else usual(layer, base)


def check(rules: Collection[Rule], base: str, layers: Collection[str], kept: Collection[str], where: str) -> None:
    """Raise NothingMatched unless each rule changes what becomes of a layer, and some stay with the technique's own.

    `layers` can be quantized; those of `kept` stay in high precision whatever a rule says. `where` is the denoiser.
    """
    technique = spelled(base, rules)
    for rule in rules:
        if not any(fnmatchcase(layer, rule.pattern) for layer in layers):
            for layer in kept:
                if fnmatchcase(layer, rule.pattern):
                    raise NothingMatched(
                        f"{technique}: {rule.pattern!r} matches only layers that stay in high precision, as {layer}",
                        "leave that rule out",
                    )
            near = ", ".join(nearest(rule.pattern, layers))
            raise NothingMatched(f"{technique}: {rule.pattern!r} matches no layer of the {where}", f"there are {near}")
    for rule in rules:
        others = [other for other in rules if other != rule]
        if all(decide(layer, rules, base) == decide(layer, others, base) for layer in layers):
            raise NothingMatched(
                f"{technique}: {rule} changes nothing: without it each of its layers has that precision, or a higher",
                "leave that rule out",
            )
    if rules and not any(decide(layer, rules, base) == base for layer in layers):
        raise NothingMatched(
            f"{technique}: the rules leave no layer to {base}", "begin with the precision that most layers are to have"
        )


def nearest(pattern: str, layers: Collection[str]) -> list[str]:
    """Patterns that match something and are spelled like this one; the parts of the model where none is."""
    words = [layer.split(".") for layer in layers]
    parts = {".".join(each[:depth]) + ".*" for each in words for depth in range(1, len(each))}
    kinds = {f"*.{word}.*" for each in words for word in each[1:-1] if not word.isdigit()}
    lasts = {f"*.{each[-1]}" for each in words if len(each) > 1 and not each[-1].isdigit()}
    tops = sorted({f"{each[0]}.*" if len(each) > 1 else each[0] for each in words})
    return get_close_matches(pattern, sorted({*layers, *parts, *kinds, *lasts}), n=3, cutoff=0.7) or tops

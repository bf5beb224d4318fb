"""Reads what is written beside a figure: its baseline, and what notes tell of prompts, readings and other printings.

What a note recomputes is its author's arithmetic and no fact of the source: it is left alone.
"""

import re
from typing import Any

from optsd.claims.schema import Against, Printed
from optsd.claims.words import NUMBER, first_of, matched, number, unit, unsaid, whole


def against(said: str) -> Against:
    """What the words of a baseline name: kernel, type, whether compiled, another program, steps, its own seconds."""
    words = said.lower()
    if unsaid(said) or words in ("", "none", "see notes"):
        return Against(said)
    # What the words deny ("no SDPA") or say of other rows (after a semicolon) is no fact.
    first = re.sub(
        r"\b(no|not) (sdpa|xformers|flash|eager)\b[^:;,)]*", "", re.split(r";|from row|column heads", words)[0]
    )
    named = re.search(r"no sdpa: (\w+) attention", words)
    attention = first_of(named[1] + " attention" if named else first, _ATTENTION)
    text_says = re.search(r"\(?text says ([^();]+)\)?", words)
    compared = re.sub(r"\(?text says [^();]+\)?", "", first)
    seconds = re.search(r"(\d+\.\d+|\d+)\s*s\b", compared)
    return Against(
        said,
        attention=attention,
        dtype=first_of(compared, _DTYPE),
        compiled=_compiled(compared),
        engine=matched(r"tensorrt|onediff|openvino|onnx ?runtime|oneflow|aitemplate|web ?ui", compared),
        steps=whole(r"\b(\d+)\s+(?:[a-z+-]+\s+)?steps\b", compared),
        seconds=number(seconds[1]) if seconds else None,
        row=_row(words),
        text_says=text_says[1].strip() if text_says else "",
    )  # fmt: skip


def _row(words: str) -> str:
    if re.search(r"adds to the one above|previous row|row (above|before)", words):
        return "before"
    return "first" if re.search(r"first row|row 1\b", words) else ""


_ATTENTION = (
    (r"vanilla attention|naive attention|eager attention|math attention|base attention|no xformers", "eager"),
    (r"xformers|memory.efficient attention", "xformers"),
    (r"\bsdpa\b|scaled dot", "sdpa"),
    (r"flash", "flash"),
)


_DTYPE = (
    (r"bfloat16|\bbf16\b", "bfloat16"),
    (r"float16|\bfp16\b|half precision", "float16"),
    (r"float32|\bfp32\b|full precision", "float32"),
    (r"\bfp8\b|float8", "float8"),
)


def _compiled(words: str) -> bool | None:
    if re.search(r"no compil|not compiled|uncompiled|without compil|\beager\b", words):
        return False
    return True if re.search(r"compiled|torch\.?compile|\+ compile", words) else None


def printed(note: str) -> tuple[Printed, ...]:
    """The same figure said once more, as a note reports it: `printed +118.1%`, `PAGE prints … "5 - 300% faster"`."""
    found = []
    for match in re.finditer(rf"\bprinted ({NUMBER}\s*(?:%|[x×](?![a-z])))", note):
        found.append(_printed(match[1], ""))
    # `16.3 -> 39.57 it/s`: the source's own figures under a ratio.
    for match in re.finditer(rf"({NUMBER}) ?(?:->|→) ?({NUMBER}) ([a-z/]+)", note):
        found.append(Printed(match[0], (number(match[1]), number(match[2])), unit(match[3])))
    for match in re.finditer(
        r'(?:([\w./-]+\.\w+)[^";]*\b(?:prints?|says?)\b[^";]*)"([^"]*\d[^"]*(?:%|[x×])[^"]*)"', note
    ):
        found.append(_printed(match[2], match[1]))
    for match in re.finditer(r'[Ss]ame page: "([^"]*\d[^"]*(?:%|[x×]))"', note):
        found.append(_printed(match[1], "the same page"))
    # `53.88 % = 1-2.966/6.431`, or `695 ms / 1`: printed seconds that a recomputation rests on.
    for match in re.finditer(rf"1\s*-\s*({NUMBER})\s*/\s*({NUMBER})", note):
        found.append(Printed(match[0], (number(match[1]), number(match[2])), "s"))
    for match in re.finditer(rf"\b({NUMBER}) (ms|s) / (\d+)\b", note):
        found.append(Printed(match[0], (number(match[1]), number(match[3])), match[2]))
    return tuple(found)


def _printed(words: str, place: str) -> Printed:
    figures = re.findall(NUMBER, re.sub(r"(?<=\d)\s*[-–](?=\s*\d)", " to ", words))
    after = words[words.rfind(figures[-1].lstrip("+-−")) + len(figures[-1].lstrip("+-−")) :]
    return Printed(words.strip(), tuple(number(each) for each in figures), unit(after.strip()), place)


def prompts(note: str) -> str:
    found = re.search(r"\bPrompts: ([^.(;]+?)(?=\s*[(;]|\.(?:\s|$)|,? pytorch-fid|$)", note)
    return found[1].strip().removesuffix(",") if found else ""


def spread(note: str) -> dict[str, Any]:
    """Readings and deviation that a note reports: `seeds (24.6, 24.2, 24.7); sd 0.227`, `min 2.22s, max 2.24s`."""
    said: dict[str, Any] = {}
    seeds = re.search(r"\bseeds \(([\d., ]+)\)", note)
    if seeds:
        said["readings"] = tuple(number(each) for each in re.findall(NUMBER, seeds[1]))
    deviation = re.search(rf"\bsd ({NUMBER})", note)
    if deviation:
        said["spread"] = number(deviation[1])
    ends = re.search(rf"\bmin ({NUMBER})\s*m?s?, max ({NUMBER})", note)
    if ends:
        said |= {"low": number(ends[1]), "high": number(ends[2])}
    return said

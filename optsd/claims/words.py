"""Reads the words of a claim: what a unit, a metric, a value mean. By meaning, never by where they stand.

What cannot be read stays words: a metric of kind "other", a value that is only `said`.
"""

import re
from collections.abc import Iterable
from typing import Any

from optsd.claims.schema import Metric, Stated, Value

KINDS = (
    "time", "rate", "speedup", "memory", "memory_saved", "operations", "operations_ratio", "size", "warm_up", "fid",
    "kid", "is", "clip", "clip_iqa", "imagereward", "lpips", "psnr_db", "ssim", "outcome", "other",
)  # fmt: skip
"""What is measured. `rate` is iterations or pictures a second; `speedup` a ratio of times, in × or %."""

UNITS: dict[str, tuple[str, float]] = {
    # unit -> (dimension, factor to its base: seconds, a second, bytes, operations, cosine)
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "min": ("time", 60.0),
    "it/s": ("rate", 1.0),
    "images/s": ("rate", 1.0),
    "s/it": ("inverse rate", 1.0),
    "s/image": ("inverse rate", 1.0),
    "x": ("ratio", 1.0),
    "% of time saved": ("ratio", 0.01),
    "% faster": ("ratio", 0.01),
    "%": ("ratio", 0.01),
    "B": ("bytes", 1.0),
    "MB": ("bytes", 1e6),
    "GB": ("bytes", 1e9),
    "MiB": ("bytes", 2.0**20),
    "GiB": ("bytes", 2.0**30),
    "GMAC": ("operations", 2e9),
    "TMAC": ("operations", 2e12),
    "GFLOP": ("operations", 1e9),
    "TFLOP": ("operations", 1e12),
    "dB": ("", 1.0),
    "cosine": ("cosine", 1.0),
    "cosine x100": ("cosine", 0.01),
    "2.5 x cosine": ("cosine", 0.4),
    "": ("", 1.0),
}
_SPELLINGS = (
    # the words of a unit -> the unit, first match
    (r"%\s*(of\s+)?(the\s+)?time\s+saved|%\s*less\s+time", "% of time saved"),
    (r"%\s*(faster|more|gain|higher)", "% faster"),
    (r"%|per\s?cent", "%"),
    (r"(it|its|iters?|iterations?|steps?)\s*/\s*s(ec)?\b", "it/s"),
    (r"(ims?|imgs?|images?|pictures?)\s*/\s*s(ec)?\b", "images/s"),
    (r"s(ec)?\s*/\s*(it|iter|iteration|step)\b", "s/it"),
    (r"s(ec)?\s*/\s*(im|img|image|picture)\b", "s/image"),
    (r"(ms|milliseconds?)\b", "ms"),
    (r"(s|sec|secs|seconds?)\b", "s"),
    (r"(min|mins|minutes?)\b", "min"),
    (r"2\.5\s*[x×]\s*cosine", "2.5 x cosine"),
    (r"(cosine\s*[x×]\s*100|100\s*[x×]\s*cosine|points?\s+of\s+100)", "cosine x100"),
    (r"cosine", "cosine"),
    (r"MB\s*\(2\*\*20\)|MiB", "MiB"),
    (r"GB\s*\(2\*\*30\)|GiB", "GiB"),
    (r"GB\b", "GB"),
    (r"MB\b", "MB"),
    (r"(B|bytes)\b", "B"),
    (r"TMACs?\b", "TMAC"),
    (r"GMACs?\b", "GMAC"),
    (r"TFLOPs?\b", "TFLOP"),
    (r"GFLOPs?\b", "GFLOP"),
    (r"dB\b", "dB"),
    (r"[x×](?![a-z])|times\b", "x"),
)
_BOUNDS = (
    (r"~|≈|\b(about|around|approximately|circa|roughly|nearly)\b", "about"),
    (r"\bup to\b|\bat most\b|≤|<=|\bas (much|high) as\b", "up to"),
    (r"\bless than\b|\bunder\b|\bbelow\b|<(?!=)", "less than"),
    (r"\bas (little|low) as\b", "as little as"),
    (r"\bat least\b|≥|>=|\bmore than\b|\bover\b|(?<![-=])>(?!=)", "at least"),
)
NUMBER = r"[-+−]?\d+(?:,\d{3})*(?:\.\d+)?"
_NO_MEMORY = r"\bOOM\b|out[- ]of[- ]memory"
_GPU = r"(?<=\bon )(?!coco|laion|mjhq)(?:\d+ GB )?[a-z ]*(?:rtx|gtx|[ahlvt]\d|\d{4})[\w ]*"
_UNSAID = re.compile(
    r"\s*(not\s+(said|stated|named|given|known|printed|specified)|unstated|unspecified|unknown|n/?a\b|-\s*$)", re.I
)


def unsaid(text: Any) -> bool:
    """Whether words say that nothing is said."""
    return isinstance(text, str) and bool(_UNSAID.match(text))


def stated(raw: Any) -> Stated:
    """`float16 (script)` → float16, from the script; `not said` → unstated, in these words; 50 → 50."""
    if raw is None or not isinstance(raw, str):
        return Stated(raw)
    if unsaid(raw):
        return Stated(None, raw)
    parts = re.fullmatch(r"([^()]*[^()\s]) \((.+)\)", raw)
    if not parts or parts[2].count("(") != parts[2].count(")"):
        return Stated(raw)
    value: Any = parts[1]
    if re.fullmatch(r"-?\d+", value) and str(int(value)) == value:
        value = int(value)
    return Stated(value, parts[2])


def unstated_words(item: Stated) -> Any:
    """What `stated` was made of."""
    if item.value is None:
        return item.origin or None
    return f"{item.value} ({item.origin})" if item.origin else item.value


def unit(text: str) -> str:
    """The unit that the words begin with, or name first; "" where none is known."""
    plain = re.sub(r'^["\s]+', "", text)
    for spelled, name in _SPELLINGS:
        if re.match(spelled, plain, re.I if name not in ("B", "MB", "GB") else 0):
            return name
    return ""


def bound(text: str) -> str:
    return next((name for words, name in _BOUNDS if re.search(words, text, re.I)), "")


def number(text: str) -> float:
    """`2.5` → 2.5, `5` → 5, `-59.0` → -59.0."""
    plain = text.replace(",", "").replace("−", "-").removeprefix("+")
    return float(plain) if "." in plain else int(plain)


def value(raw: Any, unit_said: str) -> Value:
    """The figure and its unit. Text that is no number, range, "a -> b", "a ± b" or outcome stays `said`."""
    known = unit(unit_said)
    fails = re.search(rf"fails above\s*[x×]?\s*({NUMBER})", unit_said)
    shared: dict[str, Any] = {
        "unit": known,
        "unit_said": "" if unit_said == known and not isinstance(raw, str) else unit_said,
        "bound": bound(unit_said),
        "fails_above": number(fails[1]) if fails else None,
    }
    if not isinstance(raw, str):
        return Value(figure=raw, **shared)
    if re.search(rf"{_NO_MEMORY}|error|crash|fail|does not (run|fit|work)|not supported|\bN/?A\b|NaN", raw, re.I):
        outcome = "out of memory" if re.search(_NO_MEMORY, raw, re.I) else raw.lower()
        return Value(outcome=outcome, said=raw, **shared)
    found = re.findall(NUMBER, re.sub(r"(?<=\d)\s*[-–](?=\s*\d)", " to ", raw))
    figures = [number(each) for each in found]
    if not known and figures:
        after = raw[raw.rfind(found[-1].lstrip("+-−")) + len(found[-1].lstrip("+-−")) :].strip()
        shared["unit"] = unit(after)
    shared["bound"] = shared["bound"] or bound(raw)
    if len(figures) == 2 and re.search(r"->|→", raw):
        return Value(before=figures[0], figure=figures[1], said=raw, **{**shared, "bound": ""})
    if len(figures) == 2 and re.search(r"±|\+/?-", raw):
        return Value(figure=figures[0], spread=abs(figures[1]), said=raw, **shared)
    if len(figures) == 2 and re.search(r"\bto\b|[-–]", raw):
        return Value(low=figures[0], high=figures[1], said=raw, **shared)
    return Value(figure=figures[0] if len(figures) == 1 else None, said=raw, **shared)


def metric(said: str, unit_said: str = "") -> Metric:
    """What a metric's name, and what its unit adds to it, mean."""
    words = said.lower().replace("_", " ")
    dimension = UNITS[unit(unit_said)][0]
    both = f"{words} {unit_said.lower()}"
    kind = _kind(words, dimension, unit_said)
    bytes_like = kind == "memory"
    return Metric(
        said=said,
        kind=kind,
        per=_per(both, kind, unit_said),
        scope=first_of(words, _SCOPE) if kind in ("time", "rate", "size", "memory") else "",
        statistic=matched(r"mean of \d+ seeds|median of \d+|\bmean\b|\bmedian\b|\baverage\b|\bavg\b", words),
        when=first_of(both, _WHEN) if bytes_like else "",
        counted=(matched(r"max_memory_(allocated|reserved)|\b(allocated|reserved)\b", both) if bytes_like else "")
        .removeprefix("max_memory_"),
        network=(matched(r"vit-[a-z]+[/-]\d+[^,()]*", said) or matched(r"vit-[a-z]+[/-]\d+[^,()]*", unit_said)).strip()
        if kind in ("clip", "fid", "kid") else "",
        reference=_reference(said) if kind in ("fid", "kid", "is", "clip", "lpips", "psnr_db", "ssim", "imagereward")
        else "",
        resized=whole(r"(\d+)\s*[x×]\s*\1", words) if kind in ("fid", "kid", "is") else None,
        count=_count(words),
        change=bool(re.search(r"\b(change|decline|drop|decrease|increase|difference|delta|loss)\b", words))
        and kind not in ("speedup", "memory_saved"),
        over=_over(said),
        device=matched(_GPU, said).strip() or matched(r"(?<=\()(?:rtx|gtx) [\w ]+(?=\))", said),
    )  # fmt: skip


def _kind(words: str, dimension: str, unit_said: str) -> str:
    tests = (
        (r"outcome", True, "outcome"),
        (r"warm-?\s?up|compil(ation|e) time|loading time", dimension == "time", "warm_up"),
        (r"(flops?|macs?|operations?)\b.*(ratio|reduction|saved|fewer)|ratio of (flops|macs)", dimension == "ratio",
         "operations_ratio"),
        (r"\b(macs?|g?flops?|tflops?|operations)\b", dimension in ("operations", ""), "operations"),
        (r"memory|vram", dimension == "ratio", "memory_saved"),
        (r"(memory|vram).*(reduc|saved|saving)", dimension == "", "memory_saved"),
        (r"size|disk", dimension == "bytes", "size"),
        (r"", dimension == "bytes", "memory"),
        (r"speed|faster|improvement|gain|latency|time|throughput|accelerat|reduction|saved", dimension == "ratio",
         "speedup"),
        (r"clip[- ]?iqa", True, "clip_iqa"),
        (r"\bcmmd\b", True, "cmmd"),
        (r"\bfd[-_ (]*dino", True, "fd_dinov2"),
        (r"\bfid\b", True, "fid"),
        (r"\bkid\b", True, "kid"),
        (r"inception score|^\s*is\b", dimension == "", "is"),
        (r"image\s?reward", True, "imagereward"),
        (r"lpips", True, "lpips"),
        (r"psnr", True, "psnr_db"),
        (r"ssim", True, "ssim"),
        (r"", dimension in ("rate", "inverse rate"), "rate"),
        (r"", dimension == "time", "time"),
        (r"clip", True, "clip"),
        (r"memory|vram", True, "memory"),
        (r"speed-?\s?up", True, "speedup"),
        (r"iterations? (per|a) second|it/s|throughput", True, "rate"),
        (r"latency|seconds", True, "time"),
    )  # fmt: skip
    return next((kind for pattern, fits, kind in tests if fits and re.search(pattern, words)), "other")


def _per(both: str, kind: str, unit_said: str) -> str:
    if unit(unit_said) in ("it/s", "s/it"):
        return "step"
    if unit(unit_said) in ("images/s", "s/image"):
        return "image"
    if kind not in ("time", "rate", "operations", "memory"):
        return ""
    batches = re.search(r"n.iter\s*=\s*(\d+)", both)
    if batches:
        return f"{batches[1]} batches"
    return first_of(
        both,
        (
            (r"(per|a) call|whole call|\bbatch\b", "call"),
            (r"(per|an|/)\s*(image|im|img|picture)\b", "image"),
            (r"(per|a) (step|iteration)\b", "step"),
            (r"iterations? (per|a) second", "step"),
            (r"pipeline|end to end", "call"),
        ),
    )


_SCOPE = (
    (r"\bunet\b|\bu-net\b|denoiser", "unet"),
    (r"transformer|\bdit\b", "transformer"),
    (r"\bvae\b|decoder", "vae"),
    (r"\bclip\b|text encoder|\bt5\b", "text encoder"),
)


_WHEN = (
    (r"after loading|resident|idle", "after loading"),
    (r"\bbefore\b", "before"),
    (r"\bafter\b", "after"),
    (r"\bpeak\b|\bmax", "peak"),
)


def _reference(said: str) -> str:
    """`FID (10k, COCO val, pictures resized to 256x256)` → COCO val; `LPIPS against 16 bit (MJHQ)` → 16 bit, MJHQ."""
    parts = re.findall(r"\b(?:on|against)\s+([^(),]+)", said)
    for inside in re.findall(r"\(([^()]*)\)", said):
        parts += [
            re.sub(r"^\d+k\s*", "", each.strip())
            for each in inside.split(",")
            if not re.search(r"resized|\d+\s*[x×]\s*\d+|vit-", each, re.I)
        ]
    return ", ".join(each.strip() for each in parts if each.strip())


def _over(said: str) -> str:
    found = re.search(r"\bover\s+([^()\"]+)", said, re.I)
    return found[1].strip() if found else ""


def _count(words: str) -> int | None:
    thousands = re.search(r"\b(\d+(?:\.\d+)?)k\b", words)
    if thousands:
        return round(float(thousands[1]) * 1000)
    return whole(r"\b(\d+) (?:images|pictures)\b", words)


def first_of(words: str, known: Iterable[tuple[str, str]]) -> str:
    """The name of the first pattern that the words hold, or nothing."""
    return next((name for pattern, name in known if re.search(pattern, words)), "")


def matched(pattern: str, text: str) -> str:
    """What of the text fits first; "" for nothing."""
    found = re.search(pattern, text, re.I)
    return found[0] if found else ""


def whole(pattern: str, text: str) -> int | None:
    """The whole number that the pattern's group finds."""
    found = re.search(pattern, text)
    return int(found[1]) if found else None

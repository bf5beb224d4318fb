"""Makes names alike: what others call a model, a GPU, a type, a technique. For comparing claims, never for storing.

A word that is not known stays, so that two names are called the same only where they are.
"""

import re
from functools import lru_cache

from optsd.claims.schema import Claim, Stated

_MODELS = (
    # words -> (architecture of optsd.estimate, side of its pictures in pixels)
    (r"stable[- ]diffusion[- ](v?1[-.][45])|\bsd[- ]?1\.?[45]\b|dreamshaper", "sd15", 512),
    (r"stable[- ]diffusion[- ]v?2[-.]1[- ]base", "sd21", 512),
    (r"stable[- ]diffusion[- ]v?2[-.]1|\bsd[- ]?2\.1", "sd21", 768),
    (r"sdxl-turbo", "sdxl", 512),
    (r"stable[- ]diffusion[- ]xl|\bsd[- ]?xl", "sdxl", 1024),
    (r"\bflux\.?[- ]?1?[- ]\[?(dev|schnell)\b", "flux", 1024),
)
GUIDED_INSIDE = ("flux",)
"""Architectures that take guidance as a number: it doubles no work, whatever is said of it."""
_DTYPES = (
    (r"^(float16|fp16|half|f16)\b", "float16"),
    (r"^(bfloat16|bf16)\b", "bfloat16"),
    (r"^(float32|fp32|full precision)\b", "float32"),
)
_METHODS = (
    # words of a technique -> what it is; "" says nothing. The first that fits takes its words away.
    (r"\bno xformers\b|\b(vanilla|naive|eager|base|math) attention\b|\bvanilla attn\b", "eager"),
    (r"\btorch\.?compile(?=\W|$)", "compile"),
    (r"\(?torch [\d.]+\w*( dev)?\)?|(?<=\()\d+(\.\d+)+(?=[),])|\bratio not said\b", ""),
    (r"\(?openai's consistency decoder\**\)?", "consistency decoder"),
    (r"memory[- ]efficient attention|\bxformers\b|memory[- ]efficient", "xformers"),
    (r"\bflash[- ]?attention( v?\d)?\b|\bfa3\b( fp8)?|\bflash\b", "flash"),
    (r"\bsdpa\b|scaled[- ]dot[- ]product( attention)?", "sdpa"),
    (r"\bcompiled?\b( unet and vae)?(\s*\([^)]*\))?|max-autotune|reduce-overhead|fullgraph", "compile"),
    (r"\bdeepcache\b", "deepcache"),
    (r"\bt-?gate\b", "t-gate"),
    (r"\bfaster diffusion\b", "faster diffusion"),
    (r"\btome\b( for sd)?( r=[\d.]+)?", "tome"),
    (r"\bfewer steps\b", "fewer steps"),
    (r"^(none|original|unoptimized pipeline|default|baseline|vanilla( pipeline| pytorch)?|torch|diffusers"
     r"|pytorch( eager)?|full precision)\b|^sd-?\s?(xl|\d\.\d)\b|^stable diffusion( xl| \d\.\d)?$", ""),
    (r"\(\s*default\s*\)", ""),
    (r"\(\s*(sd-?xl|full \w+|fp32|bf16|fp16|iddpm|eager)[^)]*\)", ""),
    (r"\bfp16\b|\bfloat16\b|\bbf16\b|\bbfloat16\b|\bfp32\b", ""),
    (r"\b(diffusers|pytorch|optimized|with|and|the|on|w/|over|triton)(?=\W|$)", ""),
)  # fmt: skip


def architecture(model: Stated | str) -> str:
    """The architecture in the words of `optsd.estimate`; "" where it is none of those."""
    return next((name for words, name, _ in _MODELS if re.search(words, str(model), re.I)), "")


def side(model: Stated | str) -> int | None:
    """Pixels of the side of the pictures that a checkpoint draws by itself."""
    return next((pixels for words, _, pixels in _MODELS if re.search(words, str(model), re.I)), None)


def weights(model: Stated | str) -> str:
    """A checkpoint's name without its owner's: `stable-diffusion-v1-5`."""
    return re.sub(r"[\s_]+", "-", str(model).lower().rpartition("/")[2])


def device(text: Stated | str) -> tuple[str, str]:
    """(chip, board): `NVIDIA A100-SXM-80GB` → ("a100", "80gb"); an unnamed board is "". Several are another chip."""
    plain = f"{text.value} {text.origin}" if isinstance(text, Stated) else text
    plain = re.sub(r"nvidia|geforce|tesla|\bgtx\b|\bwsl\d?\b|\b\d+ mhz\b|which is not said|[()]", " ", plain.lower())
    plain = re.sub(r"[\s_-]+", " ", plain).strip()
    size = re.search(r"(\d+) ?gb\b", plain)
    rest = re.sub(r"\b\d+ ?gb\b|\bsxm\d?\b|\bpcie\b|\b\d+ w\b|,.*$|\bx 1$", " ", plain)
    words = re.sub(r"\brtx(?=\d)", "rtx ", rest).split()
    return " ".join(word for word in words if word != "rtx" or "pro" in words), f"{size[1]}gb" if size else ""


def same_machine(claimed: str, found: str, kind: str) -> bool:
    """Whether a claim's device is the one that was found. CPUs are called by more words here and fewer there."""
    if kind != "cpu":
        return device(claimed)[0] == device(found)[0]

    def words(text: str) -> set[str]:
        return {*re.findall(r"[a-z0-9-]+", re.sub(r"\(\w+\)|\bcpu\b", " ", text.lower()))}

    return words(claimed) <= words(found)


def dtype(text: Stated | str) -> str:
    """A type in torch's words, or as it was said."""
    plain = str(text).lower()
    return next((name for words, name in _DTYPES if re.search(words, plain)), plain)


def scheduler(text: Stated | str) -> str:
    """A scheduler's family: "DPM-Solver multistep / LCM" → dpmsolver, "PNDM/PLMS" → pndm."""
    plain = re.sub(r"[\s_-]|discrete|multistep|\+\+|\d", "", str(text).lower().replace("plms", "pndm"))
    return re.split(r"/|,|or", plain)[0].removesuffix("scheduler").replace("dpm++", "dpm")


def pixels(size: Stated) -> tuple[int, int] | None:
    """Width and height of 512 or "512x1024"."""
    if isinstance(size.value, (int, float)):
        return int(size.value), int(size.value)
    parts = re.fullmatch(r"(\d+)(?:\s*[x×]\s*(\d+))?", str(size.value or ""))
    return (int(parts[1]), int(parts[2] or parts[1])) if parts else None


@lru_cache(maxsize=4096)
def methods(technique: str) -> frozenset[str]:
    """The parts of a technique, each by one name; empty for a baseline. Unknown words are parts of their own."""
    rest, found = technique.lower().strip(), set()
    rest, _, _ = rest.partition(" over ")
    for words, name in _METHODS:
        if re.search(words, rest):
            rest = re.sub(words, " + ", rest)
            found.add(name)
    for part in re.split(r"[+,;&]|\s{2,}", re.sub(r"[()\[\]*:]", " ", rest)):
        plain = re.sub(r"\s+", " ", part).strip(" .-")
        if plain:
            found.add(plain)
    return frozenset(found - {""})


def kinds(technique: str) -> frozenset[str]:
    """The parts of a technique without parameters that stand in its name: `DeepCache (N=5)` → deepcache."""
    return frozenset(part for part in methods(technique) if not re.fullmatch(r"([a-z]+ ?= ?)?[\d.]+", part))


def parameter(claim: Claim, name: str, letter: str) -> object:
    """A parameter of a claim's technique: as it is listed, or as it stands in the technique's name (`N=5`)."""
    if name in claim.parameters:
        return claim.parameters[name]
    found = re.search(rf"\b{letter} ?= ?(\d+(?:\.\d+)?)", claim.technique, re.I)
    return None if not found else float(found[1]) if "." in found[1] else int(found[1])


def methods_of(claim: Claim) -> frozenset[str]:
    """The parts of a claim's technique; what its baseline already has, a plain baseline has too."""
    found = methods(claim.technique)
    if not found and claim.against.attention:
        return frozenset({claim.against.attention})
    return found


def is_baseline(claim: Claim) -> bool:
    """Whether it is the figure of an unchanged pipeline, with whatever attention kernel."""
    return methods(claim.technique) <= {"eager"} | {claim.against.attention}


def variant_of(claim: Claim) -> str:
    """The variant of optsd that does what the claim is about; "" where optsd has none, or the words leave it open."""
    found, parts = set(kinds(claim.technique)), []
    if "deepcache" in found:
        every, branch = parameter(claim, "N", "N"), claim.parameters.get("branch", 0)
        uniform = "non-uniform" not in str(claim.parameters.get("schedule", "uniform"))
        if not isinstance(every, int) or branch != 0 or not uniform or every < 2:
            return ""
        parts.append(f"deepcache:{every}")
    if "tome" in found:
        ratio = parameter(claim, "ratio", "r")
        if not isinstance(ratio, float) or claim.parameters.get("max_downsample", 1) != 1 or not 0 < ratio < 0.75:
            return ""
        parts.append(f"tome:{ratio:g}")
    known = {"eager": "baseline", "sdpa": "sdpa", "flash": "flash", "compile": "compile"}
    parts += [known[name] for name in known if name in found]
    if not found <= {"deepcache", "tome", *known}:
        return ""
    if not found:
        return {"eager": "baseline", "sdpa": "sdpa", "flash": "flash"}.get(claim.against.attention, "")
    return "+".join(part for part in parts if part != "baseline" or len(parts) == 1)

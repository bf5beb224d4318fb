"""What the data sheets allow of published claims: each beside its bound, in every reading that its words leave open.

time, rate       the multiplications that cannot be left out, at the data sheet's peak rate
speedup          the baseline at its roofline, run as badly as the slowest run that is known, over that floor
operations       what was traced; which way of counting gives the claimed figure
memory           the weights of the denoiser in the type that is claimed

What the words leave open is read in the way that is kindest to the claim: no guidance, 3×3 convolutions by Winograd's
method, and on GeForce cards float16 added up in float16. `strict` is the bound with guidance, direct convolutions and
sums in float32, as a stock pipeline has them. What cannot be bounded says what is missing.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optsd.claims import names
from optsd.claims.figures import Interval, of_value, per_image, seconds, size
from optsd.claims.schema import Claim
from optsd.claims.words import UNITS
from optsd.errors import BadInput, Unsupported
from optsd.estimate import architectures, devices
from optsd.estimate.bounds import SLOWEST
from optsd.estimate.devices import Device
from optsd.estimate.profiles import Profile, Run, profile
from optsd.files import write_atomically
from optsd.judge.published import measured_as

EXACT = (
    "eager", "sdpa", "xformers", "flash", "compile", "traced unet", "channels last", "nchw channels last",
    "cudnn auto-tuner", "tensorrt", "cuda graphs", "static shapes", "tensorrt 9.0", "tensorrt official demo", "ait",
    "aitemplate", "oneflow", "onediff", "onediff nexfort", "stable-fast", "stable fast", "auto1111 webui", "comfy",
    "fused qkv",
    "minsdxl", "vae slicing", "unet", "vae", "fewer steps", "dynamic shape", "static", "onnx runtime cuda",
    "onnx runtime tensorrt", "precomputed text embeddings", "turbo",
)  # fmt: skip
"""Techniques that multiply the same numbers, in whatever kernels: of others it is not known what they leave out."""

WINOGRAD = 2.25
"""How many times fewer multiplications F(2×2, 3×3) needs (Lavin & Gray, "Fast Algorithms for ConvNets", 2016)."""

EIGHT_BITS = ("int8", "fp8", "float8", "int8dq", "fp8dq", "w8a8")
_BITS = re.compile(r"(?:int|fp|float|nf|w|q)(\d)(?!\d)|\b(\d)[- _]?bits?\b")
"""Bits of a weight in the words of a technique: int8, NF4, w4a16, float8, Q8_0 (GGUF's), 8-bit."""
MOST_RULES = ("time", "rate", "speedup", "operations", "memory")


@dataclass(frozen=True)
class Attainable:
    """A claim beside what is possible. `status`: "possible", "unattainable", or "not bounded" with what is missing.

    `limit`: least seconds a picture or step, most times faster, or operations. `strict`: the same for a stock pipeline,
    where the words leave it open and the claim is beyond that. `at_roofline`: a speedup where both runs are at theirs.
    """

    label: str
    status: str
    claimed: float | None = None
    limit: float | None = None
    strict: float | None = None
    at_roofline: float | None = None
    arithmetic: str = ""
    assumption: str = ""


def attainable(claims: Sequence[Claim], say: Callable[[str], None] = lambda text: None) -> list[Attainable]:
    """A row for each claim about speed, operations or memory. Traces what it needs, once; `say` hears of it."""
    found = []
    for number, claim in enumerate(claims, 1):
        if claim.metric.kind not in MOST_RULES:
            continue
        say(f"bounds: claim {number} of {len(claims)}, {claim.label}")
        try:
            found.append(_bound(claim))
        except _Missing as missing:
            found.append(Attainable(claim.label, "not bounded", arithmetic=str(missing)))
        except Unsupported as error:
            found.append(Attainable(claim.label, "not bounded", arithmetic=error.problem))
    return found


def write(found: Sequence[Attainable], file: Path) -> None:
    """Keep the rows: a report reads them where it cannot trace. One line each, without what is not there."""
    lines = [
        json.dumps(
            {key: _short(value) for key, value in asdict(row).items() if value not in (None, "")}, ensure_ascii=False
        )
        for row in found
    ]
    write_atomically(file, "[\n" + ",\n".join(lines) + "\n]\n")


def read(file: Path) -> dict[str, Attainable]:
    """The rows that `write` kept, by label; none where there is no such file."""
    try:
        return {row["label"]: Attainable(**row) for row in json.loads(file.read_text(encoding="utf-8"))}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{file} holds no bounds ({error})", "write it again: optsd claims field") from error


class _Missing(Exception):
    """What is not stated, or not known, and without which there is no bound."""


def _bound(claim: Claim) -> Attainable:
    if claim.metric.change or not claim.value.numbers or claim.value.before is not None:
        raise _Missing("no figure to compare")
    rule = {
        "time": _least_time, "rate": _least_time, "speedup": _most_speed, "operations": _counted, "memory": _weights,
    }[claim.metric.kind]  # fmt: skip
    return rule(claim)


# --- what a claim runs


@dataclass(frozen=True)
class _Model:
    """What is run: its profile, on which device, in which readings. `assumed`: what was taken for what is unstated."""

    name: str
    pixels: tuple[int, int]
    device: Device
    run: Run
    assumed: tuple[str, ...]
    guidance_open: bool

    def profile(self, variant: str) -> Profile:
        return profile(self.name, variant, *self.pixels)

    def guided(self) -> Run:
        return Run(self.run.steps, self.run.batch, True, self.run.dtype, self.run.every)


def _model(claim: Claim, needs_steps: bool = True, needs_batch: bool = True, needs_device: bool = True) -> _Model:
    setting, assumed = claim.setting, []
    if not setting.model.known:
        raise _Missing("the model is unstated")
    name = names.architecture(setting.model)
    if name not in architectures.NAMES:
        raise _Missing(f"optsd.estimate does not know the architecture of {setting.model}")
    pixels = names.pixels(setting.size)
    if pixels is None:
        side = names.side(setting.model) or 512
        pixels = (side, side)
        assumed.append(f"{side}×{side} pixels, the checkpoint's own")
    device = devices.find(devices.DEFAULT)
    if needs_device:
        words = claim.metric.device or str(setting.device)
        key, meant = devices.said(words)
        if not claim.metric.device and not setting.device.known:
            raise _Missing("the GPU is unstated")
        if not key:
            raise _Missing(f"no data sheet of {words}")
        device = devices.find(key)
        assumed += [meant] if meant else []
    dtype = _dtype(claim, device, assumed)
    steps, batch = setting.steps.value, setting.batch.value
    if needs_steps and not isinstance(steps, int):
        raise _Missing("the number of steps is unstated")
    if needs_batch and not isinstance(batch, int):
        batch = None
    guidance = setting.guidance.value
    twice = isinstance(guidance, (int, float)) and guidance > 1 and "lcm" not in claim.technique.lower()
    inside = name in names.GUIDED_INSIDE  # a step is traced as it is, and there is no other
    every = names.parameter(claim, "N", "N") if "deepcache" in names.kinds(claim.technique) else 1
    if "deepcache" in names.kinds(claim.technique) and (not isinstance(every, int) or every < 2):
        raise _Missing("DeepCache's interval is unstated")
    run = Run(steps or 1, batch or 1, twice or inside, dtype, every if isinstance(every, int) else 1)
    return _Model(name, pixels, device, run, tuple(assumed), guidance is None and not inside)


def _dtype(claim: Claim, device: Device, assumed: list[str]) -> str:
    said = names.dtype(claim.setting.dtype)
    if said in ("float32", "float16", "bfloat16"):
        if said in device.operations_s:
            return said
        raise _Missing(f"the data sheet of {device.title} has no rate for {said}")
    assumed.append(f"float16 (the type is {'unstated' if not claim.setting.dtype.known else said})")
    return "float16"


def _floor(claim: Claim, model: _Model, part: str = "") -> tuple[float, float, str]:
    """Least seconds of a call, or of the denoiser's steps: in the kindest reading, and of a stock pipeline; of what."""
    methods = names.kinds(claim.technique)
    kinds: tuple[str, ...] = ("convolution", "linear", "attention", "other")
    device, precision, what = model.device, "", "all multiplications"
    unknown = methods - set(EXACT) - {"deepcache", "tome"}
    eight = frozenset(method for method in unknown if any(bits in method for bits in EIGHT_BITS))
    if eight:
        precision, what = "int8", "all multiplications in 8 bits"
        device.rate(precision)
    if unknown - eight:
        raise _Missing(f"how much work {', '.join(sorted(unknown - eight))} leaves out is not known")
    variant = "sdpa"
    if "deepcache" in methods:
        branch = claim.parameters.get("branch", 0)
        if branch not in (0, None):
            raise _Missing(f"optsd has no DeepCache of branch {branch}")
        variant, what = "deepcache:2", f"the multiplications that one whole step in {model.run.every} leaves"
    if "tome" in methods:
        kinds, what = ("convolution",), "the convolutions, which merging does not touch"
    made = model.profile(variant)

    def least(run: Run, kind: str) -> float:
        return made.arithmetic_s(run, device, part, (kind,), precision)

    rate = device.float16_accumulation if model.run.dtype == "float16" and not precision else 1.0
    kindest = sum(least(model.run, kind) / (WINOGRAD if kind == "convolution" else 1.0) for kind in kinds) / rate
    return kindest, sum(least(model.guided(), kind) for kind in kinds), what


def _least_time(claim: Claim) -> Attainable:
    per_step = claim.metric.per == "step"
    claimed = seconds(claim) if per_step else per_image(claim)
    if claim.metric.scope not in ("", "unet"):
        raise _Missing(f"no bound of the {claim.metric.scope} alone")
    if claimed is None and claim.metric.scope == "unet" and claim.metric.per == "image":
        claimed = seconds(claim)
    if claimed is None:
        raise _Missing("whether the seconds are of a call or a picture, or the batch, is unstated")
    model = _model(claim, needs_steps=not per_step)
    if per_step and not claim.setting.batch.known:
        raise _Missing("the batch is unstated")
    # The rate of a progress bar is of one step of the whole batch, the denoiser alone; so are seconds of the UNet.
    part = "denoiser" if per_step or claim.metric.scope else ""
    scale = 1 / (model.run.steps if per_step else model.run.batch)
    least, stock, what = _floor(claim, model, part)
    return _judged(claim, claimed, least * scale, stock * scale, model, f"{what} at {model.device.title}'s peak rate")


def _most_speed(claim: Claim) -> Attainable:
    name, figures = measured_as(claim)
    if claim.value.unit == "% of time saved" and claim.metric.over:
        name, figures = "speedup", {"expected": 100 / (100 - (claim.value.figure or 0))}
    if name != "speedup":
        raise _Missing("what the ratio is taken of, or its unit, leaves more than one reading")
    claimed = figures.get("expected", figures.get("low", figures.get("high", 0.0)))
    model = _model(claim, needs_batch=False)
    if claim.against.engine or "tensorrt" in claim.against.said.lower():
        raise _Missing(f"the baseline is another program ({claim.against.engine or 'TensorRT'})")
    named = claim.metric.over or claim.against.attention
    base = "baseline" if named in ("", "eager") else "sdpa"
    base_run = model.run
    if claim.against.dtype in ("float32", "float16", "bfloat16") and claim.against.dtype != model.run.dtype:
        base_run = Run(model.run.steps, model.run.batch, model.run.guided, claim.against.dtype)
    if claim.against.steps and claim.against.steps != base_run.steps:
        base_run = Run(claim.against.steps, base_run.batch, base_run.guided, base_run.dtype)
    base_run = Run(base_run.steps, base_run.batch, base_run.guided, base_run.dtype)
    floor, _, what = _floor(claim, model)
    before = model.profile(base).roofline_s(base_run, model.device)
    after = _after(claim, model)
    limit = before / SLOWEST / floor
    at_best = f"at the roofline of {model.device.title}, at most ÷ {SLOWEST}"
    says = f"baseline {before:.3g} s {at_best}; least {floor:.3g} s ({what})"
    gaps = [] if claim.against.attention or claim.metric.over else ["eager attention in the baseline"]
    beyond = claimed > limit and claim.value.bound != "about"
    return Attainable(
        claim.label, "unattainable" if beyond else "possible", claimed, limit, None,
        before / after if after else None, says, _assumed(claim, model, gaps),
    )  # fmt: skip


def _after(claim: Claim, model: _Model) -> float | None:
    """The technique's own run at the roofline; of a compiler, which may fuse everything, its multiplications alone."""
    methods = names.kinds(claim.technique)
    if methods & {"tome"}:
        return None
    if methods <= {"eager"}:
        return model.profile("baseline").roofline_s(model.run, model.device)
    if methods <= {"sdpa", "xformers", "flash", "eager", "fewer steps", "channels last", "cudnn auto-tuner"}:
        return model.profile("sdpa").roofline_s(model.run, model.device)
    if "deepcache" in methods and methods <= {"deepcache", "sdpa", "xformers"}:
        return model.profile("deepcache:2").roofline_s(model.run, model.device)
    return _floor(claim, model)[1] / (1 if model.run.guided else 2)


def _counted(claim: Claim) -> Attainable:
    """Operations as claimed beside those of the trace, in each way of counting that is in use."""
    _, factor = UNITS[claim.value.unit]
    claimed = of_value(claim.value).scaled(factor)
    model = _model(claim, needs_steps=claim.metric.per != "step", needs_batch=False, needs_device=False)
    methods = names.kinds(claim.technique)
    if methods - set(EXACT):
        raise _Missing(f"how much work {', '.join(sorted(methods - set(EXACT)))} leaves out is not known")
    traced = model.profile("sdpa")
    part, steps = "denoiser", (model.run.steps if claim.metric.per != "step" else 1)
    figures = {}
    for guided in (True,) if model.name in names.GUIDED_INSIDE else (True, False):
        run = Run(steps, 1, guided, model.run.dtype)
        for kinds, how in (((), "all products"), (("convolution", "linear"), "without attention's products")):
            for whole, rest in (("", "with text encoder and VAE"), (part, "of the denoiser")):
                if claim.metric.per == "step" and not whole:
                    continue
                words = f"{rest}, {how}, {'with' if guided else 'without'} guidance"
                figures[words] = traced.flops(run, whole, kinds)
    words, nearest = min(figures.items(), key=lambda pair: abs(pair[1] / ((claimed.low + claimed.high) / 2) - 1))
    off = (claimed.low + claimed.high) / 2 / nearest - 1
    unit = claim.value.unit
    says = f"traced {nearest / factor:.4g} {unit} {words}: {off:+.1%}"
    fits = abs(off) < 0.02
    assumption = "" if fits else "no way of counting that is known here gives the figure"
    return Attainable(
        claim.label,
        "possible" if fits else "not bounded",
        claim.value.figure,
        nearest / factor,
        None,
        None,
        says,
        assumption,
    )


def _weights(claim: Claim) -> Attainable:
    """Memory beside the weights that must be there: those of the denoiser, in the type that is claimed."""
    claimed = size(claim)
    if claimed is None or claim.metric.per or claim.metric.when in ("before", "after"):
        raise _Missing("whether weights are counted is unstated")
    words = claim.technique.lower()
    if any(word in words for word in ("offload", "low-vram", "slicing")) and "vae" not in words:
        raise _Missing("with offloading the weights need not be on the GPU")
    model = _model(claim, needs_steps=False, needs_batch=False, needs_device=False)
    width = {"float32": 2.0}.get(model.run.dtype, 1.0)
    if bits := [int(number) for found in _BITS.findall(words) for number in found if number]:
        width = min(bits) / 16
    weights = model.profile("sdpa").weights
    denoiser = next((weights[name] for name in ("unet", "transformer") if name in weights), max(weights.values()))
    limit = denoiser * width
    # Of gigabytes that may be 10⁹ or 2³⁰ bytes the larger is the kinder reading.
    kinder = claimed.scaled(2**30 / 1e9) if claim.value.unit == "GB" else claimed
    beyond = kinder.high < limit and claim.value.bound != "about"
    return Attainable(
        claim.label, "unattainable" if beyond else "possible", (claimed.low + claimed.high) / 2, limit, None, None,
        f"the denoiser's weights are {limit / 1e9:.3g} GB", _assumed(claim, model, ()),
    )  # fmt: skip


def _judged(claim: Claim, claimed: Interval, least: float, stock: float, model: _Model, what: str) -> Attainable:
    middle = (claimed.low + claimed.high) / 2
    beyond = claimed.high < least and claim.value.bound != "about"
    return Attainable(
        claim.label, "unattainable" if beyond else "possible", middle, least,
        stock if claimed.high < stock and not beyond else None, None,
        f"{middle:.4g} s claimed, at least {least:.4g} s: {what}; of a stock pipeline {stock:.4g} s",
        _assumed(claim, model, (), open_readings=True),
    )  # fmt: skip


def _assumed(claim: Claim, model: _Model, gaps: Sequence[str], open_readings: bool = False) -> str:
    said = [*model.assumed, *gaps]
    if model.guidance_open:
        said.append("no guidance")
    if open_readings:
        said.append("convolutions by Winograd's method")
        if model.device.float16_accumulation > 1 and model.run.dtype == "float16":
            said.append("sums in float16")
    if not claim.setting.batch.known:
        said.append("one picture a call")
    return "; ".join(said)


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def implies(claim: Claim) -> str:
    """What lets a figure be better than the bound of a stock pipeline, as far as its words leave that open."""
    doubles = names.architecture(claim.setting.model) not in names.GUIDED_INSIDE
    said = ["no guidance"] if doubles and not claim.setting.guidance.known else []
    key, _ = devices.said(str(claim.setting.device))
    if key and devices.find(key).float16_accumulation > 1 and claim.setting.dtype.value != "float32":
        said.append("sums in float16")
    if claim.setting.dtype.value == "float32":
        said.append("convolutions with fewer multiplications, as cuDNN's Winograd kernels have")
    return " or ".join(said) or "another reading"

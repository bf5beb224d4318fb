"""Writes docs/claims.md: which of the guide's figures can be true, and under which reading.

python -m optsd.estimate.claims
"""

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from optsd.estimate import Estimate, bounds, devices, estimate, roofline
from optsd.files import write_atomically
from optsd.judge.reading import read_claims
from optsd.records import Workload

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "expected" / "claims" / "guide.json"
DOCUMENT = ROOT / "docs" / "claims.md"
SPEED_DEVICES = ("a100", "h100", "rtx4090", "rtx3090", "t4")
PUBLISHED_S, PUBLISHED_STEPS = 1.604, 50  # diffusers with SDPA, batch 1, A100-80G: fal-ai's stable-diffusion-benchmarks
SCOPES = {"linear": "Linear layers of the UNet", "denoiser": "the whole UNet", "all": "UNet, VAE and text encoder"}
GIB = 2**30


def workload(batch: int) -> Workload:
    """The guide's, at that batch size."""
    fixed = read_claims(CLAIMS).workload
    return Workload("sd15", **{**fixed, "batch_size": batch})


def document() -> str:
    """The whole page. Traces four runs and converts them to each device: under a minute on two cores."""
    traces = {
        (batch, name): estimate("sd15", name, workload(batch), devices.DEFAULT)
        for batch in (1, 4)
        for name in ("baseline", "sdpa")
    }
    return "\n\n".join(
        (
            _introduction(),
            _answer(traces),
            _facts(traces),
            _verdicts(traces),
            _memory(traces),
            _speed(traces),
            _method(traces),
        )
    ) + "\n"  # fmt: skip


def on(trace: Estimate, device: str) -> Estimate:
    """The same trace on another GPU: what is computed and allocated does not depend on which one it is."""
    return replace(trace, device=devices.find(device))


def _introduction() -> str:
    guide = read_claims(CLAIMS).guide
    return "# Which of the guide's figures can be true\n\n" + _paragraph(
        "Written by `python -m optsd.estimate.claims`; do not edit by hand. No GPU was used: every figure below "
        "follows from SD v1.5's architecture, the workload (float16, 512×512, 50 steps, guidance 7.5) and data "
        f"sheets. The claims are those of `expected/claims/guide.json`, from {guide}."
    )


def _answer(traces: dict[tuple[int, str], Estimate]) -> str:
    eager, fused, one, one_fused = (
        traces[batch, name] for batch in (4, 1) for name in ("baseline", "sdpa")
    )  # fmt: skip
    scores = eager.peak.by_kind()["scores"] / eager.peak_bytes

    def saved(trace: Estimate, bits: int, scope: str) -> str:
        return _percent(1 - bounds.memory_after(trace, bits, scope) / trace.peak_bytes)

    def saved_alone(trace: Estimate, bits: int) -> str:
        return _percent(bounds.weight_share(trace, "denoiser") * (1 - bits / 16) / trace.peak_alone("unet"))

    def at_roofline(variant: str, device: str) -> str:
        techniques = bounds.techniques_of(variant)
        return f"{bounds.speed(techniques, on(eager, device), on(fused, device)).at_roofline:.2f}×"

    def on_both(variant: str) -> str:
        return f"{at_roofline(variant, 'a100')} and {at_roofline(variant, 'rtx3090')}"

    most = bounds.speed(("kvcache",), eager, fused).most
    points = (
        "**The baseline's ~6.2 GB is right**, at batch 4 with eager attention: "
        f"{eager.peak_alone('unet') / 1e9:.2f} GB for the UNet alone, {eager.peak_bytes / 1e9:.2f} GB with the other "
        f"components. At batch 1 it would be {one.peak_alone('unet') / 1e9:.2f} or {one.peak_bytes / 1e9:.2f} GB.",
        f"**INT8's 34 % and INT4's 55 % are impossible on that baseline.** {scores:.0%} of its peak are attention "
        f"scores, which weights do not change: {saved(eager, 8, 'all')} and {saved(eager, 4, 'all')} at best, and "
        f"{saved(eager, 8, 'linear')} and {saved(eager, 4, 'linear')} where Linear layers alone are quantized. Both "
        f"come true for the UNet alone with fused attention ({saved_alone(fused, 8)} and {saved_alone(fused, 4)} at "
        f"batch 4), whose baseline has {fused.peak_alone('unet') / 1e9:.2f} GB and not 6.2.",
        "**Flash Attention's 23 % is possible and modest:** "
        f"{_percent(1 - fused.peak_bytes / eager.peak_bytes)} of the whole pipeline at batch 4. At batch 1 it is "
        f"{_percent(1 - one_fused.peak_bytes / one.peak_bytes)}, the guide's figure, on a baseline half as large as "
        "the guide's. INT8 with Flash, 42 %, is possible in both.",
        "**Speed is not excluded, but INT8 and INT4 do not follow from every data sheet.** With everything at its "
        f"roofline on an A100 and an RTX 3090, INT8 gives {on_both('int8')} (1.39× claimed), INT4 {on_both('int4')} "
        f"(1.79×), Flash {on_both('flash')} (1.19×), INT8 with Flash {on_both('int8+flash')} (1.65×).",
        f"**A cache of the text's keys and values gives {most:.2f}× at most.**",
    )
    return "## The short answer\n\n" + "\n".join(f"- {point}" for point in points)


def _facts(traces: dict[tuple[int, str], Estimate]) -> str:
    eager = traces[4, "baseline"]
    per_latent = {
        kind: sum(
            one.flops for one in eager.operations if (one.stage, one.step, one.kind) == ("unet", 1, kind)
        ) / 8e9
        for kind in ("convolution", "linear", "attention")
    }  # fmt: skip
    decode = sum(one.flops for one in eager.operations if one.stage == "vae") / 4e9
    layers = {kind: bounds.weight_share(eager, kind) for kind in ("convolution", "linear")}
    whole = bounds.weight_share(eager, "denoiser")
    rows = [
        ("UNet parameters", f"{eager.parameters['unet'] / 1e6:.1f} M"),
        ("share of its bytes in Conv2d", f"{layers['convolution'] / whole:.1%}"),
        ("share of its bytes in Linear", f"{layers['linear'] / whole:.1%}"),
        ("one UNet call on one latent", f"{sum(per_latent.values()):.0f} GFLOP"),
        *((f"of that: {kind}", f"{flops:.0f} GFLOP") for kind, flops in per_latent.items()),
        ("VAE decode of one picture", f"{decode:,.0f} GFLOP"),
    ]
    for batch in (1, 4):
        for name, title in (("baseline", "eager"), ("sdpa", "fused")):
            trace = traces[batch, name]
            rows.append((f"peak, UNet alone, batch {batch}, {title} attention", _gib(trace.peak_alone("unet"))))
            rows.append((f"peak, whole pipeline, batch {batch}, {title} attention", _gib(trace.peak_bytes)))
    return "## Facts\n\n" + _markdown(("what", "figure"), rows)


def _verdicts(traces: dict[tuple[int, str], Estimate]) -> str:
    claims = read_claims(CLAIMS)
    found = bounds.bounds(claims, traces[4, "baseline"], traces[4, "sdpa"])
    rows = [
        (
            bound.claim.variant,
            bound.claim.metric,
            _range(bound.claim.low, bound.claim.high),
            "-" if bound.limit is None else f"{bound.limit:.3g}",
            f"**{bound.status}**" if bound.status == "unattainable" else bound.status,
            bound.arithmetic,
        )
        for bound in found
    ]
    beyond = sum(bound.status == "unattainable" for bound in found)
    return (
        "## The claims as the guide makes them\n\n"
        + _paragraph(
            "Batch 4, baseline with eager attention, on an A100 (the guide names no GPU). The bound is what the "
            f"technique gives when it is perfect. {beyond} of {len(found)} claims are beyond it by more than their "
            "tolerance."
        )
        + "\n\n"
        + _markdown(("variant", "metric", "claimed", "at most", "verdict", "arithmetic"), rows)
    )


def _memory(traces: dict[tuple[int, str], Estimate]) -> str:
    rows = []
    for batch in (4, 1):
        for base, base_title in (("baseline", "eager"), ("sdpa", "fused")):
            trace = traces[batch, base]
            for scope, title in SCOPES.items():
                whole = [1 - bounds.memory_after(trace, bits, scope) / trace.peak_bytes for bits in (8, 4)]
                weights = bounds.weight_share(trace, "denoiser" if scope == "all" else scope)
                alone = [weights * (1 - bits / 16) / trace.peak_alone("unet") for bits in (8, 4)]
                reached = zip((*whole, *alone), (0.34, 0.55) * 2, strict=True)
                rows.append((str(batch), base_title, title, *(_reached(share, claim) for share, claim in reached)))
    flash = []
    for batch in (4, 1):
        eager, fused = traces[batch, "baseline"], traces[batch, "sdpa"]
        sliced = bounds.memory_after(fused, 16, sliced=True)
        both = [bounds.memory_after(fused, bits, "denoiser", sliced=True) for bits in (8, 4)]
        flash.append(
            (
                str(batch),
                _percent(1 - fused.peak_bytes / eager.peak_bytes),
                _percent(1 - sliced / eager.peak_bytes),
                _percent(1 - fused.peak_alone("unet") / eager.peak_alone("unet")),
                *(_percent(1 - after / eager.peak_bytes) for after in both),
            )
        )
    return (
        "## Memory under every reading\n\n"
        + _paragraph(
            "The guide claims 34-35 % for INT8 and 55 % for INT4. What perfect quantization of the weights saves, by "
            "batch, attention of the baseline, and what is quantized; of the whole pipeline's peak, and of the UNet's "
            "alone. In bold: what reaches the claim, less its tolerance of a tenth."
        )
        + "\n\n"
        + _markdown(
            ("batch", "baseline's attention", "quantized", "INT8", "INT4", "INT8, UNet alone", "INT4, UNet alone"), rows
        )
        + "\n\n"
        + _paragraph(
            "The guide claims 23-25 % for Flash Attention and 42 % for INT8 with it. Against the eager baseline, with "
            "the UNet quantized whole and, but for the first column, pictures decoded one by one:"
        )
        + "\n\n"
        + _markdown(
            ("batch", "fused", "fused, decoding one by one", "fused, UNet alone", "INT8 + fused", "INT4 + fused"), flash
        )
    )


def _speed(traces: dict[tuple[int, str], Estimate]) -> str:
    rows = []
    for batch in (4, 1):
        for device in SPEED_DEVICES:
            eager, fused = on(traces[batch, "baseline"], device), on(traces[batch, "sdpa"], device)
            cells = []
            for variant in ("int8", "int4", "flash", "int8+flash", "kvcache"):
                found = bounds.speed(bounds.techniques_of(variant), eager, fused)
                cells.append(f"{found.at_roofline:.2f}× / {found.most:.2f}×")
            latency = roofline.seconds(eager) / batch
            rows.append((str(batch), eager.device.title, f"{latency:.3f} s", *cells))
    return (
        "## Speed\n\n"
        + _paragraph(
            "The guide claims 1.39× (INT8), 1.79× (INT4), 1.19× (Flash), 1.65× (INT8 with Flash). First what comes out "
            "where every operation runs at the data sheet's rates, then the bound, for which what the technique "
            f"changes may run {1 / bounds.SLOWEST:g} times slower than that in the baseline. A claim between the two "
            "needs a baseline that uses the device badly; a claim beyond the second cannot be true."
        )
        + "\n\n"
        + _markdown(
            ("batch", "device", "baseline's least time an image", "int8", "int4", "flash", "int8+flash", "kvcache"),
            rows,
        )
    )


def _method(traces: dict[tuple[int, str], Estimate]) -> str:
    fused = traces[1, "sdpa"]
    return "## How it is computed\n\n" + _paragraph(
        "The pipeline runs under torch's fake tensors, and every allocation and operation is followed: "
        "`optsd/estimate` says how. Peaks are of live tensors; libraries, their workspaces and what the allocator "
        "keeps come on top. Times are those of a roofline with one kernel for each operation. How far from it real "
        f"runs are: diffusers with SDPA needs {PUBLISHED_S} s for one image and {PUBLISHED_STEPS} steps on an A100 "
        "80 GB (fal-ai's stable-diffusion-benchmarks), where the roofline says "
        f"{roofline.seconds(fused):.3f} s: {roofline.of_roofline(PUBLISHED_S, fused):.0%} of it. Its "
        f"multiplications alone need {roofline.arithmetic_seconds(fused):.3f} s: an MFU of "
        f"{roofline.flops_utilization(PUBLISHED_S, fused):.0%}."
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _markdown(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _reached(share: float, claim: float) -> str:
    return f"**{_percent(share)}**" if share >= 0.9 * claim else _percent(share)


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at least {low:g}" if high is None else f"at most {high:g}"
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def main(arguments: list[str] | None = None) -> int:
    """Write the page; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m optsd.estimate.claims", description="Write docs/claims.md.")
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="default: %(default)s")
    write_atomically(parser.parse_args(arguments).output, document())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

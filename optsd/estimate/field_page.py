"""The text of docs/field.md: what the field has claimed, which of it can be checked, and how that ends."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from optsd.claims.findings import Finding, figure_of
from optsd.claims.schema import Claim, Published
from optsd.estimate import devices
from optsd.estimate.published import implies
from optsd.estimate.survey import Survey, plot, points
from optsd.files import write_atomically
from optsd.judge.published import measured_as
from optsd.metrics import MAX_PSNR_DB
from optsd.records import Results

COMMAND = "optsd claims field"


FIELDS = ("model", "device", "dtype", "steps", "scheduler", "guidance", "size", "batch")


def write(survey: Survey, document: Path) -> None:
    """The page, and beside it its plot."""
    picture = document.with_suffix(".png")
    write_atomically(picture, plot(survey))
    write_atomically(document, page(survey, picture.name))


def page(survey: Survey, picture: str) -> str:
    parts = (
        _introduction(survey), _short(survey), _by_source(survey), _contradictions(survey), _readings(survey),
        _differences(survey), _beyond(survey), _speedups(survey, picture), _counted(survey), _unchecked(survey),
        _measured(survey), _missing(survey), _method(survey),
    )  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(survey: Survey) -> str:
    return "# What has been claimed about accelerated Stable Diffusion\n\n" + _paragraph(
        "Papers, READMEs and documentation pages publish figures: 2.3× faster, 37.88 % less time, 21.66 it/s. This "
        f"page takes {len(survey.claims):,} of them from {len(survey.sources)} sources, as they were printed and "
        "with the gaps that they have, and asks three things of each. Does it follow from the other figures of its "
        "source? Do other sources agree? Does the GPU's data sheet allow it?"
    ) + "\n\n" + _paragraph(
        "Nothing was run for it, and nothing here is called wrong by a guess: each finding shows its arithmetic and "
        "names the assumption under which it holds. Most are a slip of the pen, a label or a missing word. A source "
        "that is not listed with a finding is not thereby proven right, and one that is may be right in every "
        "figure that matters: a document that prints its seconds beside its ratios can be checked, one that prints "
        "neither cannot. Much here can be checked only because its authors were open about what they measured."
    ) + "\n\n" + _paragraph(
        f"Written by `{COMMAND}`; do not edit by hand. If a figure of yours is misread, correct its row in "
        "`expected/claims/` (one file a source) and run the command again."
    )  # fmt: skip


def _short(survey: Survey) -> str:
    claims, findings = survey.claims, survey.checked.findings
    kinds = Counter(found.status for found in findings)
    can = sum(len(survey.checkable(source)) for source in survey.sources)
    compared = len(survey.checked.compared)
    bounded = sum(survey.bounded(claim) for claim in claims)
    wrong = sum(bool(survey.about(source, "contradiction")) for source in survey.sources)
    beyond, stock = survey.beyond(claims, strict=False), survey.beyond(claims, strict=True)
    gaps = Counter(name for claim in claims for name in claim.setting.missing())
    most = ", ".join(f"{_NAMES[name]} ({count / len(claims):.0%})" for name, count in gaps.most_common(3))
    whose = Counter(_source_of(survey, claim).source for claim in beyond)
    beyond_words = ", ".join(f"{count} of {_short_name(name)}" for name, count in whose.items())
    points = (
        f"**{can:,} of {len(claims):,} claims can be checked at all** without running anything: {compared} against "
        f"other figures of their source, {bounded} against a data sheet. The most frequent gaps: {most}.",
        f"**{kinds['contradiction']} contradictions in {wrong} sources**: two figures of one source that cannot "
        f"both be right, if the assumption holds that stands beside them. {kinds['reading']} more findings are "
        "about names: a figure that is something else than it is called.",
        f"**{len(beyond)} claims are beyond what a perfect technique gives**"
        + (f" ({beyond_words}), under the assumption that stands beside them" if beyond else "")
        + f". {len(stock)} more are possible, but not for a stock pipeline: they imply something that their words "
        "leave open, such as no guidance or sums in float16.",
        f"**{kinds['differs']} times two sources differ** about what their words describe alike.",
    )
    return "## In short\n\n" + "\n".join(textwrap.fill(f"- {each}", 118, subsequent_indent="  ",
        break_long_words=False, break_on_hyphens=False) for each in points)  # fmt: skip


_NAMES = {
    "model": "the model", "device": "the GPU", "dtype": "the type", "steps": "the steps", "scheduler": "the scheduler",
    "guidance": "the guidance", "size": "the size", "batch": "the batch",
}  # fmt: skip


def _by_source(survey: Survey) -> str:
    rows = []
    for source in sorted(survey.sources, key=lambda each: -len(each.claims)):
        can = survey.checkable(source)
        wrong = {label for found in survey.about(source, "contradiction") for label in found.claims[:1]}
        beyond, stock = survey.beyond(source.claims, strict=False), survey.beyond(source.claims, strict=True)
        named = {claim.label for claim in beyond} | wrong
        gaps = Counter(name for claim in source.claims for name in claim.setting.missing())
        most = ", ".join(name for name, count in gaps.most_common() if count > len(source.claims) / 2) or "-"
        rows.append((
            _short_name(source.source), str(len(source.claims)), str(len(can)),
            str(len([claim for claim in can if claim.label not in named])), str(len(wrong) or "-"),
            str(len(beyond) or "-"), str(len(stock) or "-"), most,
        ))  # fmt: skip
    heads = ("source", "claims", "can be checked", "consistent", "contradict", "beyond", "beyond a stock pipeline",
             "unstated in most")  # fmt: skip
    text = _paragraph(
        "*Can be checked*: compared with another figure of the source, or bounded by a data sheet. *Consistent*: "
        "checked, and nothing was found. *Contradict*: cannot be right together with another figure of the source, "
        "under the assumption that is named below. *Beyond*: more than a perfect technique gives, in the kindest "
        "reading of what is unstated. *Beyond a stock pipeline*: possible, but not with guidance, direct "
        "convolutions and sums in float32."
    )
    return f"## Source by source\n\n{text}\n\n{_markdown(heads, rows, '-rrrrrr-')}"


def _contradictions(survey: Survey) -> str:
    return _findings(
        survey, "contradiction", "Figures that cannot both be right",
        "Each holds under the assumption that it names, and under that alone.",
    )  # fmt: skip


def _readings(survey: Survey) -> str:
    return _findings(
        survey, "reading", "Something else than the name says",
        "These figures are right as they were computed; their name promises another quantity, or the words leave "
        "two rows alike. A share of time saved is the smaller number: 50 % of the time saved is twice as fast.",
    )  # fmt: skip


def _differences(survey: Survey) -> str:
    return _findings(
        survey, "differs", "Two sources, one setting, two figures",
        "By more than 10 % for a time, 1 % for a quality figure. No one need be wrong: versions differ, and so does "
        "what is unstated. It is what a reader should know before comparing with either.",
    )  # fmt: skip


def _findings(survey: Survey, status: str, title: str, words: str) -> str:
    found = [each for each in survey.checked.findings if each.status == status]
    if not found:
        return ""
    sources = {claim.label: claim.source for claim in survey.claims}
    lines: list[str] = []
    alike: dict[tuple[str, str], list[Finding]] = {}
    for each in found:
        alike.setdefault((sources[each.claims[0]].said, re.sub(r"[\d.]+", "#", each.says)), []).append(each)
    for each, *others in alike.values():
        source = sources[each.claims[0]]
        place = f", {source.place}" if source.place else ""
        more = ", ".join(str(claim) for claim in (other.says for other in others))
        lines.append(
            f"- **{_short_name(source.name)}**{place}: {each.says}. {each.arithmetic}. *Assumed: {each.assumption}.*"
            + (f" So too: {more}." if more else "")
        )
    wrapped = "\n".join(
        textwrap.fill(line, 118, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )
    return f"## {title}\n\n{_paragraph(words)}\n\n{wrapped}"


def _beyond(survey: Survey) -> str:
    rows = []
    for strict in (False, True):
        for claim in survey.beyond(survey.claims, strict):
            bound = survey.bounds[claim.label]
            limit = bound.strict if strict else bound.limit
            rows.append((
                _short_name(claim.source.name), claim.technique, f"{claim.setting.device}, batch {claim.setting.batch}",
                f"{claim.metric.said or claim.metric.kind.replace(chr(95), chr(32))} {figure_of(claim)}",
                "-" if limit is None else _in_its_unit(claim, limit),
                "a stock pipeline's" if strict else "a perfect technique's",
                bound.assumption if not strict else implies(claim),
            ))  # fmt: skip
    text = _paragraph(
        "The floor of a time are the multiplications that nobody can leave out, at the data sheet's peak rate; nothing "
        "real comes near it (diffusers with SDPA reaches 17 % on an A100). It is taken in the kindest reading: no "
        "guidance where none is stated (half the work), 3×3 convolutions by Winograd's method (2.25 times fewer "
        "multiplications), and on GeForce cards sums in float16 (twice the rate). A *stock pipeline* has guidance, "
        "direct convolutions and sums in float32. A figure between the two is possible, and tells what its words "
        "leave out."
    )
    heads = ("source", "technique", "run", "claimed", "bound", "whose bound", "it implies, or was assumed")
    return f"## Beyond a bound\n\n{text}\n\n{_markdown(heads, rows)}"


def _in_its_unit(claim: Claim, limit: float) -> str:
    """A bound in the unit of the claim."""
    if claim.metric.kind == "rate":
        return f"{1 / limit:.3g} {claim.value.unit}" if claim.value.unit in ("it/s", "images/s") else f"{limit:.3g} s"
    if claim.metric.kind == "time":
        batch = claim.setting.batch.value if claim.metric.per == "call" else 1
        return f"{limit * (batch or 1):.3g} s"
    if claim.metric.kind == "memory_saved":
        return f"{limit:.0%}"
    return f"{limit:.3g}×" if claim.metric.kind == "speedup" else f"{limit:.3g}"


def _speedups(survey: Survey, picture: str) -> str:
    found = points(survey)
    above = sum(claimed > roofline * 1.1 for claimed, roofline, _ in found)
    text = _paragraph(
        f"{len(found)} claimed speedups, each beside what comes out where baseline and technique both run at the "
        "roofline of the GPU that is named: every operation a kernel of its own at the data sheet's rates; of a "
        "compiler, which may fuse everything, the multiplications alone. On the line both are equal. Below it a "
        f"technique gives less than it could. {above} of the claims lie more than 10 % above it, which is no "
        "contradiction: there the baseline uses the GPU worse than the technique does."
    )
    alt = "Claimed speedup against the speedup at the roofline, one point a claim"
    return f"## Claimed speedups and the roofline's\n\n{text}\n\n![{alt}]({picture})"


def _counted(survey: Survey) -> str:
    rows = [
        (
            _short_name(claim.source.name),
            str(claim.setting.model),
            figure_of(claim),
            survey.bounds[claim.label].arithmetic,
        )
        for claim in survey.claims
        if claim.metric.kind == "operations" and survey.bounded(claim)
    ]
    if not rows:
        return ""
    text = _paragraph(
        "Published multiply-accumulates, beside the operations of a trace of the same architecture. Where they "
        "agree, they say how they were counted: without the products inside attention, some 16 % of SD v1.5's work."
    )
    return f"## Operations\n\n{text}\n\n{_markdown(('source', 'model', 'claimed', 'traced'), rows)}"


def _unchecked(survey: Survey) -> str:
    reasons = Counter(
        row.arithmetic.partition(" of ")[0] if "data sheet of" in row.arithmetic else row.arithmetic
        for row in survey.bounds.values()
        if row.status == "not bounded" and row.label not in survey.checked.compared
    )
    can = {claim.label for source in survey.sources for claim in survey.checkable(source)}
    quality = sum(claim.metric.kind in _QUALITY for claim in survey.claims if claim.label not in can)
    rows = [(reason, str(count)) for reason, count in reasons.most_common(12)]
    rows.append(
        ("a quality figure: only a run can check it, and it needs prompts, pictures and networks", str(quality))
    )
    spread = [
        row.strict / row.limit for row in survey.bounds.values()
        if row.strict and row.limit
    ]  # fmt: skip
    text = _paragraph(
        "Why a claim of speed, memory or operations that has no other figure beside it could not be bounded either. "
        "How far readings spread where something is unstated: guidance alone halves or doubles the work; a “% "
        "faster” of 53.88 is 1.54× as a rate gained and 2.17× as time saved; a GB is 7.4 % more or less than a GiB; "
        f"between the kindest bound and a stock pipeline's lies a factor of up to {max(spread, default=1):.2g}."
    )
    return f"## What cannot be checked, and why\n\n{text}\n\n{_markdown(('what is missing', 'claims'), rows, '-r')}"


def _share(flags: Iterable[bool]) -> float:
    known = list(flags)
    return sum(known) / len(known)


_QUALITY = ("fid", "kid", "is", "clip", "clip_iqa", "imagereward", "lpips", "psnr_db", "ssim")


def _measured(survey: Survey) -> str:
    """DeepCache's and ToMe's curves as measured on a CPU, beside what is claimed of them on GPUs."""
    if not survey.measured:
        return ""
    runs = survey.measured
    variants = dict.fromkeys(name for run in runs for name in run.variants if ":" in name)
    timed = [run for run in runs if any(run.get(name, "speedup") for name in variants)]
    quality = {"objects_right": "objects right", "lpips_shapes": "LPIPS (shapes)", "psnr_db": "PSNR, dB"}
    rows = []
    for variant in ("baseline", *variants):
        cells = [variant, *(_speedup_in(run, variant) for run in timed)]
        for name in quality:
            found = next((row for run in runs if (row := run.get(variant, name)) is not None), None)
            value = found.value if found else None
            equal = name == "psnr_db" and value == MAX_PSNR_DB
            written = "-" if value is None else f"{value:.1%}" if name == "objects_right" else f"{value:.3g}"
            cells.append("equal" if equal else written)
        rows.append((*cells, _claimed_of(survey, variant) if variant != "baseline" else "-"))
    drawn = next((run for run in runs if any(run.get("baseline", name) for name in quality)), runs[0])
    work = drawn.workload
    pictures = sum(image.get("variant") == "baseline" for image in drawn.images)
    cpu = (drawn.machine.get("cpu") or {}).get("name") or "a CPU"
    others = " and ".join(
        f"{each.model} ({each.width}×{each.height}, batch {each.batch_size}, {each.steps} steps"
        f"{'' if run.complete else '; that run was cut off'})"
        for run in timed
        if (each := run.workload).model != work.model
    )
    text = _paragraph(
        f"DeepCache and ToMe on a CPU ({cpu}, {work.dtype}, {work.steps} steps, guidance {work.guidance:g}), with the "
        f"model that ships with this project ({work.model}, {work.width}×{work.height}, {pictures} pictures; on the "
        "other one, a transformer, they mean nothing and are refused)"
        + (f", and as speed with random weights of {others}" if others else "")
        + ". The claims are of GPUs, of 50 steps and of networks of another size: another device, so no verdict on any "
        "of them. What can be compared is the shape of a curve: what one more step skipped, or one more token merged, "
        "costs in quality, beside the speed that is claimed for it. "
        + (
            "Speedups have their 95 % intervals where there were rounds enough."
            if timed
            else "Speed is missing: no machine quiet enough was at hand, and a ratio from a busy one says nothing. The "
            "command shows it as soon as a run in `reports/curves` has it."
        )
    )
    titles = [f"speedup, {run.workload.model} {run.workload.width}×{run.workload.height}" for run in timed]
    heads = ("variant", *titles, *quality.values(), "claimed speedup")
    commands = "\n".join(run.command for run in runs)
    return f"## What was measured here\n\n{text}\n\n{_markdown(heads, rows)}\n\n```console\n{commands}\n```"


def _speedup_in(run: Results, variant: str) -> str:
    found = run.get(variant, "speedup")
    if found is None or found.value is None:
        return "-"
    interval = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.2f}×{interval}"


def _claimed_of(survey: Survey, variant: str) -> str:
    """`1.45× to 1.5× (RTX 2080)`: what is claimed of a variant, GPU by GPU."""
    said: dict[str, list[float]] = {}
    for claim in survey.claims:
        name, figures = measured_as(claim)
        if claim.variant == variant and name == "speedup":
            said.setdefault(str(claim.setting.device), []).extend(figures.values())
    return "; ".join(
        f"{min(values):.3g}×{f' to {max(values):.3g}×' if max(values) > min(values) else ''} ({device})"
        for device, values in said.items()
    ) or "-"  # fmt: skip


def _missing(survey: Survey) -> str:
    claims = survey.claims
    rows = [
        (_NAMES[name].removeprefix("the "), f"{_share(name in each.setting.missing() for each in claims):.0%}")
        for name in FIELDS
    ]  # fmt: skip
    ratios = [claim for claim in claims if claim.metric.kind in ("speedup", "memory_saved")]
    kernels = sum(not (claim.against.attention or claim.metric.over) for claim in ratios) / max(1, len(ratios))
    rows.append(("attention kernel of the baseline, of a ratio", f"{kernels:.0%}"))
    clips = [claim for claim in claims if claim.metric.kind == "clip"]
    rows.append(
        ("CLIP's network, of a CLIP score", f"{sum(not each.metric.network for each in clips) / len(clips):.0%}")
    )
    fids = [claim for claim in claims if claim.metric.kind == "fid"]
    counts = sum(not (each.metric.count or each.images.known) for each in fids) / len(fids)
    rows.append(("number of pictures, of an FID", f"{counts:.0%}"))
    text = _paragraph(
        "What an author can do: `optsd claims template` prints what a claim needs to be checkable, as JSON and as a "
        "table for a README; `pytest bench --claim-out FILE` fills it in from a run."
    )
    return f"## What is most often missing\n\n{text}\n\n{_markdown(('unstated', 'of all claims'), rows, '-r')}"


def _method(survey: Survey) -> str:
    named = {devices.said(claim.metric.device or str(claim.setting.device))[0] for claim in survey.claims} - {""}
    sheets = [(devices.find(name).title, devices.find(name).source) for name in devices.DEVICES if name in named]
    secondary = sum(claim.source.seen != "primary" for claim in survey.claims)
    text = _paragraph(
        "The rows come from a collection made by hand; each names document, commit and table, and "
        f"{secondary} of them were seen in a secondary copy or a figure only. `optsd claims import` makes the files "
        "of them, `optsd claims check` the findings. A printed figure is taken as all that it can stand for (1.45 "
        "is 1.445 to 1.455, or cut off), so that rounding is never a contradiction. Bounds come from traces of the "
        "architectures under torch's fake tensors (no weights, no GPU), one for each model, technique and size, "
        "and these data sheets:"
    )
    return f"## How it is computed\n\n{text}\n\n{_markdown(('GPU', 'data sheet'), sheets)}"


def _source_of(survey: Survey, claim: Claim) -> Published:
    return next(source for source in survey.sources if claim in source.claims)


def _short_name(name: str) -> str:
    """A source's name without what explains it in parentheses after an equals sign."""
    return name.partition(" (=")[0].partition(", README.md of")[0]


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    rules = ["---:" if side == "r" else "---" for side in align] or ["---"] * len(heads)
    lines = [heads, rules, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)

"""Units that cannot be: a throughput that is a time, a ratio that is a percentage elsewhere, a part above the whole."""

from collections.abc import Iterator, Sequence

from optsd.claims import names
from optsd.claims.figures import per_image, seconds
from optsd.claims.findings import Finding, figure_of, middle, parameters_agree, quoted, same_run
from optsd.claims.schema import Claim
from optsd.claims.words import UNITS

NEAR, FAR = 0.15, 0.25
"""A unit is swapped where the figure is within 15 % of fitting the other way round, and 25 % off as it stands."""


def swapped(claims: Sequence[Claim]) -> Iterator[Finding | str]:
    """Pictures a second that are seconds a picture by the page's own times, at as many steps or scaled to them."""
    for claim in claims:
        figure = claim.value.figure
        if claim.metric.kind == "rate" and claim.value.unit == "s/it" and "per second" in claim.metric.said:
            yield Finding(
                "reading", (claim.label,), f"{figure_of(claim)} stands under a head in iterations per second",
                f"1 ÷ {figure:g} = {1 / figure:.3g} it/s" if figure else "", "the unit beside the figure is right",
            )  # fmt: skip
        if claim.value.unit not in ("images/s", "s/image") or not figure or figure <= 0:
            continue
        for found, shown, assumption, label in _times_of(claim, claims):
            yield claim.label
            stated = 1 / figure if claim.value.unit == "images/s" else figure
            if abs(stated / found - 1) > FAR and abs(stated * found - 1) < NEAR and abs(figure - 1) > 0.02:
                other = "s/image" if claim.value.unit == "images/s" else "images/s"
                yield Finding(
                    "contradiction", (claim.label, *label), f"{quoted(claim)} is {figure:g} {other}",
                    f"{shown} = {found:.3g} s a picture, {1 / found:.3g} images/s", assumption,
                )  # fmt: skip
                break


def _times_of(claim: Claim, claims: Sequence[Claim]) -> Iterator[tuple[float, str, str, tuple[str, ...]]]:
    """Seconds a picture of the same run: printed beside it, or of another row; the nearest evidence first."""
    for one in claim.printed:
        if one.unit in ("s", "ms") and " / " in one.said and len(one.numbers) == 2 and one.numbers[1] > 0:
            found = one.numbers[0] * UNITS[one.unit][1] / one.numbers[1]
            yield found, one.said.replace("/", "÷"), "the time beside it is its own", ()
    steps = claim.setting.steps.value
    for row in claims:
        if row is claim or names.methods(row.technique) != names.methods(claim.technique):
            continue
        seconds_a_picture = per_image(row)
        if seconds_a_picture is None or row.value.unit in ("images/s", "s/image") or not parameters_agree(claim, row):
            continue
        if same_run(claim, row):
            yield (
                middle(seconds_a_picture),
                f"{figure_of(row)} a {row.metric.per}",
                "both are of the same run",
                (row.label,),
            )
        elif same_run(claim, row, ("steps",)) and steps and row.setting.steps.value:
            scale = steps / row.setting.steps.value
            shown = f"{figure_of(row)} a {row.metric.per} at {row.setting.steps} steps × {steps}/{row.setting.steps}"
            yield middle(seconds_a_picture) * scale, shown, "the time grows with the number of steps", (row.label,)


def impossible(claims: Sequence[Claim]) -> Iterator[Finding | str]:
    """Figures that their own unit does not allow."""
    for claim in claims:
        value, kind, unit = claim.value, claim.metric.kind, claim.value.unit
        if not value.numbers or claim.metric.change:
            continue
        top = max(value.numbers)
        limit = {"% of time saved": 100.0, "cosine": 1.0, "cosine x100": 100.0, "2.5 x cosine": 2.5}.get(unit)
        if kind == "ssim":
            limit = 1.0
        if kind == "memory_saved" and unit in ("%", ""):
            limit = 100.0 if unit == "%" else 1.0
        if limit is not None and top > limit:
            yield Finding(
                "contradiction", (claim.label,), f"{quoted(claim)} is beyond what its unit allows",
                f"{top:g} > {limit:g}", "the unit is the one that is stated",
            )  # fmt: skip
        positive = kind in ("time", "rate", "memory", "size", "fid", "operations", "lpips") or unit == "x"
        if (positive and min(value.numbers) < 0) or (kind in ("time", "rate", "memory") and min(value.numbers) == 0):
            yield Finding(
                "contradiction", (claim.label,), f"{quoted(claim)} cannot be",
                f"{min(value.numbers):g} is not above zero",
                "the figure is the one that is printed",
            )  # fmt: skip


def parts(claims: Sequence[Claim]) -> Iterator[Finding | str]:
    """A part that takes longer than the whole: the UNet than the pipeline, all iterations than the call."""
    wholes = [(row, found) for row in claims if (found := per_image(row)) is not None]
    for claim in claims:
        found, steps = seconds(claim), claim.setting.steps.value
        if found is None or claim.value.bound:
            continue
        if claim.metric.scope in ("unet", "transformer") and claim.metric.per == "image":
            part, what = found, figure_of(claim)
        elif claim.metric.per == "step" and isinstance(steps, int) and isinstance(claim.setting.batch.value, int):
            part = found.scaled(steps / claim.setting.batch.value)
            what = f"{steps} iterations at {figure_of(claim)}, batch {claim.setting.batch}"
        else:
            continue
        for row, whole in wholes:
            if names.methods(row.technique) != names.methods(claim.technique) or not same_run(claim, row):
                continue
            if row.parameters != claim.parameters or claim.source.place != row.source.place or row.value.bound:
                continue
            yield claim.label
            # A progress bar's rate leaves out what its last iteration waits for: 2 % are no contradiction.
            if part.low > whole.high * 1.02:
                yield Finding(
                    "contradiction", (claim.label, row.label),
                    f"{what} take longer than the whole picture, {figure_of(row)}",
                    f"{middle(part):.3g} s > {middle(whole):.3g} s", "both are of the same run, on one device",
                )  # fmt: skip
                break


def said_otherwise(claims: Sequence[Claim]) -> list[Finding]:
    """The same numbers with another unit elsewhere: "5 to 300×" and "5 - 300 %"; headlines beyond their own tables."""
    found: list[Finding] = []
    known: set[tuple[str, ...]] = set()
    headlines = [claim for claim in claims if claim.metric.kind == "speedup" and claim.value.numbers]
    for claim in claims:
        said = [(one.numbers, one.unit, f"“{one.said}”", one.place) for one in claim.printed if one.place]
        if claim in headlines:
            said.append((claim.value.numbers, claim.value.unit, f"“{figure_of(claim)}”", claim.source.place))
            said += [
                (other.value.numbers, other.value.unit, f"“{figure_of(other)}”", other.source.said)
                for other in headlines
                if other is not claim and other.source.commit and other.source.commit == claim.source.commit
                and len(other.value.numbers) == 2
            ]  # fmt: skip
        for number, (numbers, unit, words, place) in enumerate(said):
            for again, other, other_words, elsewhere in said[number + 1 :]:
                if numbers != again or {unit[:1], other[:1]} != {"x", "%"}:
                    continue
                key = (claim.source.commit or claim.source.name, *sorted((unit[:1], other[:1])), *map(str, numbers))
                if key in known:
                    continue
                known.add(key)
                low, high = numbers[0], numbers[-1]
                percent = f"{low:g} to {high:g} % faster is {1 + low / 100:.3g}× to {1 + high / 100:.3g}×"
                found.append(Finding(
                    "contradiction", (claim.label,), f"{words} ({place}) is {other_words} ({elsewhere})",
                    f"{percent}, not {low:g}× to {high:g}×",
                    "both pages mean the same measurement",
                ))  # fmt: skip
    return found + _beyond_own_tables(claims, headlines)


def _beyond_own_tables(claims: Sequence[Claim], headlines: Sequence[Claim]) -> list[Finding]:
    """A speedup without seconds of its own that is larger than any ratio in the tables of its page."""
    found = []
    for claim in headlines:
        if claim.value.unit != "x" or claim.setting.batch.known or claim.setting.device.known:
            continue
        base = names.methods(claim.technique.lower().partition(" over ")[2])
        mine = names.methods(claim.technique) | base
        page = [row for row in claims if row.source.page == claim.source.page and seconds(row) is not None]
        ratios = [
            middle(before / after)
            for row in page if names.methods(row.technique) == mine and (after := seconds(row))
            for other in page if names.methods(other.technique) == base and same_run(row, other)
            and row.parameters == other.parameters and row.metric == other.metric and (before := seconds(other))
        ]  # fmt: skip
        if base and ratios and min(claim.value.numbers) > max(ratios) * 1.05:
            found.append(Finding(
                "contradiction", (claim.label,), f"{quoted(claim)} is beyond every ratio of the page's own tables",
                f"{len(ratios)} pairs of rows give {min(ratios):.3g}× to {max(ratios):.3g}×",
                "the sentence is about what the tables show",
            ))  # fmt: skip
    return found

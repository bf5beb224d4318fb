"""The field's claims, checked and bounded all together: what docs/field.md tells. `field_page` writes it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optsd.claims import checks, files, names
from optsd.claims.findings import Finding
from optsd.claims.schema import Claim, Published
from optsd.estimate import devices, published
from optsd.estimate.published import Attainable
from optsd.records import Results

MEASURED = Path("reports") / "curves"
"""Runs of techniques that are claimed, on a device that no claim names: shown beside the claims, and judged by none."""


@dataclass(frozen=True)
class Survey:
    """Everything that the page tells of, once found out."""

    sources: tuple[Published, ...]
    checked: checks.Checked
    bounds: Mapping[str, Attainable]
    measured: tuple[Results, ...] = ()  # the curves of MEASURED

    @property
    def claims(self) -> list[Claim]:
        return [claim for source in self.sources for claim in source.claims]

    def about(self, source: Published, *statuses: str) -> list[Finding]:
        labels = {claim.label for claim in source.claims}
        return [found for found in self.checked.findings if found.status in statuses and found.claims[0] in labels]

    def bounded(self, claim: Claim) -> bool:
        return claim.label in self.bounds and self.bounds[claim.label].status != "not bounded"

    def checkable(self, source: Published) -> list[Claim]:
        return [claim for claim in source.claims if claim.label in self.checked.compared or self.bounded(claim)]

    def beyond(self, claims: Iterable[Claim], strict: bool) -> list[Claim]:
        """What is beyond its bound; `strict`: only beyond that of a stock pipeline."""
        found = [claim for claim in claims if self.bounded(claim)]
        if strict:
            return [claim for claim in found if self.bounds[claim.label].strict is not None]
        return [claim for claim in found if self.bounds[claim.label].status == "unattainable"]


def made_of(sources: Sequence[Published], measured: Path, bounds: Path, say: Callable[[str], None]) -> Survey:
    """Check and bound every claim, and keep the bounds: minutes where none are kept. `measured`: a folder of runs."""
    claims = [claim for source in sources for claim in source.claims]
    rows = [*_guide(sources, say), *published.attainable(_not_the_guide(claims), say)]
    published.write(rows, bounds)
    curves = [Results.read(file) for file in sorted(measured.glob("*/results.json"))]
    return Survey(tuple(sources), checks.check(claims), {row.label: row for row in rows}, tuple(curves))


def _not_the_guide(claims: Iterable[Claim]) -> list[Claim]:
    return [claim for claim in claims if not claim.label.startswith(f"{files.GUIDE} ")]


def _guide(sources: Sequence[Published], say: Callable[[str], None]) -> list[Attainable]:
    """The guide's claims by the closer bounds of `optsd.estimate.bounds`, which know its memory; on an A100."""
    from optsd.estimate import bounds, estimate
    from optsd.judge.published import row_of
    from optsd.judge.reading import read_claims
    from optsd.records import Workload

    mine = next((source for source in sources if Path(source.file).stem == files.GUIDE), None)
    if mine is None:
        return []
    say("bounds: the guide's")
    claims = read_claims(Path(mine.file))
    work = Workload("sd15", **claims.workload)
    eager, fused = (estimate("sd15", name, work, devices.DEFAULT) for name in ("baseline", "sdpa"))
    judged = [claim for claim in mine.claims if row_of(claim)]
    labels = {id(claim): each.label for claim, each in zip(claims.claims, judged, strict=True)}
    return [
        Attainable(
            labels[id(bound.claim)], bound.status, bound.claim.low if bound.claim.low is not None else bound.claim.high,
            bound.limit, arithmetic=bound.arithmetic,
            assumption=f"{eager.device.title}, and eager attention in the baseline (docs/claims.md has other readings)",
        )
        for bound in bounds.bounds(claims, eager, fused)
    ]  # fmt: skip


# --- the plot

_FAMILIES = (
    ("DeepCache", "int8", ("deepcache",)),
    ("fewer steps", "claim", ("fewer steps",)),
    ("attention kernels", "vae", ("sdpa", "xformers", "flash", "eager")),
    ("compilers and engines", "int4", ()),
)


def points(survey: Survey) -> list[tuple[float, float, str]]:
    """(claimed, at the roofline, family) of every claimed speedup that has both."""
    found = []
    for claim in survey.claims:
        bound = survey.bounds.get(claim.label)
        if claim.metric.kind != "speedup" or bound is None or not bound.at_roofline or not bound.claimed:
            continue
        methods = names.methods(claim.technique)
        family = next(
            name for name, _, words in _FAMILIES if not words or ("compile" not in methods and methods & {*words})
        )
        found.append((bound.claimed, bound.at_roofline, family))
    return found


def plot(survey: Survey) -> bytes:
    """The speedups as PNG."""
    import matplotlib as mpl

    from optsd.report.drawing import COLOURS, STYLE, finish, new_figure

    found = points(survey)
    with mpl.rc_context(STYLE):
        figure = new_figure(4.4)
        axes = figure.add_subplot()
        low = 0.9 * min((min(point[:2]) for point in found), default=1)
        high = 1.1 * max((max(point[:2]) for point in found), default=2)
        axes.plot([low, high], [low, high], color=COLOURS["muted"], linewidth=0.8, linestyle="--")
        for name, colour, _ in _FAMILIES:
            mine = [point for point in found if point[2] == name]
            axes.scatter(
                [point[1] for point in mine], [point[0] for point in mine], s=16, alpha=0.7, linewidths=0,
                color=COLOURS[colour], label=f"{name} ({len(mine)})",
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        ticks = [tick for tick in (0.5, 1, 1.5, 2, 3, 5, 10) if low <= tick <= high]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, labels=[f"{tick:g}×" for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.set_xlabel("speedup with both runs at the roofline")
        axes.set_ylabel("claimed speedup")
        axes.set_title("Claimed speedups and what the data sheets give")
        axes.legend(loc="upper left")
    return finish(figure, "field", "", "", "Claimed speedup against the roofline's", {}).png

"""One setting with two figures: in two places of a source, and in two sources."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from optsd.claims import names
from optsd.claims.figures import Interval, as_printed, last_place, of_value, per_image, seconds, size
from optsd.claims.findings import Finding, agree, figure_of, gaps, middle, parameters_agree, quoted, says
from optsd.claims.ratios import pairs_of
from optsd.claims.schema import Claim


def twice(claims: Sequence[Claim]) -> Iterator[Finding | str]:
    """One setting with two figures in two places of a source, or in two rows that the words do not tell apart."""
    groups: defaultdict[tuple, list[Claim]] = defaultdict(list)
    places: defaultdict[tuple, float] = defaultdict(lambda: 1.0)
    for claim in claims:
        value, metric = claim.value, claim.metric
        if value.figure is None or value.bound or value.before is not None or _follows(claim, claims):
            continue
        what = (claim.setting, names.methods(claim.technique), claim.against.said,
                metric.kind, metric.per, metric.scope, metric.when, metric.counted, metric.change, metric.over,
                metric.device, metric.statistic, metric.kind == "warm_up" and metric.said, value.unit)  # fmt: skip
        groups[what].append(claim)
        # A column is printed with as many places as its longest figure: 29.5 beside 29.46 is 29.50.
        column = (claim.source.said, metric.said, value.unit)
        places[column] = min(places[column], last_place(value.figure))
    pairs: list[tuple[Claim, list[Claim]]] = []
    for alike in groups.values():
        for claim in alike:
            # A row that leaves a parameter open is one of those that give it: it need agree with one of them only.
            rivals = [row for row in alike if row is not claim and _one_thing(claim, row) and _less_said(claim, row)]
            if not rivals:
                continue
            yield claim.label

            def printed(row: Claim) -> Interval:
                return of_value(row.value, step=places[row.source.said, row.metric.said, row.value.unit])

            if not any(printed(claim).meets(printed(row)) for row in rivals):
                pairs.append((claim, rivals))
    done: set[frozenset[str]] = set()
    rows = [
        (claim.technique, claim.source.said) for claim, rivals in pairs if claim.source.said == rivals[0].source.said
    ]
    for claim, rivals in pairs:
        row = rivals[0]
        if frozenset((claim.label, row.label)) in done:
            continue
        done.add(frozenset((claim.label, row.label)))
        figures = " and ".join(dict.fromkeys(figure_of(each) for each in (claim, *rivals)))
        same_place = claim.source.place == row.source.place
        # Where every figure of a row is there twice, the table has two rows of one name, and its caption knows why.
        whole_rows = same_place and rows.count((claim.technique, claim.source.said)) > 2
        where = "in two rows of one place" if same_place else f"in {claim.source.place} and {row.source.place}"
        yield Finding(
            "reading" if whole_rows else "contradiction", (claim.label, *(each.label for each in rivals)),
            f"{claim.technique}: one setting has {figures} as {claim.metric.said or claim.metric.kind}, {where}",
            f"{figure_of(claim)} ≠ {figure_of(row)}",
            "the rows describe the same run: nothing in their words tells them apart" + gaps(claim, row),
        )  # fmt: skip


def _follows(claim: Claim, claims: Sequence[Claim]) -> bool:
    """Whether a ratio has figures that it is the ratio of: those are compared, not it."""
    return claim.metric.kind in ("speedup", "memory_saved") and bool(pairs_of(claim, claims))


def _one_thing(one: Claim, other: Claim) -> bool:
    same_words = one.technique.lower() == other.technique.lower() or one.source.said != other.source.said
    return (
        same_words
        and set(one.parameters) == set(other.parameters)
        and parameters_agree(one, other)
        and agree(one.images, other.images)
        and (not one.prompts or not other.prompts or one.prompts == other.prompts)
        and all(
            not getattr(one.metric, part)
            or not getattr(other.metric, part)
            or getattr(one.metric, part) == getattr(other.metric, part)
            for part in ("network", "reference", "resized", "count")
        )
    )


def _less_said(claim: Claim, row: Claim) -> bool:
    """Whether the claim says no more than the row: what is compared is the vaguer with the clearer."""
    mine = {key for key in claim.parameters if says(claim, key)}
    return mine <= {key for key in row.parameters if says(row, key)}


def spread(claims: Sequence[Claim]) -> Iterator[Finding | str]:
    """A mean that is not the mean of its readings, or lies outside of its own minimum and maximum."""
    for claim in claims:
        figure, value = claim.value.figure, claim.value
        if figure is None:
            continue
        if value.readings:
            yield claim.label
            mean = sum(value.readings) / len(value.readings)
            if not as_printed(figure, 1.0).meets(as_printed(mean, 0).plus(0)) and "mean" in claim.metric.statistic:
                yield Finding(
                    "contradiction", (claim.label,), f"{quoted(claim)} is not the mean of its readings",
                    f"mean of {', '.join(f'{each:g}' for each in value.readings)} = {mean:.5g}",
                    "these are all its readings",
                )  # fmt: skip
        if value.low is not None and value.high is not None:
            yield claim.label
            if not Interval(value.low, value.high).meets(as_printed(figure)):
                yield Finding(
                    "contradiction", (claim.label,), f"{quoted(claim)} lies outside of its own minimum and maximum",
                    f"{value.low:g} to {value.high:g}", "all three are of the same readings",
                )  # fmt: skip


def between(claims: Iterable[Claim], apart: float = 0.10, quality_apart: float = 0.01) -> list[Finding]:
    """Sources that differ by more than a share about the same model, GPU, technique and workload."""
    groups: defaultdict[tuple, list[tuple[Claim, float]]] = defaultdict(list)
    for claim in claims:
        key, figure = _comparable(claim)
        if figure is not None:
            groups[key].append((claim, figure))
    found: dict[tuple, tuple[float, Finding]] = {}
    for key, rows in groups.items():
        for claim, figure in rows:
            others: defaultdict[str, list[tuple[Claim, float]]] = defaultdict(list)
            for row, other in rows:
                if row.source.name != claim.source.name and _compatible(claim, row) and _less_said(claim, row):
                    others[row.source.name].append((row, other))
            for name, candidates in others.items():
                # What one of them says suffices: the words may leave open which of them it is.
                row, other = min(candidates, key=lambda pair: _apart(figure, pair[1]))
                limit = apart if claim.metric.kind in ("time", "rate", "memory") else quality_apart
                if _apart(figure, other) <= limit or of_value(claim.value).meets(of_value(row.value)):
                    continue
                pair = (key, frozenset((claim.source.name, name)), str(claim.setting.size), str(claim.setting.batch))
                if pair not in found or found[pair][0] < _apart(figure, other):
                    alike = [each for each, _ in sorted(candidates, key=lambda each: each[1])]
                    found[pair] = (_apart(figure, other), _differing(claim, figure, alike, other))
    return [finding for _, finding in found.values()]


def _differing(claim: Claim, figure: float, others: Sequence[Claim], nearest: float) -> Finding:
    setting = claim.setting
    about = ", ".join(map(str, (setting.model, setting.device, claim.technique, f"batch {setting.batch}")))
    theirs = " and ".join(dict.fromkeys(figure_of(each) for each in others))
    return Finding(
        "differs", (claim.label, *(each.label for each in others)),
        f"{about}: {figure_of(claim)} in {claim.source.name}, {theirs} in {others[0].source.name}",
        f"{max(figure, nearest):.4g} ÷ {min(figure, nearest):.4g} = {_apart(figure, nearest) + 1:.3g}",
        "versions aside, their words describe the same run" + gaps(claim, others[0]),
    )  # fmt: skip


def _comparable(claim: Claim) -> tuple[tuple, float | None]:
    """What must be equal for two sources' figures to be about the same thing, and the figure in one unit."""
    metric, setting = claim.metric, claim.setting
    chip = names.device(setting.device)[0]
    methods = names.methods_of(claim)
    speed = metric.kind in ("time", "rate", "memory")
    model = names.architecture(setting.model) or names.weights(setting.model)
    if (
        not setting.model.known
        or claim.value.bound
        or metric.change
        or (not methods and speed and not claim.against.known)
    ):
        return (), None
    if speed and not setting.device.known:
        return (), None
    if metric.kind == "memory":
        found = size(claim)
        what: tuple = ("memory", metric.when, metric.counted, metric.per)
    elif metric.kind == "rate" and metric.per == "step":
        found, what = seconds(claim), ("step",)
    elif metric.kind in ("time", "rate"):
        found, what = per_image(claim), ("image",)
    elif metric.kind in ("fid", "clip", "imagereward") and claim.value.figure is not None:
        found, what = of_value(claim.value), (metric.kind, claim.value.unit)
        model = names.weights(setting.model)
    else:
        return (), None
    if found is None or found.low <= 0:
        return (), None
    return (*what, model, chip if speed else "", methods), middle(found)


def _compatible(one: Claim, other: Claim) -> bool:
    """Equal wherever both state something, and little enough unstated for the comparison to mean something."""
    gaps = 0
    for name in ("dtype", "steps", "scheduler", "guidance", "size", "batch"):
        mine, theirs = getattr(one.setting, name), getattr(other.setting, name)
        counts = name not in ("guidance", "scheduler") and not (name == "steps" and one.metric.per == "step")
        if mine.known and theirs.known:
            spelled = {"dtype": names.dtype, "scheduler": names.scheduler}.get(name, str)
            speed = name == "scheduler" and one.metric.kind in ("time", "rate", "memory")
            if spelled(mine.value) != spelled(theirs.value) and not speed:
                return False
        elif counts and mine.known != theirs.known:
            gaps += 1
        elif counts and name in ("size", "batch"):
            return False
    boards = {names.device(claim.setting.device)[1] for claim in (one, other)} - {""}
    return gaps <= 1 and len(boards) <= 1 and parameters_agree(one, other)


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other) - 1

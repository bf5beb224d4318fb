"""`optsd claims`: what others have published, whether it follows from itself, and what data sheets allow."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from optsd.claims import checks, files, rows
from optsd.claims.schema import Claim, Published, to_json
from optsd.errors import BadInput

BOUNDS = Path("expected") / "bounds.json"
EXAMPLES = """examples:
  optsd claims list                     every source, and what it most often leaves unstated
  optsd claims show tome                its claims; optsd claims show tome 19 tells one in full
  optsd claims check                    arithmetic, agreement between sources, the roofline; runs nothing
  optsd claims check deepcache,tome     of these two; a file works as well
  optsd claims import FILE              a collection of claims, a JSON list of rows, as a file a source
  optsd claims convert OLD NEW          a file of schema 1 as one of schema 2
  optsd claims template                 what an author should state, as JSON; --markdown for a README
  optsd claims field                    docs/field.md and its plot, from all claims (minutes, the first time)

NAMES are the names of files in expected/claims, or a word of them: tome is tome-sd-readme and diffusers-docs-tome.
check ends with status 1 where a source contradicts itself or is beyond what its GPU's data sheet allows."""


def main(arguments: list[str]) -> int:
    """Run one of the sub-commands; the exit status."""
    chosen = _parser().parse_args(arguments)
    return chosen.run(chosen)


def _list(chosen: argparse.Namespace) -> int:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title_justify="left")
    for head, side in (("name", "left"), ("claims", "right"), ("source", "left"), ("most often unstated", "left")):
        table.add_column(head, justify=side, overflow="fold")  # type: ignore[arg-type]
    for published in _published(chosen):
        gaps = Counter(name for claim in published.claims for name in claim.setting.missing())
        listed = ", ".join(f"{name} {count}" for name, count in gaps.most_common(3)) or "nothing"
        table.add_row(Path(published.file).stem, str(len(published.claims)), published.source, listed)
    _console().print(table)
    return 0


def _show(chosen: argparse.Namespace) -> int:
    claims = [claim for published in _published(chosen) for claim in published.claims]
    if chosen.number is not None:
        wanted = [claim for claim in claims if claim.label.endswith(f" {chosen.number}")]
        if not wanted:
            raise BadInput(f"{chosen.names} has no claim {chosen.number}", f"give a number from 1 to {len(claims)}")
        for claim in wanted:
            print(f"{claim.label}: {claim.source.name}, {claim.source.said}")
            print(json.dumps(to_json(claim), indent=2, ensure_ascii=False))
            print(f"unstated: {', '.join(claim.setting.missing()) or 'nothing'}")
            _print_bound(claim)
        return 0
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for head in ("claim", "technique", "model", "GPU", "size", "batch", "steps", "metric", "figure", "against"):
        table.add_column(head, overflow="fold")
    for claim in claims:
        setting, value = claim.setting, claim.value
        figure = value.said or ("" if value.figure is None else f"{value.figure:g}")
        table.add_row(
            claim.label, claim.technique, str(setting.model), str(setting.device), str(setting.size),
            str(setting.batch), str(setting.steps), claim.metric.said or claim.metric.kind,
            f"{figure} {value.unit_said or value.unit}".strip(), claim.against.said,
        )  # fmt: skip
    _console().print(table)
    return 0


def _print_bound(claim: Claim) -> None:
    from optsd.estimate import published

    bound = published.read(BOUNDS).get(claim.label)
    if bound:
        print(f"{bound.status}: {'; '.join(filter(None, (bound.arithmetic, bound.assumption)))}")


def _check(chosen: argparse.Namespace) -> int:
    published = _published(chosen)
    claims = [claim for each in published for claim in each.claims]
    checked = checks.check(claims)
    findings = list(checked.findings)
    bounds = _bounds(claims) if chosen.bounds else {}
    findings += beyond(claims, bounds)
    findings.sort(key=lambda found: checks.STATUSES.index(found.status))
    if chosen.json:
        print(json.dumps([asdict(found) for found in findings], indent=2, ensure_ascii=False))
    else:
        _print_findings(findings, claims, checked.compared)
        _print_gaps(claims, checked.compared, bounds)
    return int(any(found.status in ("contradiction", "unattainable") for found in findings))


def beyond(claims: Sequence[Claim], bounds: dict) -> list[checks.Finding]:
    """What is unattainable, or only without what a stock pipeline has, by the bounds of `optsd.estimate.published`."""
    from optsd.estimate.published import implies

    return [
        checks.Finding(
            "unattainable", (claim.label,),
            f"{claim.technique}: {claim.metric.said or claim.metric.kind} {_figure(claim)} is beyond the bound",
            bounds[claim.label].arithmetic, bounds[claim.label].assumption or "the workload is the one that is stated",
        )
        for claim in claims
        if claim.label in bounds and bounds[claim.label].status == "unattainable"
    ] + [
        checks.Finding(
            "implies", (claim.label,),
            f"{claim.technique}: {claim.metric.said or claim.metric.kind} {_figure(claim)} implies {implies(claim)}",
            bounds[claim.label].arithmetic, "GPU and workload are the ones that are stated",
        )
        for claim in claims
        if claim.label in bounds and bounds[claim.label].strict is not None
    ]  # fmt: skip


def _figure(claim: Claim) -> str:
    number = claim.value.said or f"{claim.value.figure:g}"
    return f"{number} {claim.value.unit_said or claim.value.unit}".strip()


def _bounds(claims: Sequence[Claim]) -> dict:
    """The kept bounds of these claims; what is not kept is traced, and the terminal hears of it."""
    from optsd.estimate import published

    kept = published.read(BOUNDS)
    missing = [claim for claim in claims if claim.label not in kept and claim.metric.kind in published.MOST_RULES]
    if missing:
        kept |= {row.label: row for row in published.attainable(missing, _progress())}
    return kept


def _print_findings(findings: Sequence[checks.Finding], claims: Sequence[Claim], compared: frozenset[str]) -> None:
    titles = {
        "contradiction": "Contradictions: both figures cannot be right, if the assumption holds",
        "unattainable": "Beyond what the data sheet allows",
        "implies": "Possible, but not for a stock pipeline: with guidance, direct convolutions and sums in float32",
        "reading": "Something else than the name says",
        "differs": "Two sources, one setting, two figures",
    }
    sources = {claim.label: claim.source.name for claim in claims}
    for status, title in titles.items():
        mine = [found for found in findings if found.status == status]
        if mine:
            print(f"{title} ({len(mine)})\n")
        for found in mine:
            print(f"  {sources[found.claims[0]]} ({_labels(found.claims)})")
            print(f"    {found.says}\n    {found.arithmetic}\n    assuming that {found.assumption}\n")


def _print_gaps(claims: Sequence[Claim], compared: frozenset[str], bounds: dict) -> None:
    """What could be checked, what could not and why, and how far the readings of what is unstated lie apart."""
    mine = [bounds[claim.label] for claim in claims if claim.label in bounds]
    bounded = [row for row in mine if row.status != "not bounded"]
    can = compared | {row.label for row in bounded}
    print(
        f"{len(claims)} claims: {len(compared)} compared with other figures of their source, {len(bounded)} with a data"
    )
    print(f"sheet, {len(claims) - len(can)} with neither")
    reasons = Counter(row.arithmetic for row in mine if row.status == "not bounded" and row.label not in compared)
    for reason, count in reasons.most_common(5):
        print(f"  {count:>4}  {reason}")
    spread = [row.strict / row.limit for row in bounded if row.strict and row.limit]
    if spread:
        print(f"readings of what is unstated lie up to {max(spread):.2g}× apart: guidance, convolutions, sums")
    gaps = Counter(name for claim in claims for name in claim.setting.missing())
    if gaps:
        listed = ", ".join(f"{name} in {count / len(claims):.0%}" for name, count in gaps.most_common(5))
        print(f"most often unstated: {listed}")


def _labels(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _import(chosen: argparse.Namespace) -> int:
    written = files.publish(rows.read_rows(chosen.file), chosen.folder)
    claims = [claim for file in written for claim in files.read(file).claims]
    words = Counter(claim.metric.kind for claim in claims)
    print(f"{len(claims)} claims of {len(written)} sources written to {chosen.folder}")
    if words["other"]:
        print(f"{words['other']} have a metric that is named and not understood: they stay words")
    return 0


def _convert(chosen: argparse.Namespace) -> int:
    from optsd.judge.reading import read_all_claims

    data = files.load(chosen.old)
    if data.get("schema") != 1 or "claims" not in data:
        raise BadInput(f"{chosen.old} is no file of claims of schema 1", "schema 2 needs no conversion")
    before = read_all_claims(chosen.old)  # refuses, by row, what the old schema did not allow
    files.write(files.from_schema_1(data), chosen.new)
    print(f"{len(before[0].claims)} claims written to {chosen.new}")
    return 0


def _template(chosen: argparse.Namespace) -> int:
    from optsd.claims import template

    print(template.markdown() if chosen.markdown else template.json_text(), end="")
    return 0


def _field(chosen: argparse.Namespace) -> int:
    from optsd.estimate import field_page, survey

    measured = chosen.document.parent.parent / survey.MEASURED
    field_page.write(survey.made_of(_published(chosen), measured, BOUNDS, _progress()), chosen.document)
    print(f"written: {chosen.document}, {chosen.document.with_suffix('.png')}, {BOUNDS}")
    return 0


def _published(chosen: argparse.Namespace) -> list[Published]:
    folder = files.or_shipped(chosen.folder) if chosen.folder == files.FOLDER else chosen.folder
    if not chosen.names and not list(folder.glob("*.json")):
        raise BadInput(f"no claims in {folder}", "run it where expected/claims is, or give --folder or a file")
    found = files.find(chosen.names, folder) if chosen.names else sorted(folder.glob("*.json"))
    return [files.read(file) for file in found]


def _progress() -> Callable[[str], None]:
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)


def _console():
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optsd claims", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], help_text: str, names: bool = True):
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(run=run)
        command.add_argument("--folder", type=Path, default=files.FOLDER, help="of claims (default: %(default)s)")
        if names:
            command.add_argument("names", nargs="?", default="", metavar="NAMES", help="names or a file; default: all")
        return command

    add("list", _list, "the sources, and what they leave unstated")
    show = add("show", _show, "the claims of a source, or one of them in full")
    show.add_argument("number", nargs="?", type=int, help="of a claim: the number in its label")
    check = add("check", _check, "what follows from what, and what cannot be; runs nothing")
    check.add_argument("--json", action="store_true", help="the findings as JSON")
    check.add_argument("--no-bounds", dest="bounds", action="store_false", help="leave out what the data sheets allow")
    make = add("import", _import, "a JSON list of rows as files of claims, one a source", names=False)
    make.add_argument("file", type=Path)
    convert = add("convert", _convert, "a file of schema 1 as one of schema 2", names=False)
    convert.add_argument("old", type=Path)
    convert.add_argument("new", type=Path)
    template = add("template", _template, "what an author should state, so that a claim can be checked", names=False)
    template.add_argument("--markdown", action="store_true", help="as a table for a README")
    field = add("field", _field, "write docs/field.md, its plot and the bounds from all claims")
    field.add_argument("--document", type=Path, default=Path("docs/field.md"), help="default: %(default)s")
    return parser

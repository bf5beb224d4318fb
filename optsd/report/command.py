"""`optsd report`: write the report of a run again from its results.json."""

import argparse
from pathlib import Path

from rich.console import Console

from optsd import report
from optsd.records import Results
from optsd.report.folders import newest

_EXAMPLES = """\
examples:
  optsd report                              the latest run, written again in its own folder
  optsd report results.json                       any run; its pictures are looked for beside the file
  optsd report results.json --table-only          print the table and write nothing
"""


def main(arguments: list[str]) -> int:
    """Returns 0. Raises BadInput for a file that is no results.json, Unsupported where a library is missing."""
    parser = argparse.ArgumentParser(
        prog="optsd report",
        description="Write index.html, table.md, table.csv, summary.md, plots and the contact sheet of a run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="?", type=Path, help="a results.json (default: of the latest run in reports)")
    parser.add_argument("--table-only", action="store_true", help="print the table and write nothing")
    options = parser.parse_args(arguments)
    file = options.results or newest(Path("reports")) / "results.json"
    results = Results.read(file)
    console = Console()
    report.print_table(results, console)
    if not options.table_only:
        folder = file.parent
        report.write(results, folder)
        console.print(f"Report: {folder / 'index.html'}", markup=False, highlight=False, soft_wrap=True)
    return 0

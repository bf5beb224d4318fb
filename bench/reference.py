"""README's first table, made from the run in `reports/reference`: `make reference` runs the benches and then this.

A run that waits in `build/reference` takes the place of the one before, without its single pictures: the page has them.
"""

import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console

from optsd.files import write_atomically
from optsd.records import Results
from optsd.report.terminal import print_table
from optsd.report.text import in_words

ROOT = Path(__file__).parents[1]
FRESH = ROOT / "build" / "reference"
RUN = ROOT / "reports" / "reference"
SOURCES = RUN / "sources.txt"
"""The version of the code that the run is of, as pictures in the store have it."""
WIDTH = 96
PLACE = re.compile(r"(?<=<!-- reference -->\n).*?(?=<!-- end of reference -->)", re.DOTALL)


def text(results: Results) -> str:
    """What stands in README: the table that the run ended with, and what it was run on."""
    told = io.StringIO()
    print_table(results, Console(file=told, width=WIDTH, force_terminal=False, legacy_windows=False))
    lines = "\n".join(line.rstrip() for line in told.getvalue().splitlines()).strip("\n")
    rounds = max(len(row.samples) for row in results.measurements if row.metric == "latency_s")
    pictures = len({(row["index"], row["seed"]) for row in results.images if row["variant"] == "baseline"})
    return (
        f"```\n{lines}\n```\n\n"
        f"*`make reference` on {results.created[:10]}: {'; '.join(in_words(results.machine))}. {rounds} rounds, "
        f"{pictures} pictures for the quality columns "
        "([all of it](reports/reference/table.md), [as data](reports/reference/results.json)).*\n"
    )


def main() -> None:
    from optsd.quality.generate import code_version

    if (FRESH / "results.json").is_file():
        shutil.rmtree(RUN, ignore_errors=True)
        shutil.copytree(FRESH, RUN, ignore=shutil.ignore_patterns("images", "benchmark*.json"))
        shutil.rmtree(FRESH)
    results = Results.read(RUN / "results.json")
    readme = ROOT / "README.md"
    written = PLACE.sub(lambda _: text(results), readme.read_text(encoding="utf-8"))
    write_atomically(readme, written.encode())
    write_atomically(SOURCES, f"{code_version()}\n".encode())
    print(f"README.md has the run of {results.created}")
    _photograph()


def _photograph() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("docs/report.png is as it was: there is no Chromium to photograph the report with")
        return
    with tempfile.TemporaryDirectory() as folder:
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
        shot = Path(folder) / "report.png"
        where = (f"--screenshot={shot}", "--window-size=1280,1400", f"file://{RUN / 'index.html'}")
        subprocess.run([browser, *quiet, *where], check=True, capture_output=True, timeout=120)
        write_atomically(ROOT / "docs" / "report.png", shot.read_bytes())
    print("docs/report.png is its page")


if __name__ == "__main__":
    main()

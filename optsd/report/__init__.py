"""From results.json to what people read: terminal table, Markdown, CSV, plots, contact sheet and one HTML page.

Everything here works on records and image files alone and imports no torch. The same results give the same bytes:
nothing reads a clock, and nothing is drawn at random. Jinja2 and Matplotlib are imported when a report is written,
not when this package is imported.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from optsd.errors import Unsupported

if TYPE_CHECKING:
    from rich.console import Console

    from optsd.records import Results

__all__ = ["contact_sheet", "print_table", "write"]


def write(results: "Results", folder: Path) -> None:
    """Write index.html, table.md, table.csv, summary.md, contact-sheet.png and plots/ into the folder of results.json.

    Image files are looked for relative to it. Raises Unsupported where Jinja2 or Matplotlib is not installed.
    """
    try:
        from optsd.report import page, pictures, plots, text
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"a report needs {error.name}, which is not installed", "install it with: pip install 'optsd[bench]'"
        ) from error
    drawings = plots.draw_all(results)
    plots.save(drawings, folder / "plots")
    text.write(results, folder)
    pictures.contact_sheet(results, folder)
    page.write(results, drawings, folder)


def print_table(results: "Results", console: "Console") -> None:
    """One table, variants down and metrics across, with the reasons for what is missing and the verdicts below it."""
    from optsd.report import terminal

    terminal.print_table(results, console)


def contact_sheet(results: "Results", folder: Path) -> Path | None:
    """Write contact-sheet.png: prompts across, variants down, same seeds. None where no picture can be read."""
    from optsd.report import pictures

    return pictures.contact_sheet(results, folder)

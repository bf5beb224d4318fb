"""`optsd tune`: the best variant for this machine, this model and this much quality.

    from optsd.tune import Request, tune
    found = tune(Request("shapes", quality=0.95, time_budget_s=600))
    found.winner, found.file

search.py      which candidate is measured next, and when the answer is clear: logic alone
candidates.py  what is tried, and what bounds and techniques exclude before anything is measured
mixed.py       mixed precision: what each kind of layer costs, and which mixtures are worth a try
measured.py    the readings: rounds beside the baseline, pictures and their scores, peaks
journal.py     every reading, kept: a search that was killed goes on
answer.py      expected/tuned/<machine>.json, and what `tuned` means on this machine
run.py         all of it for one request; found.py: what comes of it
telling.py     what a person reads: table, results.json with its report, the pictures that lost most
command.py     `optsd tune`

Importing this package imports no torch; `tune` does.
"""

from typing import TYPE_CHECKING

from optsd.tune.request import Request

if TYPE_CHECKING:
    from optsd.tune.found import Found

__all__ = ["Request", "tune"]


def tune(request: Request) -> "Found":
    """Search, until the answer is clear or the time is up; see `optsd.tune.run`."""
    from optsd.tune.run import search

    return search(request)

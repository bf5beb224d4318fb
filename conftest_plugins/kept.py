"""`--quality SHARE`: does each variant keep that much of the baseline's quality? Paired by prompt."""

import pytest

from optsd import models
from optsd.errors import BadInput, OptsdError
from optsd.judge.kept import ERROR, fewest, judge_kept
from optsd.records import Results, Verdict
from optsd.tune.request import judged_by
from optsd.variants import parse

from .options import SUBJECTS, VARIANTS
from .quality import image_count


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("optsd verdicts", "what is expected, and what fails a run").addoption(
        "--quality",
        type=float,
        metavar="SHARE",
        help="fail where a variant keeps less of the baseline's quality, such as 0.95: of the objects that are right, "
        "of CLIP's score where the model has no judge of its own; as optsd tune --quality",
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuse what no picture could answer, before any is drawn."""
    share = config.getoption("--quality")
    if share is None or hasattr(config, "workerinput"):
        return
    try:
        if not 0 < share < 1:
            raise BadInput(f"--quality {share:g} is no share", "give a number between 0 and 1, such as 0.95")
        judged_by(models.check(config.getoption("--model")))
        if (images := image_count(config)) < (least := fewest(share, ERROR)):
            raise BadInput(f"{images} pictures cannot show that {share:g} is kept", f"give --images {least} or more")
    except OptsdError as error:
        raise pytest.UsageError(str(error)) from None


def judged(config: pytest.Config, results: Results) -> tuple[Verdict, ...]:
    """The verdicts on every variant and subject of this run."""
    metric = judged_by(models.check(config.getoption("--model")))
    variants, share, seeds = config.stash[VARIANTS], config.getoption("--quality"), config.getoption("--seeds")
    # By their names: a run of quality alone does not look at what a technique has changed.
    exact = [name for name in variants if name not in config.stash[SUBJECTS] and parse(name).exact]
    return judge_kept(results, metric, share, variants, exact, seeds)

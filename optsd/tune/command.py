"""`optsd tune`: the best variant for this machine, this model and this much quality."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from optsd.tune.candidates import ALLOWED
from optsd.tune.request import QUALITY, Request, parse_bytes, parse_seconds
from optsd.workloads import parse_size

_EXAMPLES = f"""examples:
  optsd tune                                         the fastest on this machine that keeps {QUALITY:.0%} of the quality
  optsd tune --quality 0.98 --time-budget 2h         a stricter demand takes more pictures
  optsd tune --goal memory --memory 8GiB             the smallest, and nothing that needs more
  optsd tune --model sd15 --lpips 0.05 --allow compile
  optsd tune --variant sdpa,deepcache:3,int8         among these and their combinations
  optsd tune --allow steps                           also in fewer steps than the baseline's
  optsd tune --model sd15 --device estimate:rtx4090  what the bounds alone say: nothing is measured

Few rounds and pictures of every candidate, more of those that are left. What it claims of the winner is false in at
most one search of twenty, however the winner was found (docs/tune.md). Ctrl-C, a kill or the end of the time leave what
is known so far, and the same command goes on from there.

exit status: 0 there is an answer; 1 no variant is proved to be better; 2 wrong usage"""


def main(arguments: list[str]) -> int:
    """Print what was found; the exit status."""
    given = _parser().parse_args(arguments)
    variants = tuple(name.strip() for group in given.variant or () for name in group.split(",") if name.strip())
    kind, _, device = given.device.partition(":")
    with _progress() as say:
        request = Request(
            model=given.model,
            device="auto" if kind == "estimate" else given.device,
            dtype=given.dtype,
            variants=variants,
            quality=given.quality,
            lpips=given.lpips,
            ssim=given.ssim,
            memory=None if given.memory is None else parse_bytes(given.memory),
            goal=given.goal,
            time_budget_s=parse_seconds(given.time_budget),
            images=given.images,
            rounds=given.rounds,
            steps=given.steps,
            guidance=given.guidance,
            size=None if given.size is None else parse_size(given.size),
            batch_size=given.batch_size,
            seed=given.seed,
            allow=tuple(name.strip() for group in given.allow or () for name in group.split(",")),
            output=given.output,
            expected=given.expected,
            say=say,
        )
        if kind == "estimate":
            from optsd.tune.outlook import outlook

            said, status = outlook(request, device), 0
        else:
            from optsd.tune import telling, tune

            found = tune(request)
            said, status = telling.text(found), 0 if found.winner else 1
    print(said)
    return status


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being done now, on one line of the terminal that is gone in the end; nothing in a pipe."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as line:
        yield lambda text: line.update(text[: console.width - 4].replace("[", r"\["))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optsd tune",
        description="Search the variants and their parameters for the best one on this machine.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="shapes", help="as for the benches (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N; estimate:NAME measures nothing")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--variant", action="append", metavar="NAME[,NAME]", help="the candidates (default: all that are known)"
    )
    parser.add_argument(
        "--quality",
        type=float,
        metavar="SHARE",
        help="to keep at least, of the objects that are right (the shipped models) or of CLIP's score (others) "
        f"(default, where nothing is asked for: {QUALITY:g})",
    )
    parser.add_argument("--lpips", type=float, metavar="DISTANCE", help="to the baseline's pictures, at most")
    parser.add_argument("--ssim", type=float, metavar="LIKENESS", help="to the baseline's pictures, at least")
    parser.add_argument("--memory", metavar="SIZE", help="at the peak, at most: 8GiB, 500MiB")
    parser.add_argument("--goal", choices=("speed", "memory"), default="speed", help="the fastest, or the smallest")
    parser.add_argument(
        "--time-budget", default="30m", metavar="TIME", help="90, 30m or 2h, loading included (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, help="of a candidate, at most (default: twice what the demand takes)")
    parser.add_argument("--rounds", type=int, default=64, help="of a candidate, at most (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="default, as of the next three: the model's preset")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--size", help="pixels: 512, or 768x512 for width x height")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=int, default=42, help="of the pictures' noise (default: %(default)s)")
    parser.add_argument(
        "--allow", action="append", metavar="NAME[,NAME]", help=f"to be tried too: {', '.join(ALLOWED)}"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="of report and readings (default: one below reports/tune)"
    )
    parser.add_argument(
        "--expected", type=Path, default=Path("expected"), help="the answer goes to tuned/ there (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

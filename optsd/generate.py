"""`optsd generate`: pictures from any model with any variant."""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from optsd import models, workloads
from optsd.errors import BadInput
from optsd.files import check_writable, plain_name, write_atomically
from optsd.models.shapes import PIPELINES
from optsd.records import Workload
from optsd.report.text import proof_lines
from optsd.terminals import progress
from optsd.tune import answer
from optsd.variants import chosen

_EXAMPLES = """examples:
  optsd generate "a small red circle on a beige background"
  optsd generate --variant int8+flash --seed 7 "a large blue cross above a small green square on a white background"
  optsd generate --model sd15 --steps 30 --output out "a lighthouse at dawn"
  optsd generate --model sd15 --variant 'int8:up_blocks.*=int4' "a lighthouse at dawn"
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="optsd generate", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    parser.add_argument("--model", default="shapes", help="as for the benches (default: %(default)s)")
    parser.add_argument(
        "--variant",
        action="append",
        metavar="NAME[,NAME]",
        help="draw with each of these, a folder each where there are several; join techniques with +; tuned is what "
        "optsd tune has found here (default: sdpa)",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--size", help="pixels: 512, or 768x512 for width x height")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="folder (default: %(default)s)")
    given = parser.parse_args(arguments)

    names = chosen(answer.resolved(given.variant, given.model, given.device, given.dtype), ["sdpa"])
    source = models.check(given.model)
    preset = workloads.PRESETS[models.default_preset(source.name)]
    width, height = workloads.parse_size(given.size) if given.size else source.size
    steps = preset.steps if given.steps is None else given.steps
    guidance = preset.guidance if given.guidance is None else given.guidance
    workloads.at_least("--steps", steps, 1)
    workloads.at_least("--guidance", guidance, 0)
    workloads.check_seed(given.seed)
    check_writable(given.output, "--output")

    import optsd
    from optsd.measure.pictures import check_pictures
    from optsd.measure.run import run_batch
    from optsd.measure.seeds import fix_seeds
    from optsd.quality.store import to_png
    from optsd.variants import parse

    for name in names:
        parse(name)  # what cannot be combined is refused before anything is loaded
    if source.name in PIPELINES:
        _warn_of_strange_prompts(given.prompts, source.name)
    fix_seeds()
    total = len(names) * len(given.prompts) * steps
    for number, name in enumerate(names):
        files, before = [], number * len(given.prompts) * steps
        with progress(total) as at:
            at(f"{name}: loading {source.name}", before)
            pipe = models.load(given.model, given.device, given.dtype, text_to_image=True)
            patch = optsd.apply(pipe, name)
            dtype = str(pipe.dtype).removeprefix("torch.")
            workload = Workload(source.name, pipe.device.type, dtype, steps, guidance, height, width, 1, given.seed)
            # One call a picture: what a prompt gives does not depend on the prompts beside it.
            for index, prompt in enumerate(given.prompts):
                picture = f"{name}: picture {index + 1} of {len(given.prompts)}"
                at(picture, before + index * steps)
                done = partial(_step, at, picture, before + index * steps, steps)
                drawn = run_batch(pipe, workload, [prompt], first=index, on_step=done, output_type="np")
                check_pictures(drawn, name)
                words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
                folder = given.output / plain_name(name) if len(names) > 1 else given.output
                files.append(folder / f"{index:04d}-{words}.png")
                write_atomically(files[-1], to_png((drawn[0] * 255).round().astype("uint8")))
        print(*files, sep="\n")
        print(f"{name}: {len(patch.touched)} modules touched", *proof_lines(patch.proof), sep="\n")
    return 0


def _step(at: Callable[[str, int], None], picture: str, before: int, steps: int, step: int) -> None:
    at(picture, before + min(step, steps))  # some schedulers take one more than they are asked for


def _warn_of_strange_prompts(prompts: list[str], model: str) -> None:
    from optsd.quality.objects import parse

    for prompt in prompts:
        try:
            parse(prompt)
        except BadInput as error:
            print(f"{model} knows coloured shapes only: {error}", file=sys.stderr)

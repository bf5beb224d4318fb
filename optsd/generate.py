"""`optsd generate`: pictures from any model with any variant."""

import argparse
import re
from pathlib import Path

from optsd import models, workloads
from optsd.files import check_writable, write_atomically
from optsd.records import Workload
from optsd.tune import answer
from optsd.variants import chosen

_EXAMPLES = """examples:
  optsd generate "a small red circle on a beige background"
  optsd generate --variant int8+flash --seed 7 "a large blue cross above a small green square on a white background"
  optsd generate --model sd15 --steps 30 --output out "a lighthouse at dawn"
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

    fix_seeds()
    for name in names:
        pipe = models.load(given.model, given.device, given.dtype, text_to_image=True)
        patch = optsd.apply(pipe, name)
        pipe.set_progress_bar_config(disable=False)
        dtype = str(pipe.dtype).removeprefix("torch.")
        workload = Workload(source.name, pipe.device.type, dtype, steps, guidance, height, width, 1, given.seed)
        # One call a picture: what a prompt gives does not depend on the prompts beside it.
        for index, prompt in enumerate(given.prompts):
            drawn = run_batch(pipe, workload, [prompt], first=index, output_type="np")
            check_pictures(drawn, name)
            words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
            folder = given.output / name if len(names) > 1 else given.output
            file = folder / f"{index:04d}-{words}.png"
            write_atomically(file, to_png((drawn[0] * 255).round().astype("uint8")))
            print(file)
        print(f"{name}: touched {len(patch.touched)} modules; {patch.proof}")
    return 0

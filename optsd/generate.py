"""`optsd generate`: pictures from any model with any variant."""

import argparse
import re
from pathlib import Path

from optsd import models, workloads
from optsd.errors import BadInput
from optsd.variants import canonical

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
    parser.add_argument("--variant", default="sdpa", help="techniques joined with + (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--size", help="pixels: 512, or 768x512 for width x height")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="folder (default: %(default)s)")
    given = parser.parse_args(arguments)

    variant = canonical(given.variant)
    source = models.check(given.model)
    preset = workloads.PRESETS[workloads.default_preset(source.name)]
    width, height = workloads.parse_size(given.size) if given.size else (source.size, source.size)
    steps = preset.steps if given.steps is None else given.steps
    guidance = preset.guidance if given.guidance is None else given.guidance
    workloads.at_least("--steps", steps, 1)
    workloads.at_least("--guidance", guidance, 0)
    if given.output.exists() and not given.output.is_dir():
        raise BadInput(f"--output {given.output} is a file", "name a folder")

    import optsd
    from optsd.measure.seeds import fix_seeds, generators

    fix_seeds()
    pipe = optsd.load(given.model, given.device, given.dtype)
    patch = optsd.apply(pipe, variant)
    pipe.set_progress_bar_config(disable=False)
    given.output.mkdir(parents=True, exist_ok=True)
    # One call a picture: what a prompt gives does not depend on the prompts beside it.
    for index, prompt in enumerate(given.prompts):
        picture = pipe(
            prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=height,
            width=width,
            generator=generators(given.seed, index, 1),
        ).images[0]
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
        file = given.output / f"{index:04d}-{words}.png"
        picture.save(file)
        print(file)
    print(f"{variant}: touched {len(patch.touched)} modules; {patch.proof}")
    return 0

"""`optsd shapes`: how good a shipped model is, and how good the classifier that says so.

Two figures, each with its sample count: the share of objects that the classifier gets right on drawn scenes of
captions that no network was trained on, and the share of objects asked for that the model draws with the right colour
and shape, over prompts from the same captions.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from optsd import workloads
from optsd.errors import BadInput
from optsd.models.shapes import PIPELINES, scenes
from optsd.variants import chosen
from optsd.workloads import PRESETS

DRAWN_SEED, PROMPT_SEED = 101, 102
BATCH = 16
SHEET_COLUMNS, SHEET_PICTURES = 16, 64


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="optsd shapes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=PIPELINES, default="shapes", help="default: %(default)s")
    parser.add_argument(
        "--variant",
        action="append",
        metavar="NAME[,NAME]",
        help="a line for each of these; join techniques with + (default: sdpa)",
    )
    parser.add_argument("--prompts", type=int, default=256, help="pictures to generate (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=PRESETS["quick"].steps, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=PRESETS["quick"].guidance, help="default: %(default)s")
    parser.add_argument("--sheet", type=Path, help="write the first 64 pictures as one PNG")
    given = parser.parse_args(arguments)
    workloads.at_least("--prompts", given.prompts, 1)
    workloads.at_least("--steps", given.steps, 1)
    workloads.at_least("--guidance", given.guidance, 0)
    names = chosen(given.variant, ["sdpa"])
    if given.sheet and len(names) > 1:
        raise BadInput("--sheet shows the pictures of one variant", "name one, or leave out the sheet")

    import optsd
    from optsd.measure.seeds import fix_seeds, generators

    fix_seeds()
    drawn, pictures = scenes.dataset(DRAWN_SEED, 2048, held_out=True)
    print(f"classifier: {_verdict(drawn, pictures)} in {len(drawn)} drawn scenes")

    asked = list(islice(scenes.scenes(PROMPT_SEED, held_out=True), given.prompts))
    for name in names:
        pipe = optsd.load(given.model, "cpu")
        optsd.apply(pipe, name)
        made: list[np.ndarray] = []
        for first in range(0, len(asked), BATCH):
            batch = asked[first : first + BATCH]
            images = pipe(
                [scene.caption for scene in batch],
                num_inference_steps=given.steps,
                guidance_scale=given.guidance,
                generator=generators(42, first, len(batch)),
            ).images
            made += [np.asarray(image) for image in images]
            print(f"\r{len(made)}/{len(asked)} pictures", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        print(
            f"{given.model}: {_verdict(asked, np.stack(made))} in {len(made)} pictures of prompts never trained on "
            f"({name}, {given.steps} steps, guidance {given.guidance:g})",
            flush=True,
        )
    if given.sheet:
        shown = made[:SHEET_PICTURES]
        shown += [np.zeros_like(shown[0])] * (-len(shown) % SHEET_COLUMNS)
        rows = [np.concatenate(shown[i : i + SHEET_COLUMNS], axis=1) for i in range(0, len(shown), SHEET_COLUMNS)]
        Image.fromarray(np.concatenate(rows)).save(given.sheet)
    return 0


def _verdict(chosen: list[scenes.Scene], images: np.ndarray) -> str:
    from optsd.quality.features import shapes_networks
    from optsd.quality.objects import count_objects

    logits = shapes_networks().features(images)[1]
    right, asked = (int(counts.sum()) for counts in count_objects(chosen, logits))
    return f"{right / asked:.2%} of {asked} objects right, {int((logits > 0).sum()) - right} too many"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`optsd shapes`: how good the shipped model is, and how good the classifier that says so.

Two figures, each with its sample count: the share of objects that the classifier gets right on drawn scenes of
captions that no network was trained on, and the share of objects asked for that the model draws with the right colour
and shape, over prompts from the same captions.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from optsd import workloads
from optsd.models import shapes
from optsd.models.shapes import scenes
from optsd.workloads import PRESETS

if TYPE_CHECKING:
    from optsd.models.shapes.networks import Classifier

DRAWN_SEED, PROMPT_SEED = 101, 102


def load_classifier(folder: Path = shapes.WEIGHTS) -> "Classifier":
    """The committed classifier, in evaluation mode, float32."""
    from safetensors.torch import load_file

    from optsd.models.shapes.networks import Classifier

    model = Classifier()
    model.load_state_dict(load_file(folder / "classifier.safetensors"))
    return model.float().eval()


def probabilities(model: "Classifier", images: np.ndarray) -> np.ndarray:
    """N×64×64×3 uint8 -> N×24: the probability that each kind of object is in the picture."""
    import torch

    with torch.no_grad():
        batches = torch.from_numpy(images).permute(0, 3, 1, 2).split(64)
        return torch.cat([model(batch).sigmoid() for batch in batches]).numpy()


def objects_right(found: np.ndarray, chosen: list[scenes.Scene]) -> tuple[int, int, int]:
    """Objects asked for and found, objects asked for, and objects found that nobody asked for.

    `found`: N×24 probabilities; an object is there when its probability is above one half.
    """
    there, asked = found > 0.5, np.stack([scene.labels for scene in chosen]) > 0.5
    return int((there & asked).sum()), int(asked.sum()), int((there & ~asked).sum())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="optsd shapes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="sdpa", help="techniques joined with + (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=256, help="pictures to generate (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=PRESETS["quick"].steps, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=PRESETS["quick"].guidance, help="default: %(default)s")
    parser.add_argument("--sheet", type=Path, help="write the first 64 pictures as one PNG")
    given = parser.parse_args(arguments)
    workloads.at_least("--prompts", given.prompts, 1)
    workloads.at_least("--steps", given.steps, 1)

    import optsd
    from optsd.measure.seeds import fix_seeds, generators

    fix_seeds()
    judge = load_classifier()
    drawn, pictures = scenes.dataset(DRAWN_SEED, 2048, held_out=True)
    right, asked, extra = objects_right(probabilities(judge, pictures), drawn)
    print(f"classifier: {right / asked:.2%} of {asked} objects right in {len(drawn)} drawn scenes, {extra} too many")

    chosen = list(islice(scenes.scenes(PROMPT_SEED, held_out=True), given.prompts))
    pipe = optsd.load("shapes")
    optsd.apply(pipe, given.variant)
    made: list[np.ndarray] = []
    for first in range(0, len(chosen), 16):
        batch = chosen[first : first + 16]
        images = pipe(
            [scene.caption for scene in batch],
            num_inference_steps=given.steps,
            guidance_scale=given.guidance,
            generator=generators(42, first, len(batch)),
        ).images
        made += [np.asarray(image) for image in images]
        print(f"\r{len(made)}/{len(chosen)} pictures", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    right, asked, extra = objects_right(probabilities(judge, np.stack(made)), chosen)
    print(
        f"model: {right / asked:.2%} of {asked} objects right in {len(made)} pictures of prompts never trained on, "
        f"{extra} too many ({given.variant}, {given.steps} steps, guidance {given.guidance:g})"
    )
    if given.sheet:
        columns = 16
        made += [np.zeros_like(made[0])] * (-len(made) % columns)
        rows = [np.concatenate(made[i : i + columns], axis=1) for i in range(0, min(len(made), 64), columns)]
        Image.fromarray(np.concatenate(rows)).save(given.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`optsd sensitivity`: what quantizing each kind of layer alone costs in quality, on the shipped model.

    optsd sensitivity                     INT8 and INT4, 64 pictures a row
    optsd sensitivity --bits 4 --prompts 256

Each row quantizes one kind of layer and nothing else, in the model's own type between the layers, and compares with
the pictures of the same prompts and noise without quantization: the mean of the pictures' PSNR, and the share of
objects asked for that are there with the right colour and shape. The last rows quantize whole components.
"""

import argparse
import fnmatch
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from optsd import workloads
from optsd.errors import BadInput
from optsd.models.shapes import scenes
from optsd.workloads import PRESETS

PROMPT_SEED = 102
BATCH = 16

ENDS = {
    "first convolution": "conv_in",
    "last convolution": "conv_out",
    "time embedding": "time_embedding.*",
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="optsd sensitivity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", action="append", metavar="8[,4]", help="default: both")
    parser.add_argument("--prompts", type=int, default=64, help="pictures a row (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=PRESETS["quick"].steps, help="default: %(default)s")
    given = parser.parse_args(arguments)
    bits = [part.strip() for group in given.bits or ("8,4",) for part in group.split(",")]
    if unknown := [each for each in bits if each not in ("8", "4")]:
        raise BadInput(f"--bits {unknown[0]} is unknown", "use 8, 4, or 8,4")
    workloads.at_least("--prompts", given.prompts, 1)
    workloads.at_least("--steps", given.steps, 1)

    from optsd.measure.seeds import fix_seeds
    from optsd.quality.objects import objects_right
    from optsd.quality.pixels import psnr_db

    fix_seeds()
    chosen = list(islice(scenes.scenes(PROMPT_SEED, held_out=True), given.prompts))
    baseline = draw(None, chosen, given.steps)
    print(f"{len(chosen)} pictures, {given.steps} steps; baseline: {objects_right(baseline, chosen):.2%} objects right")
    print("| bits | quantized | layers | PSNR dB | objects right |\n| --- | --- | --- | --- | --- |", flush=True)
    for each in dict.fromkeys(map(int, bits)):
        for name, technique in techniques(each):
            pictures = draw(technique, chosen, given.steps)
            cells = (name, technique.count, f"{psnr_db(pictures, baseline).mean():.1f}")
            print(f"| {each} | {' | '.join(map(str, cells))} | {objects_right(pictures, chosen):.2%} |", flush=True)
    return 0


class Alone:
    """A technique and, after it was applied, the number of layers that it converted."""

    def __init__(self, technique: Any) -> None:
        self.technique, self.count = technique, 0

    def apply(self, pipe: Any) -> None:
        self.count = len(self.technique.apply(pipe).touched)


def techniques(bits: int) -> Iterator[tuple[str, Alone]]:
    """The rows: each kind of layer alone, then whole components."""
    import optsd
    from optsd import anatomy
    from optsd.optimizations.quantize import COMPONENTS, Int4, Int8
    from optsd.quantization.rules import Rule, usual

    technique = Int8 if bits == 8 else Int4
    names = [name for name, _ in anatomy.denoiser(optsd.load("shapes", "cpu")).named_modules()]
    for kind, pattern in (ENDS | anatomy.KINDS).items():
        inside = set(fnmatch.filter(names, pattern))
        if inside:
            keep = tuple(name for name in names if name not in inside)
            own = (Rule(pattern, f"int{bits}"),) if usual(pattern, f"int{bits}") != f"int{bits}" else ()
            yield kind, Alone(technique(own, keep=keep, between="same"))
    yield "the UNet, but for what is kept by default", Alone(technique(between="same"))
    yield "the same, bfloat16 between the layers where that is faster", Alone(technique())
    yield "the whole UNet", Alone(technique(keep=(), between="same"))
    yield f"all networks, as int{bits}:all has them", Alone(technique(whole=True, between="same"))
    for component in COMPONENTS[1:]:
        yield f"the whole {component}", Alone(technique(keep=(), components=(component,), between="same"))


def draw(technique: Alone | None, chosen: list[scenes.Scene], steps: int) -> np.ndarray:
    """N×64×64×3, uint8: the pictures of a pipeline loaded afresh, with the technique if there is one."""
    import optsd
    from optsd.measure.seeds import generators

    pipe = optsd.load("shapes", "cpu")
    if technique:
        technique.apply(pipe)
    made: list[np.ndarray] = []
    for first in range(0, len(chosen), BATCH):
        batch = chosen[first : first + BATCH]
        images = pipe(
            [scene.caption for scene in batch],
            num_inference_steps=steps,
            guidance_scale=PRESETS["quick"].guidance,
            generator=generators(42, first, len(batch)),
        ).images
        made += [np.asarray(image) for image in images]
    return np.stack(made)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Are the objects that a prompt asks for in the picture? For the shipped model, whose prompts have a strict grammar."""

import re
from collections.abc import Sequence

import numpy as np

from optsd.errors import BadInput
from optsd.models.shapes import scenes
from optsd.models.shapes.scenes import Scene, Thing

PRESENT = 0.5  # the classifier's least probability of an object that is there


def _either(options) -> str:
    return f"({'|'.join(options)})"


_THING = f"a {_either(scenes.SIZES)} {_either(scenes.COLOURS)} {_either(scenes.SHAPES)}"
_CAPTION = re.compile(
    rf"{_THING}(?: {_either(scenes.RELATIONS)} {_THING})? on a {_either(scenes.BACKGROUNDS)} background"
)


def parse(caption: str) -> Scene:
    """The scene that a caption describes: the inverse of `Scene.caption`. Raises BadInput for any other text."""
    match = _CAPTION.fullmatch(caption)
    if match is None:
        raise BadInput(
            f"{caption[:80]!r} describes no scene",
            "write, for example: a small red circle above a large blue square on a beige background",
        )
    size, colour, shape, relation, size_2, colour_2, shape_2, background = match.groups()
    things = [Thing(size, colour, shape)]
    if relation:
        things.append(Thing(size_2, colour_2, shape_2))
    return Scene(tuple(things), relation, background)


def count_objects(captions: Sequence[str | Scene], logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the objects asked for are there, with the right colour and shape, and how many were asked for.

    `logits`: the classifier's, N×24. Two arrays of N whole numbers. Where an object stands, how large it is and what
    else is in the picture does not count.
    """
    if len(logits) != len(captions):
        raise BadInput(f"{len(logits)} images and {len(captions)} captions", "give a caption for each image")
    asked = np.stack([(parse(text) if isinstance(text, str) else text).labels for text in captions]) > 0
    there = logits > np.log(PRESENT / (1 - PRESENT))
    return (there & asked).sum(1), asked.sum(1)


def objects_right(images: np.ndarray, captions: Sequence[str | Scene]) -> float:
    """The share, over all pictures together, of the objects asked for that the shipped classifier finds.

    `images`: N×64×64×3, uint8. See `count_objects`.
    """
    from optsd.quality.features import shapes_networks

    found, asked = count_objects(captions, shapes_networks().features(images)[1])
    return float(found.sum() / asked.sum())

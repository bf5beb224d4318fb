"""Scenes of one or two coloured shapes, their captions, and their pictures.

Everything here is a pure function of integers: the same seed gives the same scenes, captions and pixels
on every machine (NumPy's PCG64 stream and float64 arithmetic, no image library).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 158, 68),
    "blue": (38, 84, 214),
    "yellow": (250, 208, 44),
    "purple": (128, 52, 168),
    "orange": (240, 128, 24),
}
BACKGROUNDS = {"beige": (232, 218, 190), "grey": (140, 140, 140), "white": (250, 250, 250), "black": (16, 16, 16)}
SIZES = {"small": (7.0, 9.0), "large": (12.0, 14.0)}
"""Half of an object's width, in pixels: the least and the most."""
RELATIONS = ("to the left of", "to the right of", "above", "below")
CLASSES = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""The 24 kinds of object that the classifier tells apart."""

_HELD_OUT_SHARE = 16  # one caption in sixteen is never trained on


@dataclass(frozen=True)
class Thing:
    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def class_index(self) -> int:
        return CLASSES.index((self.colour, self.shape))


@dataclass(frozen=True)
class Scene:
    """What a caption says; where exactly things are is drawn from the seed that renders it."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str

    @property
    def caption(self) -> str:
        """For example `a small red circle to the left of a large blue square on a beige background`."""
        middle = f" {self.relation} a ".join(str(thing) for thing in self.things)
        return f"a {middle} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """True for the captions that training never sees: a property of the text alone."""
        return hashlib.sha256(self.caption.encode()).digest()[0] % _HELD_OUT_SHARE == 0

    @property
    def labels(self) -> np.ndarray:
        """Which of `CLASSES` are in the scene: 24 zeros and ones, float32."""
        present = np.zeros(len(CLASSES), np.float32)
        present[[thing.class_index for thing in self.things]] = 1
        return present


def sample_scene(rng: np.random.Generator, share_of_pairs: float = 0.75) -> Scene:
    """A scene drawn evenly over the attributes. Two things in one scene never share colour and shape."""

    def thing() -> Thing:
        return Thing(_pick(rng, SIZES), _pick(rng, COLOURS), _pick(rng, SHAPES))

    first, background = thing(), _pick(rng, BACKGROUNDS)
    if rng.random() >= share_of_pairs:
        return Scene((first,), None, background)
    second = thing()
    while second.class_index == first.class_index:
        second = thing()
    return Scene((first, second), _pick(rng, RELATIONS), background)


def scenes(seed: int, held_out: bool | None = None) -> Iterator[Scene]:
    """An endless stream of scenes. `held_out`: only those (True), none of those (False), or both (None)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    while True:
        scene = sample_scene(rng)
        if held_out is None or scene.held_out == held_out:
            yield scene


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The picture of a scene: 64×64×3, uint8. Place, exact size and a slight change of colour come from `rng`."""
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3))
    canvas[:] = _jitter(BACKGROUNDS[scene.background], rng)
    for thing, (x, y) in zip(scene.things, _centres(scene, rng), strict=True):
        half = rng.uniform(*SIZES[thing.size])
        # One pixel of anti-aliasing: coverage falls from 1 to 0 as the distance goes from -0.5 to 0.5.
        coverage = np.clip(0.5 - _signed_distance(thing.shape, x, y, half), 0, 1)[..., None]
        canvas = canvas * (1 - coverage) + _jitter(COLOURS[thing.colour], rng) * coverage
    return np.rint(canvas).astype(np.uint8)


def dataset(seed: int, count: int, held_out: bool | None = None) -> tuple[list[Scene], np.ndarray]:
    """`count` scenes and their pictures (count×64×64×3, uint8)."""
    stream, rng = scenes(seed, held_out), np.random.Generator(np.random.PCG64([seed, 1]))
    chosen = [next(stream) for _ in range(count)]
    return chosen, np.stack([render(scene, rng) for scene in chosen])


def coco_annotations(chosen: list[Scene]) -> dict:
    """The scenes as COCO's caption file has them (https://cocodataset.org/#format-data)."""
    return {
        "info": {"description": "scenes drawn by optsd.models.shapes.scenes", "version": "1"},
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{i:012d}.png", "width": IMAGE_SIZE, "height": IMAGE_SIZE}
            for i in range(len(chosen))
        ],
        "annotations": [{"id": i, "image_id": i, "caption": scene.caption} for i, scene in enumerate(chosen)],
    }


def _pick(rng: np.random.Generator, options) -> str:
    options = tuple(options)
    return options[int(rng.integers(len(options)))]


def _jitter(colour: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(colour) + rng.uniform(-6, 6, 3), 0, 255)


def _centres(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    middle = IMAGE_SIZE / 2
    if scene.relation is None:
        return [(middle + rng.uniform(-10, 10), middle + rng.uniform(-10, 10))]
    # The larger half-width is 14: centres 16±1 and 48±1 keep two things inside the picture and apart.
    near, far = 16 + rng.uniform(-1, 1), 48 + rng.uniform(-1, 1)
    across = middle + rng.uniform(-8, 8, 2)
    along = (near, far) if scene.relation in ("to the left of", "above") else (far, near)
    if scene.relation in ("above", "below"):
        return [(across[0], along[0]), (across[1], along[1])]
    return [(along[0], across[0]), (along[1], across[1])]


@cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    ys, xs = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] + 0.5
    return xs, ys


def _signed_distance(shape: str, x: float, y: float, half: float) -> np.ndarray:
    """Pixels to the outline (negative inside), for a shape of half-width `half` about (x, y)."""
    xs, ys = _grid()
    dx, dy = xs - x, ys - y
    if shape == "circle":
        return np.hypot(dx, dy) - half
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) - 0.88 * half
    if shape == "cross":
        long, short = half, 0.36 * half
        upright = np.maximum(abs(dx) - short, abs(dy) - long)
        return np.minimum(upright, np.maximum(abs(dx) - long, abs(dy) - short))
    if shape == "triangle":
        # Apex up: the base at 0.8 half below the centre, two sides through (0, -half) and (±half, 0.8 half).
        run, rise = half, 1.8 * half
        side = (rise * abs(dx) - run * (dy + half)) / np.hypot(run, rise)
        return np.maximum(side, dy - 0.8 * half)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")

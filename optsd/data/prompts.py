"""The standard prompts: 1,000 from COCO's captions for real models, 1,000 drawn scenes for the shipped one.

Both come from a caption file's rows, one caption an image, in an order that is already shuffled: the first N are
a fair sample, and a larger N only adds to a smaller one.
"""

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from optsd.data import captions
from optsd.data.captions import Captions
from optsd.errors import BadInput

COUNT = 1000
SEED = 42
PREFIXES = (
    "a photo of",
    "a high quality photo of",
    "a professional photograph of",
    "a realistic photograph of",
)
SUFFIXES = ("highly detailed", "sharp focus", "natural lighting", "8k uhd", "35mm photograph")
MIN_WORDS, MAX_CHARACTERS = 8, 200
_GENERIC = re.compile(
    r"(an?|the|this)?\s*((close[- ]?up|black and white)\s+)?"
    r"(picture|pictures|image|photo|photograph|close[- ]?up|view|shot)\s+(of|that|with|taken)\b"
    r"|there (is|are)\b|this is\b|these are\b|it is\b",
    re.IGNORECASE,
)
_MANIFEST = "coco_prompts.json"
_SHAPES_SEED = 42


@dataclass(frozen=True)
class Prompt:
    """What the model is asked for, and the picture that the caption was written of."""

    text: str
    image_id: int
    file_name: str


@dataclass(frozen=True)
class Choice:
    """A row of the manifest: which caption, with which prefix and suffix (indices)."""

    image_id: int
    caption_id: int
    prefix: int
    suffix: int


@dataclass(frozen=True)
class Manifest:
    """The prompts without their text, which belongs to COCO: what was chosen, and the hash of what it gives."""

    captions_sha256: str
    prompts_sha256: str
    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]
    choices: tuple[Choice, ...]

    def to_json(self) -> str:
        """One line a prompt, so that a change is seen in a diff."""
        head = {
            "schema": 1,
            "source": "COCO 2017, captions_val2017.json, CC BY 4.0",
            "seed": SEED,
            "captions_sha256": self.captions_sha256,
            "prompts_sha256": self.prompts_sha256,
            "prefixes": self.prefixes,
            "suffixes": self.suffixes,
            "columns": ["image_id", "caption_id", "prefix", "suffix"],
        }
        rows = [f"    [{c.image_id}, {c.caption_id}, {c.prefix}, {c.suffix}]" for c in self.choices]
        opening = json.dumps(head, indent=2)[:-2]
        return opening + ',\n  "prompts": [\n' + ",\n".join(rows) + "\n  ]\n}\n"


@cache
def shipped_manifest() -> Manifest:
    """The manifest that the package ships."""
    data = json.loads((resources.files("optsd.data") / _MANIFEST).read_text(encoding="utf-8"))
    return Manifest(
        data["captions_sha256"],
        data["prompts_sha256"],
        tuple(data["prefixes"]),
        tuple(data["suffixes"]),
        tuple(Choice(*row) for row in data["prompts"]),
    )


def coco(file: Path) -> list[Prompt]:
    """The 1,000 standard prompts, their text taken from COCO's caption file.

    Raises NotFound or BadInput for a missing file and for any file but captions_val2017.json.
    """
    rows, manifest = captions.read(file), shipped_manifest()
    remedy = "give COCO 2017's captions_val2017.json (optsd coco fetch captions)"
    if rows.sha256 != manifest.captions_sha256:
        raise BadInput(
            f"{file} is not captions_val2017.json: it has {len(rows.files):,} images and {len(rows.annotations):,} "
            "captions, of the content expected are 5,000 and 25,014",
            remedy,
        )
    prompts = _remake(rows, manifest)
    if digest(prompts) != manifest.prompts_sha256:
        raise BadInput(f"the prompts made from {file} differ from the manifest's", "install optsd again, unchanged")
    return prompts


def digest(prompts: list[Prompt]) -> str:
    """SHA-256 of the finished list: one prompt a line, UTF-8."""
    return hashlib.sha256("".join(prompt.text + "\n" for prompt in prompts).encode()).hexdigest()


def choose(rows: Captions, count: int = COUNT) -> tuple[Manifest, Counter]:
    """Choose the prompts anew, as the shipped manifest was made; and how many captions were skipped, by reason."""
    # Only random() is used: Python guarantees its stream for a seed in every version, and no other method's.
    rng = random.Random(SEED)
    by_image: dict[int, list[captions.Annotation]] = {number: [] for number in rows.files}
    skipped: Counter[str] = Counter()
    for row in sorted(rows.annotations, key=lambda row: row.id):
        reason = why_skipped(row.caption)
        if reason:
            skipped[reason] += 1
        else:
            by_image[row.image_id].append(row)
    drawn = []
    for number in sorted(by_image):
        place, caption, prefix, suffix = (rng.random() for _ in range(4))
        if by_image[number]:
            row = by_image[number][int(caption * len(by_image[number]))]
            choice = Choice(number, row.id, int(prefix * len(PREFIXES)), int(suffix * len(SUFFIXES)))
            drawn.append((place, clean(row.caption), choice))
    chosen: dict[str, Choice] = {}
    for _, text, choice in sorted(drawn, key=lambda item: item[0]):
        if len(chosen) < count:
            chosen.setdefault(text.casefold(), choice)
    manifest = Manifest(rows.sha256, "", PREFIXES, SUFFIXES, tuple(chosen.values()))
    return Manifest(rows.sha256, digest(_remake(rows, manifest)), PREFIXES, SUFFIXES, manifest.choices), skipped


def clean(caption: str) -> str:
    """Spaces collapsed, trailing punctuation off, no capitals to shout with, a small letter to follow the prefix."""
    text = " ".join(caption.split()).rstrip(" .,;:!?")
    if text.isupper():
        text = text.lower()
    first = text.split(" ", 1)[0]
    return text if first[1:].lower() != first[1:] else text[:1].lower() + text[1:]


def why_skipped(caption: str) -> str:
    """Why a caption makes no prompt: `too long`, `not printable`, `too short`, `generic`; or nothing."""
    if len(caption) > MAX_CHARACTERS:
        return "too long"
    text = clean(caption)
    if not text.isprintable():
        return "not printable"
    if len(text.split()) < MIN_WORDS:
        return "too short"
    return "generic" if _GENERIC.match(text) else ""


def _remake(rows: Captions, manifest: Manifest) -> list[Prompt]:
    texts = {row.id: row.caption for row in rows.annotations}
    return [
        Prompt(
            f"{manifest.prefixes[choice.prefix]} {clean(texts[choice.caption_id])}, {manifest.suffixes[choice.suffix]}",
            choice.image_id,
            rows.files[choice.image_id],
        )
        for choice in manifest.choices
    ]


@cache
def shapes() -> tuple[tuple[Prompt, ...], np.ndarray]:
    """The shipped model's 1,000 prompts, none of which it was trained on, and their drawn pictures.

    The captions come in COCO's format and are checked like COCO's. Pictures: 1000×64×64×3, uint8.
    """
    from optsd.models.shapes import scenes

    chosen: dict[str, scenes.Scene] = {}
    for scene in scenes.scenes(_SHAPES_SEED, held_out=True):
        chosen.setdefault(scene.caption, scene)
        if len(chosen) == COUNT:
            break
    rows = captions.check(scenes.coco_annotations(list(chosen.values())), "the drawn scenes")
    prompts = tuple(Prompt(row.caption, row.image_id, rows.files[row.image_id]) for row in rows.annotations)
    rng = np.random.Generator(np.random.PCG64([_SHAPES_SEED, 1]))
    pictures = np.stack([scenes.render(scene, rng) for scene in chosen.values()])
    pictures.flags.writeable = False
    return prompts, pictures

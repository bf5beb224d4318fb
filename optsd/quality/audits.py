"""Judges that are judged: pictures that are wrong in a known way, and what each metric says of them.

And the other way round: whether a run's own pictures look like some of those (`suspicions`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from optsd.metrics import metric
from optsd.quality.measure import Judge
from optsd.quality.pictures import Part, Pictures
from optsd.quality.readings import Readings
from optsd.quality.store import hash_of
from optsd.records import Measurement

TWO_BITS = "a UNet of 2 bits"


def _black(images: np.ndarray) -> np.ndarray:
    return np.zeros_like(images)


def _grey(images: np.ndarray) -> np.ndarray:
    return np.full_like(images, 128)


def _noise(images: np.ndarray) -> np.ndarray:
    return np.random.default_rng(int(images.sum(dtype=np.int64))).integers(0, 256, images.shape, dtype=np.uint8)


def _shifted(images: np.ndarray) -> np.ndarray:
    return np.concatenate([images[:, 1:], images[:, -1:]], axis=1)


def _jpeg(images: np.ndarray) -> np.ndarray:
    def squeeze(image: np.ndarray) -> np.ndarray:
        stream = BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=30)
        return np.asarray(Image.open(stream))

    return np.stack([squeeze(image) for image in images])


DAMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "black": _black,
    "grey": _grey,
    "noise": _noise,
    "shifted by a row": _shifted,
    "JPEG of quality 30": _jpeg,
}


def damaged(pictures: Pictures) -> dict[str, Pictures]:
    """The pictures, damaged in each way that needs no model: those of DAMAGES, one over and over, other prompts'."""
    found = {name: _each(pictures, name, damage) for name, damage in DAMAGES.items()}
    first = pictures.parts[0]
    found["one over and over"] = _each(pictures, f"one {first.key}", partial(_repeated, first))
    found["of other prompts"] = Pictures(tuple(_turned(pictures.parts)), pictures.size)
    return found


def _each(pictures: Pictures, name: str, damage: Callable[[np.ndarray], np.ndarray]) -> Pictures:
    parts = [Part(hash_of([part.key, name]), part.count, partial(_apply, damage, part)) for part in pictures.parts]
    return Pictures(tuple(parts), pictures.size)


def _apply(damage: Callable[[np.ndarray], np.ndarray], part: Part) -> np.ndarray:
    return damage(part.load())


def _repeated(first: Part, images: np.ndarray) -> np.ndarray:
    return np.broadcast_to(first.load()[:1], images.shape).copy()


def _turned(parts: Sequence[Part]) -> list[Part]:
    """Every picture in the place of the one before it, across the bounds of parts; the first one comes last."""
    following = [*parts[1:], parts[0]]
    return [
        Part(hash_of([part.key, after.key, "turned"]), part.count, partial(_next_one, part, after))
        for part, after in zip(parts, following, strict=True)
    ]


def _next_one(part: Part, after: Part) -> np.ndarray:
    return np.concatenate([part.load()[1:], after.load()[:1]])


def two_bits(network: Any) -> None:
    """Round each convolution's and projection's weights, channel by channel, to the nearest of four levels."""
    import torch

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                scale = module.weight.abs().flatten(1).amax(1).view(-1, *[1] * (module.weight.ndim - 1)) / 1.5
                levels = ((module.weight / scale).floor() + 0.5).clamp(-1.5, 1.5)
                module.weight.copy_(levels * scale)


@dataclass(frozen=True)
class Finding:
    """What one metric says of one damage: `worse`, `better` or `not seen`, or why it says nothing."""

    damage: str
    metric: str
    says: str
    healthy: Measurement
    found: Measurement

    def as_row(self) -> dict[str, Any]:
        found, healthy = self.found, self.healthy
        row: dict[str, Any] = {"damage": self.damage, "metric": self.metric, "says": self.says, "note": found.note}
        row |= {"healthy": healthy.value, "healthy_interval": [healthy.low, healthy.high]}
        return row | {"value": found.value, "interval": [found.low, found.high]}


def audit(judge: Judge, damages: dict[str, Pictures]) -> list[Finding]:
    """Ask each metric about each damage. It sees one if the two intervals do not touch."""
    healthy = {row.metric: row for row in judge.measure("healthy", judge.baseline)}
    findings = []
    for name, pictures in damages.items():
        rows = [row for row in judge.measure(name, pictures) if not row.metric.endswith("_retention")]
        findings += [
            Finding(name, row.metric, verdict(healthy[row.metric], row), healthy[row.metric], row) for row in rows
        ]
    return findings


def verdict(healthy: Measurement, found: Measurement) -> str:
    ours, theirs = (healthy.low, healthy.high), (found.low, found.high)
    if found.value is None or healthy.value is None or None in ours or None in theirs:
        return "not measured"
    higher, lower = theirs[0] > ours[1], theirs[1] < ours[0]  # type: ignore[operator]
    if not higher and not lower:
        return "not seen"
    return "better" if higher == (metric(found.metric).better == "higher") else "worse"


def table(findings: Sequence[Finding]) -> str:
    """Damages down, metrics across, as Markdown: the value, and `blind` or **`fooled`** where it does not fall."""
    metrics = list(dict.fromkeys(finding.metric for finding in findings if finding.says != "not measured"))
    marks = {"worse": "", "not seen": " blind", "better": " **fooled**"}
    by_place = {(finding.damage, finding.metric): finding for finding in findings}
    lines = [f"| | {' | '.join(metric(name).label for name in metrics)} |", "| --- |" + " --- |" * len(metrics)]
    first = findings[0].damage
    cells = [f"{by_place[first, name].healthy.value:.3g}" for name in metrics]
    lines.append(f"| healthy | {' | '.join(cells)} |")
    for damage in dict.fromkeys(finding.damage for finding in findings):
        own = [by_place[damage, name] for name in metrics]
        lines.append(f"| {damage} | {' | '.join(f'{each.found.value:.3g}{marks[each.says]}' for each in own)} |")
    return "\n".join(lines) + "\n"


def suspicions(readings: Readings, pictures: Pictures, baseline: Pictures, prompts: int) -> list[str]:
    """What is wrong with a run's own pictures, whatever the metrics say; nothing where all is well.

    `pictures` and `baseline` are of the same prompts, seed by seed. Pictures that are no numbers never get here.
    """
    looks, healthy = (readings.looks(each) for each in (pictures, baseline))
    own, theirs = ([row.tobytes() for row in each["digest"]] for each in (looks, healthy))
    count, found = len(own), []
    if flat := int(looks["flat"].sum()):
        found.append(f"{flat} of {count} pictures are one flat colour (the first is number {looks['flat'].argmax()})")
    if count > 1 and len(set(own)) == 1:
        return [*found, f"all {count} pictures are equal"]
    places: dict[bytes, int] = {}
    for index, digest in enumerate(own):
        other = places.setdefault(digest, index)
        if other != index:
            what = "another prompt's" if (index - other) % prompts else "that of another seed"
            found.append(f"picture {index} equals number {other}, {what}")
            break
    elsewhere = {digest: index for index, digest in enumerate(theirs)}
    for index, digest in enumerate(own):
        if elsewhere.get(digest, index) % prompts != index % prompts and theirs[index] != digest:
            found.append(f"picture {index} equals the baseline's number {elsewhere[digest]}, another prompt's")
            break
    return found

"""Everything that the metrics say of a variant's images, as records."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optsd.errors import BadInput
from optsd.metrics import MAX_PSNR_DB, metric
from optsd.quality import metrics
from optsd.quality.features import Networks, PhotographNetworks
from optsd.quality.metrics import Cloud, Figure, Gaussian, Manifold, Rows
from optsd.quality.objects import count_objects
from optsd.quality.pictures import Pictures
from optsd.quality.readings import Readings
from optsd.quality.reference import Reference
from optsd.quality.store import Store
from optsd.records import Measurement

_SHARES = ("precision", "recall", "objects_right")
_LEAST = dict.fromkeys((*_SHARES, "fid", "fd_dinov2", "cmmd", "lpips", "psnr_db"), 0.0) | {
    "is": 1.0,
    "clip": -1.0,
    "ssim": -1.0,
}
_MOST = dict.fromkeys(_SHARES, 1.0) | {"clip": 1.0, "ssim": 1.0, "psnr_db": MAX_PSNR_DB}
_OF_REAL_PICTURES = ("fid", "kid", "precision", "recall", "fd_dinov2", "cmmd")


@dataclass(frozen=True)
class Judge:
    """Measures sets of images of the same prompts against the baseline's images and against real pictures.

    `baseline`: seeds × prompts pictures, seed by seed; an array of them, N×H×W×3 and uint8, will do, here and below.
    `reference` may be the error that says why there are no real pictures. `counts_objects`: whether the prompts follow
    the shipped model's grammar. What the networks read is kept in `store`, if there is one.
    """

    baseline: Pictures | np.ndarray
    prompts: Sequence[str]
    reference: Reference | BadInput
    networks: Networks
    counts_objects: bool = False
    store: Store | None = None
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", Pictures.of(self.baseline))
        if not self.prompts or len(self.baseline) % len(self.prompts):
            raise BadInput(
                f"{len(self.baseline)} images of {len(self.prompts)} prompts", "give each prompt's image for each seed"
            )

    @property
    def seeds(self) -> int:
        return len(self.baseline) // len(self.prompts)

    def measure(self, variant: str, images: Pictures | np.ndarray) -> list[Measurement]:
        """Every quality metric of a variant's images, and how much of the baseline's each one keeps.

        A metric whose weights or reference are missing has no value, and its note says what to do.
        """
        pictures = self._fitting(variant, images)
        pixels = self.readings.pixels(pictures, self._baseline)
        absolute = dict(self._of_baseline) if pixels["equal"].all() else self._absolute(pictures)
        found = [self._record(variant, name, figure) for name, figure in absolute.items()]
        found += [self._retention(variant, name, figure) for name, figure in absolute.items()]
        found += [self._record(variant, name, figure) for name, figure in self._paired(pictures, pixels).items()]
        return found

    def worst(self, images: Pictures | np.ndarray, count: int) -> list[tuple[int, float]]:
        """The images that lost most against the baseline's: row and loss, the greatest loss first.

        The loss is the perceptual distance, or 1 - SSIM where its network is missing. Equal images are left out.
        """
        pictures = Pictures.of(images)
        try:
            losses = self.readings.distances(pictures, self._baseline)
        except BadInput:
            losses = 1 - self.readings.pixels(pictures, self._baseline)["ssim"]
        order = np.argsort(-losses, kind="stable")[:count]
        return [(int(row), float(losses[row])) for row in order if losses[row] > 0]

    def _fitting(self, variant: str, images: Pictures | np.ndarray) -> Pictures:
        pictures, baseline = Pictures.of(images), self._baseline
        if (len(pictures), *pictures.size) != (len(baseline), *baseline.size):
            raise BadInput(
                f"{variant} has {len(pictures)} images of {pictures.size}, the baseline {len(baseline)} of "
                f"{baseline.size} (height, width)",
                "draw the same prompts at the same size",
            )
        return pictures

    @property
    def _baseline(self) -> Pictures:
        return Pictures.of(self.baseline)

    @cached_property
    def readings(self) -> Readings:
        return Readings(self.networks, self.store, self.say)

    @cached_property
    def _rows(self) -> np.ndarray:
        return metrics.resample(len(self.prompts), self.seeds)

    @cached_property
    def _of_baseline(self) -> dict[str, Figure | BadInput]:
        return self._absolute(self._baseline)

    @cached_property
    def _real(self) -> tuple[Rows, Gaussian]:
        features = self.readings.features(self._real_pictures)[0]
        return features, Gaussian.of(features)

    @property
    def _real_pictures(self) -> Pictures:
        if isinstance(self.reference, BadInput):
            raise self.reference
        return Pictures.of(self.reference.pictures)

    @cached_property
    def _real_dinov2(self) -> Gaussian:
        return Gaussian.of(self.readings.dinov2(self._real_pictures))

    @cached_property
    def _real_cloud(self) -> Cloud:
        return Cloud.of(self.readings.embeddings(self._real_pictures))

    @cached_property
    def _real_manifold(self) -> Manifold:
        return Manifold.of(self._real[0])

    def _absolute(self, pictures: Pictures) -> dict[str, Figure | BadInput]:
        """The metrics of one set of images: of distributions, CLIP, and the objects that are right."""
        suffix, rows = self.networks.suffix, self._rows
        features = _try(lambda: self.readings.features(pictures))

        def known(index: int) -> Rows:
            if isinstance(features, BadInput):
                raise features
            return features[index]

        found = {
            f"fid{suffix}": _try(lambda: metrics.fid(known(0), self._real[1], rows)),
            f"kid{suffix}": _try(lambda: metrics.kid(known(0), self._real[0], rows)),
            f"is{suffix}": _try(lambda: metrics.inception_score(known(1), rows)),
            f"precision{suffix}": _try(lambda: metrics.precision(known(0), self._real_manifold, rows)),
            f"recall{suffix}": _try(lambda: metrics.recall(Manifold.of(known(0)), self._real[0], rows)),
            f"cmmd{suffix}": _try(lambda: metrics.cmmd(self.readings.embeddings(pictures), self._real_cloud, rows)),
            f"clip{suffix}": _try(lambda: metrics.mean(self.readings.agreement(pictures, self._texts), rows)),
        }
        if isinstance(self.networks, PhotographNetworks):
            found["fd_dinov2"] = _try(lambda: metrics.fid(self.readings.dinov2(pictures), self._real_dinov2, rows))
        if self.counts_objects:
            found["objects_right"] = _try(lambda: metrics.share(*count_objects(self._texts, known(1)[:]), rows))
        return found

    def _paired(self, pictures: Pictures, pixels: dict[str, np.ndarray]) -> dict[str, Figure | BadInput]:
        """The metrics of pairs: each image beside the baseline's of the same prompt and seed."""
        rows = self._rows
        note = f"{pixels['equal'].sum()} of {len(pictures)} images equal the baseline's"
        return {
            f"lpips{self.networks.suffix}": _try(
                lambda: metrics.mean(self.readings.distances(pictures, self._baseline), rows, note)
            ),
            "ssim": metrics.mean(pixels["ssim"], rows, note),
            "psnr_db": metrics.mean(pixels["psnr_db"], rows, f"{note}, which count as 100 dB"),
        }

    @property
    def _texts(self) -> list[str]:
        return list(self.prompts) * self.seeds

    def _record(self, variant: str, name: str, figure: Figure | BadInput) -> Measurement:
        unit = metric(name).unit
        if isinstance(figure, BadInput):
            return Measurement(variant, name, unit, None, note=str(figure))
        base = name.removesuffix("_shapes")
        low, high = figure.interval(_LEAST.get(base, -math.inf), _MOST.get(base, math.inf))
        note = figure.note if figure.note.startswith("n=") else _joined(f"n={len(self.baseline)}", figure.note)
        if base in _OF_REAL_PICTURES and isinstance(self.reference, Reference) and self.reference.skipped:
            note = _joined(note, f"left out: {self.reference.note}")
        return Measurement(variant, name, unit, figure.value, low, high, figure.samples, note)

    def _retention(self, variant: str, name: str, figure: Figure | BadInput) -> Measurement:
        """Optimized ÷ baseline; baseline ÷ optimized where lower is better, so that less than 1 is always a loss."""
        before, kept = self._of_baseline[name], f"{name}_retention"
        if isinstance(figure, BadInput) or isinstance(before, BadInput):
            reason = figure if isinstance(figure, BadInput) else before
            return Measurement(variant, kept, metric(kept).unit, None, note=str(reason))
        lower = metric(name).better == "lower"
        above, below = (before, figure) if lower else (figure, before)
        least = min(above.value, below.value, above.replicates.min(), below.replicates.min())
        if least <= 0 and figure is not before:
            note = f"a ratio means nothing here: {name} is not surely above zero"
            return Measurement(variant, kept, metric(kept).unit, None, note=note)
        if figure is before:
            return Measurement(variant, kept, metric(kept).unit, 1.0, 1.0, 1.0, note="the images are the baseline's")
        low, high = Figure(0.0, above.replicates / below.replicates).interval()
        note = f"n={len(self.baseline)}, {'baseline ÷ optimized' if lower else 'optimized ÷ baseline'}"
        if figure.samples:
            p_value = metrics.paired_p_value(np.array(figure.samples), np.array(before.samples), self.seeds)
            note += f"; paired over {len(self.prompts)} prompts: p = {p_value:.2g} (Wilcoxon)"
        return Measurement(variant, kept, metric(kept).unit, above.value / below.value, low, high, note=note)


def _try(compute: Callable):
    """What is computed, or the error that says which file is missing or wrong: the other metrics go on."""
    try:
        return compute()
    except BadInput as error:
        return error


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)

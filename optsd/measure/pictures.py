"""Whether a model draws at all: what is no picture has no speed and no quality."""

from typing import TYPE_CHECKING

from optsd.errors import OptsdError

if TYPE_CHECKING:
    import numpy as np

LEAST_RANGE = 2 / 255
"""Between the darkest and the brightest pixel of a channel; a single noisy or drawn picture has many times that."""


def check_pictures(images: "np.ndarray", variant: str) -> None:
    """Raise OptsdError, naming the variant, where one of N×H×W×3 pictures (0 to 1) is not finite or of one colour."""
    import numpy as np

    if not np.isfinite(images).all():
        raise OptsdError(
            f"{variant} draws no pictures: they are NaN or infinite",
            "use --dtype float32 or bfloat16, or other weights",
        )
    ranges = (images.max(axis=(1, 2)) - images.min(axis=(1, 2))).max(axis=-1)
    if (ranges < LEAST_RANGE).any():
        blank = images[int(ranges.argmin())]
        colour = "".join(f"{round(float(value) * 255):02x}" for value in blank.mean(axis=(0, 1)))
        raise OptsdError(
            f"{variant} draws no pictures: {int((ranges < LEAST_RANGE).sum())} of {len(images)} are of one colour, "
            f"#{colour}",
            "look at its weights, or leave out what was applied",
        )

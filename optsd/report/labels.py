"""Names beside points, none over another: each goes to the nearest free place, or is left to the tooltip."""

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from optsd.report.drawing import COLOURS

_DISTANCES = (7.0, 13.0, 21.0, 32.0, 46.0)  # points
_ANGLES = (0, 180, 45, 315, 135, 225, 90, 270)  # degrees; beside a point a name reads best


def place_labels(axes: Axes, names: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Write each (name, point in data coordinates, gid), the first having the first choice.

    Limits, labels and title of the axes must be final.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    figure.draw_without_rendering()  # fixes the layout, so that pixels are known
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    inside = axes.get_window_extent(renderer)
    points = [axes.transData.transform(point) for _, point, _ in names]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in points]
    pixels_a_point = figure.dpi / 72
    for (name, point, gid), (x, y) in zip(names, points, strict=True):
        # The renderer measures text in pixels.
        probe = axes.text(0, 0, name, fontsize=8)
        size = probe.get_window_extent(renderer)
        probe.remove()
        for box, distance in _candidates(x, y, size.width, size.height, pixels_a_point):
            free = not any(box.overlaps(other) for other in taken)
            if free and inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1:
                taken.append(box)
                offset = ((box.x0 - x) / pixels_a_point, (box.y0 + box.height / 2 - y) / pixels_a_point)
                line = {"arrowstyle": "-", "color": COLOURS["muted"], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
                axes.annotate(
                    name, point, offset, textcoords="offset points", fontsize=8, va="center", gid=gid, zorder=4,
                    arrowprops=line if distance > _DISTANCES[0] else None,
                )  # fmt: skip
                break


def _candidates(x: float, y: float, width: float, height: float, scale: float) -> Iterator[tuple[Bbox, float]]:
    """Boxes around a point, near ones first: the edge or corner that faces the point lies on a circle around it."""
    for distance in _DISTANCES:
        for angle in _ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            left = x + across * distance * scale - (width * (1 - across) / 2)
            bottom = y + up * distance * scale - (height * (1 - up) / 2)
            yield Bbox.from_bounds(left, bottom, width, height), distance

"""Names beside the points of a picture, where they hit nothing."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

INK, MUTED = "#1d2733", "#5b6776"
_PLANE_POINTS = (330.0, 210.0)  # the axes of the plane, in points
_LETTER_POINTS = 6.0


def label_points(axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Write each label beside its point where it hits no point, no other label and no edge.

    Tried are places to the right, left, above and below, further and further away; a label that is
    away from its point has a line to it.
    """
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    width, height = _PLANE_POINTS
    at = [((x - x0) / (x1 - x0) * width, (y - y0) / (y1 - y0) * height) for x, y in points]
    taken = [(x - 6, x + 6, y - 6, y + 6) for x, y in at]
    for (x, y), point, label in zip(at, points, labels, strict=True):
        long = _LETTER_POINTS * len(label)
        dx, dy = _free_place(x, y, long, taken)
        taken.append(_box(x + dx, y + dy, long))
        is_away = abs(dy + 4) > 16 or dx > 14 or dx < -14 - long
        line = {"arrowstyle": "-", "color": MUTED, "lw": 0.6} if is_away else None
        axes.annotate(
            label, point, (dx, dy), textcoords="offset points", color=INK, arrowprops=line
        )


def _free_place(
    x: float, y: float, long: float, taken: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """Return the offset of a label's lower left corner: a free place, or what covers least."""
    width, height = _PLANE_POINTS
    best, least = (10.0, -4.0), float("inf")
    for distance in range(8):
        far = 12.0 * distance
        for dx, dy in (
            *((10, -4 + far), (-10 - long, -4 + far), (10, -4 - far), (-10 - long, -4 - far)),
            *((-long / 2, 9 + far), (-long / 2, -18 - far)),
            *((2 - x, 9 + far), (2 - x, -18 - far)),  # along the left edge
            *((width - 2 - long - x, 9 + far), (width - 2 - long - x, -18 - far)),
        ):
            box = _box(x + dx, y + dy, long)
            outside = max(-box[0], 0) + max(box[1] - width, 0) + max(-box[2], 0)
            outside += max(box[3] - height, 0)
            hits = sum(_overlap(box, other) for other in taken)
            cost = hits + outside / 10
            if cost < least:
                best, least = (dx, dy), cost
            if not cost:
                return dx, dy
    return best


def _box(left: float, bottom: float, long: float) -> tuple[float, float, float, float]:
    return left, left + long, bottom - 1, bottom + 10


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]

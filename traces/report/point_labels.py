"""Names beside the points of a picture, where they hit nothing.

Every label has the same places to choose from: to the right, left, above and below its point,
further and further away, with a line to the point where it is away. One after the other they take
the cheapest place, and again in some more rounds, since what came first did not know what came
later (coordinate descent; Christensen, Marks and Shieber 1995 compare such rules).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

INK, MUTED = "#1d2733", "#5b6776"
_PLANE_POINTS = (330.0, 210.0)  # the axes of the plane, in points
_LETTER_POINTS = 6.2
_MARKER_POINTS = 6.0  # half a marker's size
_ROUNDS = 4
_COVERED, _OUTSIDE, _CROSSED, _FAR = 1000.0, 100.0, 4.0, 0.05  # what a place costs

_Point = tuple[float, float]


class _Box(NamedTuple):
    """A rectangle, in points from the axes' lower left corner."""

    left: float
    right: float
    bottom: float
    top: float

    def overlaps(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def is_crossed(self, line: tuple[_Point, _Point]) -> bool:
        """Whether a straight line enters the rectangle (Liang and Barsky 1984)."""
        (x0, y0), (x1, y1) = line
        enters, leaves = 0.0, 1.0
        for start, step, low, high in (
            (x0, x1 - x0, self.left, self.right),
            (y0, y1 - y0, self.bottom, self.top),
        ):
            if step == 0:
                if not low < start < high:
                    return False
                continue
            first, last = sorted(((low - start) / step, (high - start) / step))
            enters, leaves = max(enters, first), min(leaves, last)
        return enters < leaves


class _LabelSpot(NamedTuple):
    """Where a label could be: its box, its line to the point (None: it is beside it), the way."""

    box: _Box
    line: tuple[_Point, _Point] | None
    distance: float


def label_points(axes: Axes, points: Sequence[_Point], labels: Sequence[str]) -> None:
    """Write each label near its point where it hits no point, no other label, no line, no edge."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    width, height = _PLANE_POINTS
    at = [((x - x0) / (x1 - x0) * width, (y - y0) / (y1 - y0) * height) for x, y in points]
    for (x, y), point, label, place in zip(at, points, labels, places(at, labels), strict=True):
        offset = (place.box.left - x, place.box.bottom + 1 - y)
        line = {"arrowstyle": "-", "color": MUTED, "lw": 0.6} if place.line else None
        axes.annotate(
            literal(label), point, offset, textcoords="offset points", color=INK, arrowprops=line
        )


def literal(text: str) -> str:
    """Return a name as matplotlib draws it letter by letter: between two `$` it would see math."""
    return text.replace("$", r"\$")


def places(at: Sequence[_Point], labels: Sequence[str]) -> list[_LabelSpot]:
    """Return a place for each label; points are in points from the lower left corner."""
    markers = [
        _Box(x - _MARKER_POINTS, x + _MARKER_POINTS, y - _MARKER_POINTS, y + _MARKER_POINTS)
        for x, y in at
    ]
    choices = [
        list(_choices(point, _LETTER_POINTS * len(label)))
        for point, label in zip(at, labels, strict=True)
    ]
    taken: list[_LabelSpot | None] = [None] * len(at)
    for _ in range(_ROUNDS):
        before = list(taken)
        for i, mine in enumerate(choices):
            others = [place for k, place in enumerate(taken) if place is not None and k != i]
            foreign = [marker for k, marker in enumerate(markers) if k != i]
            taken[i] = min(mine, key=lambda p: _cost(p, markers[i], foreign, others))
        if taken == before:
            break
    return [place for place in taken if place is not None]


def _choices(point: _Point, long: float) -> Iterator[_LabelSpot]:
    (x, y), width = point, _PLANE_POINTS[0]
    for step in range(14):
        far = 12.0 * step
        for dx, dy in (
            *((10, -4 + far), (-10 - long, -4 + far), (10, -4 - far), (-10 - long, -4 - far)),
            *((-long / 2, 9 + far), (-long / 2, -18 - far)),
            *((10 + far, 9 + far), (-10 - long - far, 9 + far)),
            *((10 + far, -18 - far), (-10 - long - far, -18 - far)),
            *((14 + far, -4), (-14 - long - far, -4)),
            *((2 - x, -4 + far), (2 - x, -4 - far)),  # along the left edge, and the right
            *((width - 2 - long - x, -4 + far), (width - 2 - long - x, -4 - far)),
        ):
            box = _Box(x + dx, x + dx + long, y + dy - 1, y + dy + 10)
            is_away = abs(dy + 4) > 11 + 5 * (dx == -long / 2) or dx > 14 or dx < -14 - long
            middle = (box.left + long / 2, box.bottom + 5.5)
            yield _LabelSpot(box, (middle, point) if is_away else None, step)


def _cost(
    place: _LabelSpot, marker: _Box, foreign: Sequence[_Box], others: Sequence[_LabelSpot]
) -> float:
    """Return what speaks against a place; 0 would be beside its point with nothing near."""
    box, line, distance = place
    width, height = _PLANE_POINTS
    outside = max(-box.left, 0) + max(box.right - width, 0)
    outside += max(-box.bottom, 0) + max(box.top - height, 0)
    covered = box.overlaps(marker) + sum(box.overlaps(other) for other in foreign)
    covered += sum(box.overlaps(other.box) for other in others)
    crossed = sum(box.is_crossed(other.line) for other in others if other.line)
    if line is not None:
        crossed += sum(other.is_crossed(line) for other in foreign)
        crossed += sum(other.box.is_crossed(line) for other in others)
        crossed += sum(_cross(line, other.line) for other in others if other.line)
    return _COVERED * covered + _CROSSED * crossed + _OUTSIDE * outside + _FAR * distance


def _cross(a: tuple[_Point, _Point], b: tuple[_Point, _Point]) -> bool:
    """Whether two lines cross."""

    def side(line: tuple[_Point, _Point], point: _Point) -> float:
        (x0, y0), (x1, y1) = line
        return (x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0)

    apart = side(a, b[0]) * side(a, b[1]) < 0
    return apart and side(b, a[0]) * side(b, a[1]) < 0

"""Labels of a picture's points hit no point, no other label, no line and no edge."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from traces.report.plots import plane, policy_style, subnet_queries
from traces.report.point_labels import places
from traces.report.stream_pictures import load_curves

WIDTH, HEIGHT = 330.0, 210.0
LABELS = (
    *("slackfit", "drainfit", "slackfit@num_buckets=40", "maxbatch", "maxacc", "infaas"),
    *("proteus@drop_hopeless=true", "fixed:resnet-73.82", "fixed:resnet-76.69", "a"),
)


def crowded(seed: int) -> list[tuple[float, float]]:
    """Half of the points on one spot near the top, two of them the same."""
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in rng.uniform(20, 190, (5, 2))]
    spot = rng.uniform((60, 150), (260, 180))
    near = [tuple(map(float, spot + rng.normal(0, 6, 2))) for _ in range(4)]
    return [*points, *near, near[0]]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("seed", range(8))
def test_ten_labels_find_room_even_in_a_crowd(seed: int) -> None:
    at = crowded(seed)
    found = places(at, LABELS)
    crossed = 0
    for one, other in combinations(found, 2):
        assert not one.box.overlaps(other.box)
        for place, foreign in ((one, other), (other, one)):
            crossed += place.line is not None and foreign.box.is_crossed(place.line)
    assert crossed <= 2, "lines through other labels, of six names at one spot"
    for i, place in enumerate(found):
        assert place.box.left >= -1
        assert place.box.right <= WIDTH + 1
        assert place.box.bottom >= -1
        assert place.box.top <= HEIGHT + 1
        for k, (x, y) in enumerate(at):
            inside = place.box.left < x < place.box.right and place.box.bottom < y < place.box.top
            assert not inside, f"label {i} lies on point {k}"


def test_a_lone_label_is_beside_its_point_without_a_line() -> None:
    (place,) = places([(100.0, 100.0)], ["alone"])
    assert place.line is None
    assert place.box.left == 110.0
    (at_the_edge,) = places([(325.0, 100.0)], ["alone"])
    assert at_the_edge.box.right <= 325.0


def test_no_two_of_many_runs_look_alike() -> None:
    styles = [policy_style(i) for i in range(49)]
    assert len(set(styles)) == 49


def test_a_name_with_dollars_is_no_formula() -> None:
    """A page of such a run had ended in a traceback of matplotlib's parser of formulas."""
    name = "runs/$x{$"
    report = {
        "mean_serving_accuracy": 0.9,
        "slo_attainment": 0.8,
        "subnets": {name: {"queries": 3}},
    }
    curve = [{"rate_qps": rate, "fluidity": 0.9, "on_time": 0.8} for rate in (1.0, 10.0)]
    for svg in (
        plane([report], [name]),
        subnet_queries(report, {name: "#000000"}),
        load_curves([(0, curve, name)]),
    ):
        assert name in svg

"""Comparing subnets on the same images: small differences count where they err together."""

from __future__ import annotations

import numpy as np
import pytest

from supernet import define_supernet
from training.evaluation.domination import dominated, paired_difference
from training.evaluation.evolution import Aim

ARCHS = define_supernet("resnet_tiny").space.uniforms()
N = 5000


def correct_on(hits: int, of_first: int) -> np.ndarray:
    correct = np.zeros(N, dtype=bool)
    correct[of_first : of_first + hits] = True
    return correct


def test_the_paired_interval_is_that_of_the_images_only_one_gets_right() -> None:
    mean, (low, high) = paired_difference(correct_on(4050, 0), correct_on(4000, 0))
    assert mean == pytest.approx(0.01)
    assert 0.007 < low < mean < high < 0.013, "one point, all of it on images that differ"
    mean, (low, high) = paired_difference(correct_on(4050, 900), correct_on(4000, 0))
    assert mean == pytest.approx(0.01)
    assert low < 0 < high, "the same point, between two that err on other images"
    assert paired_difference(correct_on(9, 0), correct_on(9, 0)) == (0.0, (0.0, 0.0))


def test_only_what_is_no_more_expensive_and_surely_better_dominates() -> None:
    a, b, c = ARCHS[:3]
    correct = {a: correct_on(4000, 0), b: correct_on(4100, 0), c: correct_on(4200, 0)}
    served = {a: Aim(2.0, 0.80)}
    cheaper, as_dear, dearer = (Aim(cost, 0.82) for cost in (1.0, 2.0, 3.0))
    assert [d.by for d in dominated(served, {b: cheaper, a: Aim(2.0, 0.8)}, correct)] == [b]
    assert [d.by for d in dominated(served, {b: as_dear, c: dearer}, correct)] == [b]
    assert dominated(served, {b: dearer}, correct) == []
    noise = {a: correct_on(4000, 0), b: correct_on(4010, 900)}
    assert dominated(served, {b: cheaper}, noise) == []

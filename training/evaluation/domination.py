"""Whether what is served is beaten by something cheaper, on the same images.

Two subnets err on many of the same images, so the difference of their accuracies is known better
than either: its standard error comes from the images that only one of them gets right (McNemar).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from supernet import Arch
from training.evaluation.evolution import Aim

_Z = 1.959963984540054


class Domination(NamedTuple):
    """A subnet that a cheaper one beats: by how much (a fraction), with its 95 % interval."""

    subnet: Arch
    by: Arch
    gain: float
    ci95: tuple[float, float]


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Accuracy of a less that of b, (N,) booleans on the same samples, with its 95 % interval."""
    differences = a.astype(np.float64) - b
    half = _Z * float(differences.std()) / math.sqrt(len(differences))
    mean = float(differences.mean())
    return mean, (mean - half, mean + half)


def dominated(
    served: Mapping[Arch, Aim], others: Mapping[Arch, Aim], correct: Mapping[Arch, np.ndarray]
) -> list[Domination]:
    """Those served that one of the others, no more expensive, beats beyond the paired interval."""
    found: list[Domination] = []
    for subnet, aim in served.items():
        for other, rival in others.items():
            if other == subnet or rival.cost > aim.cost:
                continue
            gain, interval = paired_difference(correct[other], correct[subnet])
            if interval[0] > 0.0:
                found.append(Domination(subnet, other, gain, interval))
    return found

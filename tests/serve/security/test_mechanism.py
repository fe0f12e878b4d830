"""Probabilities of the mechanisms: closed forms against enumeration and against drawing."""

from __future__ import annotations

from itertools import permutations, product
from math import exp, prod, sqrt

import numpy as np
import pytest

from serve.security.mechanism import cumulative, laplace, permute_and_flip, scaled_utilities

SEVEN = (0.7814, 0.8186, 0.8534, 0.8724, 0.8812, 0.9072, 0.9138)
DRAWS = 400_000


def enumerated(utilities: list[float], epsilon: float) -> list[float]:
    """Permute-and-flip as it is written: every order, the first that accepts."""
    best = max(utilities)
    accepted = [exp(epsilon * (u - best) / 2) for u in utilities]
    orders = list(permutations(range(len(utilities))))
    chances = [0.0] * len(utilities)
    for order in orders:
        for place, chosen in enumerate(order):
            before = prod(1 - accepted[other] for other in order[:place])
            chances[chosen] += before * accepted[chosen] / len(orders)
    return chances


def drawn(utilities: list[float], epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """How often each is chosen in `DRAWS` runs of the mechanism."""
    accepted = np.exp(epsilon * (np.array(utilities) - max(utilities)) / 2)
    orders = rng.permuted(np.tile(np.arange(len(utilities)), (DRAWS, 1)), axis=1)
    flips = rng.random(orders.shape) < accepted[orders]
    chosen = orders[np.arange(DRAWS), flips.argmax(axis=1)]
    return np.bincount(chosen, minlength=len(utilities))


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0, 50.0])
def test_all_orders_of_seven_give_the_closed_form(epsilon):
    utilities = scaled_utilities(SEVEN)
    assert permute_and_flip(utilities, epsilon) == pytest.approx(
        enumerated(utilities, epsilon), abs=1e-12
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0, 50.0])
def test_drawing_agrees_with_the_closed_form_within_three_sigma(epsilon, rng):
    utilities = scaled_utilities(SEVEN)
    chances = permute_and_flip(utilities, epsilon)
    for count, chance in zip(drawn(utilities, epsilon, rng), chances, strict=True):
        sigma = sqrt(DRAWS * chance * (1 - chance))
        assert abs(count - DRAWS * chance) <= 3 * sigma + 1


def test_laplace_agrees_with_drawn_noise_within_three_sigma(rng):
    utilities = scaled_utilities(SEVEN)
    wanted = rng.laplace(scale=1 / 2.0, size=DRAWS)
    nearest = np.abs(wanted[:, None] - np.array(utilities)).argmin(axis=1)
    counts = np.bincount(nearest, minlength=len(SEVEN))
    for count, chance in zip(counts, laplace(utilities, 2.0), strict=True):
        assert abs(count - DRAWS * chance) <= 3 * sqrt(DRAWS * chance * (1 - chance)) + 1


@pytest.mark.parametrize("mechanism", [permute_and_flip, laplace])
def test_probabilities_add_up_and_the_best_is_likeliest_as_epsilon_grows(mechanism):
    utilities = scaled_utilities(SEVEN)
    for epsilon in (0.1, 1.0, 10.0, 100.0):
        chances = mechanism(utilities, epsilon)
        assert sum(chances) == pytest.approx(1.0)
        assert min(chances) >= 0
    assert mechanism(utilities, 1000.0)[-1] > 0.99


def test_permute_and_flip_keeps_epsilon():
    """Utilities that move by 1 change no probability by more than exp(epsilon)."""
    epsilon = 1.5
    for moved in product((-1.0, 0.0, 1.0), repeat=3):
        before = permute_and_flip([0.0, -0.3, -1.0], epsilon)
        after = permute_and_flip(
            [u + d for u, d in zip([0.0, -0.3, -1.0], moved, strict=True)], epsilon
        )
        for p, q in zip(before, after, strict=True):
            assert p <= exp(epsilon) * q + 1e-12


def test_equal_candidates_share_and_sums_end_at_one():
    assert permute_and_flip([0.0, 0.0], 3.0) == pytest.approx([0.5, 0.5])
    assert laplace([0.0, 0.0, 0.0], 3.0) == pytest.approx([1 / 3] * 3)
    assert cumulative([0.1, 0.2, 0.7])[-1] == 1.0
    assert scaled_utilities([0.8, 0.8]) == [0.0, 0.0]

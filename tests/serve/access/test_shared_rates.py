"""Buckets in shared memory are those of `RateLimits`, whichever of the processes is asked."""

from __future__ import annotations

import os

import numpy as np
import pytest

from serve.access import shared_rates
from serve.access.rate_limits import RateLimits
from serve.access.shared_rates import SharedRates, limits, make_rates_memory


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(("rate_qps", "burst"), [(10.0, 5.0), (0.5, 1.0), (200.0, 40.0)])
def test_two_processes_together_admit_what_one_admits(rng: np.random.Generator, rate_qps, burst):
    clock, file = Clock(), make_rates_memory()
    plain = RateLimits(rate_qps, burst, clock)
    doors = [limits(rate_qps, burst, clock, SharedRates(os.dup(file)), "token") for _ in range(2)]
    ends = []
    for _ in range(3000):
        clock.now_s += float(rng.exponential(0.05 / rate_qps))
        name, door = f"p{rng.integers(7)}", doors[rng.integers(2)]
        wait_s = door.take(name)
        assert wait_s == pytest.approx(plain.take(name), abs=1e-9)
        ends.append(wait_s == 0.0)
        if wait_s == 0.0 and rng.random() < 0.1:
            door.charge(name, 3)
            plain.charge(name, 3)
    assert 100 < sum(ends) < 2900
    os.close(file)


def test_kinds_of_principals_are_kept_apart():
    clock, rates = Clock(), SharedRates(make_rates_memory())
    token, tenant = (limits(1.0, 1.0, clock, rates, kind) for kind in ("token", "tenant"))
    assert token.take("a") == 0.0
    assert token.take("a") > 0.0
    assert tenant.take("a") == 0.0


def test_more_principals_than_places_cost_only_the_fullest_its_memory(monkeypatch):
    monkeypatch.setattr(shared_rates, "_PLACES", 32)
    clock, rates = Clock(), SharedRates(make_rates_memory())
    bound = limits(1.0, 2.0, clock, rates, "token")
    bound.take("busy")
    bound.take("busy")
    for number in range(500):
        assert bound.take(f"other {number}") == 0.0
    assert bound.take("busy") > 0.0, "it is charged most, so it is kept"

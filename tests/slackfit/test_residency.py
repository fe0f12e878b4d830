"""Residency policies: fill against exhaustive search, streams against the static oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from slackfit.residency import (
    Candidate,
    EncodedSubgraph,
    FixedResidency,
    NearestAverage,
    Savings,
    ValuePerByte,
    run_stream,
)

SUBNETS = ("a", "b", "c")


def random_savings(rng: np.random.Generator, num_sites: int) -> Savings:
    """Per site a shared slice for all subnets and a folded one for each."""
    candidates: list[Candidate] = []
    for site in range(num_sites):
        size = int(rng.integers(1, 9))
        shared = {i: float(rng.uniform(0.1, 1.0)) for i in SUBNETS}
        candidates.append(Candidate((site, None), site, size, 0.2 * size, shared))
        for i in SUBNETS:
            saved = {i: shared[i] * float(rng.uniform(1.0, 2.0))}
            candidates.append(Candidate((site, i), site, size, 0.2 * size, saved))
    return Savings(candidates)


def best_saving(savings: Savings, mix: dict[str, float], budget: int) -> float:
    """Try every set."""
    keys = list(savings.candidates)
    return max(
        savings.expected_s(chosen, mix)
        for number in range(len(keys) + 1)
        for chosen in itertools.combinations(keys, number)
        if savings.num_bytes(chosen) <= budget
    )


def test_filling_fits_the_budget_and_is_near_the_best_set(rng: np.random.Generator) -> None:
    ratios: list[float] = []
    for _ in range(12):
        savings = random_savings(rng, 3)
        mix = dict(zip(SUBNETS, rng.dirichlet([1.0] * 3).tolist(), strict=True))
        budget = int(rng.integers(4, 40))
        chosen = savings.fill(mix, budget)
        assert savings.num_bytes(chosen) <= budget
        ratios.append(
            savings.expected_s(chosen, mix) / max(1e-9, best_saving(savings, mix, budget))
        )
    assert np.mean(ratios) > 0.95
    assert min(ratios) > 0.7  # twelve slices of up to eight bytes: one slice is a large part


def test_two_forms_of_a_site_do_not_add_up() -> None:
    savings = Savings(
        [
            Candidate("shared", "conv", 4, 0.1, {"a": 1.0, "b": 1.0}),
            Candidate("folded", "conv", 4, 0.1, {"a": 1.5}),
        ]
    )
    assert savings.saved_s(["shared", "folded"], "a") == 1.5
    assert savings.saved_s(["shared", "folded"], "b") == 1.0
    assert savings.fill({"a": 1.0}, 8) == {"folded"}
    assert savings.fill({"a": 0.5, "b": 0.5}, 4) == {"shared"}
    assert savings.fill({"a": 0.5, "b": 0.5}, 8) == {"shared", "folded"}
    assert savings.fill({"a": 1.0}, 3) == frozenset()


def test_loading_that_does_not_pay_within_the_horizon_is_left() -> None:
    savings = Savings([Candidate("k", "conv", 4, 10.0, {"a": 1.0})])
    assert savings.fill({"a": 1.0}, 4, horizon=9.0) == frozenset()
    assert savings.fill({"a": 1.0}, 4, horizon=11.0) == {"k"}
    assert savings.fill({"a": 1.0}, 4, resident=frozenset({"k"}), horizon=9.0) == {"k"}


def stream_of(rng: np.random.Generator, phases: bool) -> list[str]:
    if not phases:
        return [SUBNETS[i] for i in rng.integers(3, size=1200)]
    leaders = np.repeat(np.arange(6) % 3, 200)
    return [SUBNETS[i if rng.random() < 0.8 else rng.integers(3)] for i in leaders]


@pytest.mark.parametrize("phases", [False, True])
def test_value_per_byte_follows_the_mix_and_beats_the_nearest_average(
    rng: np.random.Generator, phases: bool
) -> None:
    savings = random_savings(rng, 20)
    budget = int(0.3 * savings.num_bytes(savings.candidates))
    stream = stream_of(rng, phases)
    base_s = dict.fromkeys(SUBNETS, 40.0)
    mix = {i: stream.count(i) / len(stream) for i in SUBNETS}
    # SushiSched sees widths only: here all subnets look alike but for one number.
    encodings = {i: np.full(4, float(n)) for n, i in enumerate(SUBNETS)}
    subgraphs = [EncodedSubgraph(encodings[i], savings.fill({i: 1.0}, budget)) for i in SUBNETS]
    policies = {
        "value": ValuePerByte(savings, budget),
        "nearest": NearestAverage(encodings, subgraphs),
        "oracle": FixedResidency(savings.fill(mix, budget)),
    }
    results = {name: run_stream(stream, base_s, savings, p) for name, p in policies.items()}
    none = run_stream(stream, base_s, savings, None)
    assert none.mean_latency_s == pytest.approx(40.0)
    value, nearest, oracle = (results[n].mean_latency_s for n in ("value", "nearest", "oracle"))
    assert value < nearest
    assert value < none.mean_latency_s
    assert value <= 1.05 * oracle
    assert all(result.peak_bytes <= budget for result in results.values())
    if phases:
        assert value < oracle


def test_a_steady_mix_is_not_reloaded_again_and_again(rng: np.random.Generator) -> None:
    savings = random_savings(rng, 20)
    policy = ValuePerByte(savings, 60)
    stream = stream_of(rng, phases=False)
    changes = [n for n, i in enumerate(stream) if policy.observe(i) is not None]
    assert 1 <= len(changes) <= 40
    assert sum(n >= 600 for n in changes) <= 10
    assert policy.mix == {i: pytest.approx(1 / 3, abs=0.2) for i in SUBNETS}


def test_nearest_average_decides_every_period_on_the_average_of_that_period() -> None:
    encodings = {"a": np.array([0.0, 0.0]), "b": np.array([10.0, 10.0])}
    subgraphs = [EncodedSubgraph(encodings[i], frozenset({i})) for i in ("a", "b")]
    policy = NearestAverage(encodings, subgraphs, period=4)
    assert [policy.observe(i) for i in "aaab"] == [None, None, None, {"a"}]
    assert [policy.observe(i) for i in "abbb"] == [None, None, None, {"b"}]
    assert [policy.observe(i) for i in "bbbb"] == [None] * 4  # it is there already


def test_wrong_parameters_are_refused() -> None:
    one = Candidate("k", "conv", 4, 0.1, {"a": 1.0})
    with pytest.raises(ValueError, match="candidate 'k' is given twice"):
        Savings([one, one])
    with pytest.raises(ValueError, match="has 0 bytes"):
        Savings([one._replace(num_bytes=0)])
    with pytest.raises(ValueError, match="every is 0, allowed above 0"):
        ValuePerByte(Savings([one]), 4, every=0)
    with pytest.raises(ValueError, match="at least one candidate subgraph"):
        NearestAverage({}, [])

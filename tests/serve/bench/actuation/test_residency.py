"""The residency part: streams are what they are said to be; hits, misses and loads are charged."""

from collections import Counter
from types import SimpleNamespace

import pytest

from serve.bench.actuation.residency import ResidencyTable, _along, streams
from slackfit.residency import Candidate, FixedResidency, Savings

SAVINGS = Savings(
    [
        Candidate("a", "a", num_bytes=10, load_s=3.0, saved_s={"a": 0.5}),
        Candidate("b", "b", num_bytes=7, load_s=2.0, saved_s={"b": 0.4}),
        Candidate("c", "c", num_bytes=6, load_s=1.0, saved_s={"c": 0.4}),
    ]
)


def test_streams_are_uniform_and_phased():
    ids = list("abcdef")
    found = streams(ids)
    assert found == streams(ids), "the same for the same seed"
    assert all(len(stream) == 1200 for stream in found.values())
    assert all(150 < count < 250 for count in Counter(found["iid"]).values())
    leaders = []
    for start in range(0, 1200, 200):
        leader, times = Counter(found["phases"][start : start + 200]).most_common(1)[0]
        assert 145 < times < 185  # 0.8 and a sixth of the rest
        leaders.append(leader)
    assert sorted(leaders) == ids


def test_a_hit_is_charged_as_measured_a_miss_as_views_and_every_load():
    table = SimpleNamespace(
        base_s={"a": 1.0, "b": 2.0},
        savings=SAVINGS,
        budget_bytes=10,
        ratio=lambda keys, subnet_id: 0.25 if subnet_id in keys else 1.0,
    )
    stream = ["a", "b"] * 50
    ratio, detail = _along(table, stream, lambda: FixedResidency(frozenset("a")), 150.0)
    # the first batch finds nothing; then 49 of a at a quarter, 50 of b on views, one load of 3 s
    assert ratio == pytest.approx((1.0 + 49 * 0.25 + 50 * 2.0 + 3.0) / 150.0)
    assert "hit rate 0.490" in detail


def test_a_pair_that_is_rare_is_taken_from_the_cost_model():
    table = SimpleNamespace(
        base_s={"a": 1.0}, savings=SAVINGS, budget_bytes=10, ratio=lambda *pair: 100.0
    )
    ratio, _ = _along(table, ["a"] * 5, lambda: FixedResidency(frozenset("a")), 5.0)
    assert ratio == pytest.approx((1.0 + 4 * 0.5 + 3.0) / 5.0)


@pytest.mark.parametrize(
    ("budget_bytes", "best"), [(13, "bc"), (12, "a"), (6, "c"), (5, ""), (23, "abc")]
)
def test_the_oracle_tries_all_sets(budget_bytes, best):
    """Greedily by seconds per byte c comes first, and leaves no room for what saves most at 12."""
    mix = {"a": 0.34, "b": 0.33, "c": 0.33}
    table = SimpleNamespace(savings=SAVINGS, budget_bytes=budget_bytes)
    assert ResidencyTable.best_set(table, mix) == frozenset(best)

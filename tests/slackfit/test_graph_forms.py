"""What batches take with graphs and without, and what graphs save."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from slackfit.graph_forms import EAGER, GraphForms, as_captured, batch_name
from slackfit.profile import LatencyProfile, SubnetProfile

SIZES = (1, 2, 4, 8)


def random_profile(rng: np.random.Generator) -> LatencyProfile:
    def row() -> tuple[float, ...]:
        return tuple(np.sort(rng.uniform(1e-3, 9e-3, len(SIZES))).tolist())

    return LatencyProfile(
        name="random",
        device="none",
        dtype="float32",
        batch_sizes=SIZES,
        padded=True,
        subnets=tuple(
            SubnetProfile(subnet_id=i, accuracy=0.5, macs=0, latency_s={"p50": row(), EAGER: row()})
            for i in "ab"
        ),
    )


def test_a_batch_takes_the_fastest_form_that_there_is(rng: np.random.Generator) -> None:
    """Against the definition: the least of all graphs that take it, and of none."""
    for _ in range(5):
        profile = random_profile(rng)
        forms = GraphForms(profile)
        for count in range(len(SIZES) + 1):
            for live in itertools.combinations(SIZES, count):
                planned = as_captured(profile, {"a": live})
                for size in range(1, 9):
                    padded = next(s for s in SIZES if s >= size)
                    able_s = [profile.latency_s("a", g) for g in live if g >= padded]
                    eager_s = profile.latency_s("a", padded, EAGER)
                    assert planned.latency_s("a", size) == pytest.approx(min([eager_s, *able_s]))
                    graph = forms.graph_size("a", padded, live)
                    taken_s = eager_s if graph is None else profile.latency_s("a", graph)
                    assert planned.latency_s("a", size) == pytest.approx(taken_s)
                assert planned.table()["b"] == pytest.approx(profile.table(EAGER)["b"])


def test_savings_add_up_to_what_plans_get_shorter(rng: np.random.Generator) -> None:
    profile = random_profile(rng)
    savings = GraphForms(profile).savings(1, 0.0)
    keys = list(savings.candidates)
    for count in range(len(keys) + 1):
        for chosen in itertools.islice(itertools.combinations(keys, count), 20):
            live = {i: [size for j, size in chosen if i == j] for i in "ab"}
            planned = as_captured(profile, live)
            for i in "ab":
                for size in SIZES:
                    saved_s = profile.latency_s(i, size, EAGER) - planned.latency_s(i, size)
                    assert savings.saved_s(chosen, batch_name(i, size)) == pytest.approx(
                        saved_s, abs=1e-12
                    )


def test_tails_are_longer_in_proportion_and_a_cut_profile_knows_its_graphs() -> None:
    latency_s = {"p50": (1.0, 2.0, 3.0, 4.0), "p95": (1.5, 3.0, 4.5, 6.0), EAGER: (5.0,) * 4}
    row = SubnetProfile(subnet_id="a", accuracy=0.5, macs=0, latency_s=latency_s)
    profile = LatencyProfile(
        name="p", device="d", dtype="t", batch_sizes=SIZES, padded=True, subnets=(row,)
    )
    planned = as_captured(profile, {"a": [4]})
    assert planned.subnets[0].latency_s == {
        "p50": (3.0, 3.0, 3.0, 5.0),
        "p95": (4.5, 4.5, 4.5, 7.5),
        EAGER: (5.0,) * 4,
    }
    live = GraphForms(profile).within(3, {"a": [4]})
    cut = as_captured(profile.capped(3), live)
    assert cut.batch_sizes == (1, 2, 3)
    assert cut.subnets[0].latency_s["p50"] == (3.0, 3.0, 3.0)
    scaled = as_captured(profile.scaled(2.0), {"a": [4]})
    assert scaled.subnets[0].latency_s["p50"] == (6.0, 6.0, 6.0, 10.0)


@pytest.mark.parametrize("largest", range(1, 9))
def test_a_cut_profile_counts_on_no_graph_that_is_not_there(
    rng: np.random.Generator, largest: int
) -> None:
    """A plan never says less than the batch takes, and exactly that where graphs are within it."""
    for _ in range(5):
        profile = random_profile(rng)
        forms, padded = GraphForms(profile), next(s for s in SIZES if s >= largest)
        for count in range(len(SIZES) + 1):
            for live in itertools.combinations(SIZES, count):
                cut = as_captured(profile.capped(largest), forms.within(largest, {"a": live}))
                whole = as_captured(profile, {"a": live})
                for size in range(1, largest + 1):
                    planned_s, takes_s = cut.latency_s("a", size), whole.latency_s("a", size)
                    assert planned_s >= takes_s - 1e-12
                    if all(graph <= padded for graph in live):
                        assert planned_s == pytest.approx(takes_s)

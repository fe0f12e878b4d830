"""Plans of traces that are not in memory: hours apart, the smallest fleet, what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from serve.cli import build_app
from slackfit.compiled.code_cache import missing
from slackfit.compiled.simulate import simulate_columns
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.simulation.devices import AS_PROFILED
from traces.planning.candidates import FleetCandidate
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.certificate import by_mean_rate
from traces.planning.hours import (
    Fielded,
    HourlyTrials,
    busiest_first,
    expected_queries,
    num_hours,
)
from traces.planning.long_plan import make_long_plan
from traces.planning.page import plan_page, undercut
from traces.planning.planner import PlanOptions
from traces.planning.promise import Promise, parse_promise
from traces.spec.streamed import PieceSource, piece_source
from traces.trace import TraceError

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "numba is here")

RESNET = Path("profiles/superserve_resnet_2080ti.json").resolve()
DAY = "diurnal:rate=30,peak=1.8,duration=9000,cv2=2"
PROMISE = Promise(0.999, 0.775)


@pytest.fixture(scope="module")
def slow() -> LatencyProfile:
    return LatencyProfile.load(RESNET).scaled(100.0)


def candidate(profile: LatencyProfile, policy: str = "slackfit") -> FleetCandidate:
    offer = DeviceOffer(name="d", profile=profile, start_up_s=60.0)
    return FleetCandidate(offer, policy, profile.subnet_ids, profile.max_batch_size)


@pytest.mark.parametrize("processes", [1, 2])
def test_hours_are_served_apart_and_counted(slow: LatencyProfile, processes: int):
    source = piece_source(DAY, seed=1)
    assert num_hours(source) == 3
    assert busiest_first(source)[0] == 1
    fleets = [Fielded(candidate(slow, name), n) for name, n in (("slackfit", 2), ("drainfit", 3))]
    arrival_s = np.concatenate([source.piece(k) for k in range(len(source))])
    with HourlyTrials(3.6, Promise(0.01), AS_PROFILED, processes=processes) as trials:
        assert trials.num_queries(source) == len(arrival_s)
        found = trials.run(source, fleets, 1)
    for fleet, trial in zip(fleets, found, strict=True):
        on_time = accurate = 0.0
        for begin_s in (0.0, 3600.0, 7200.0):
            first, last = np.searchsorted(arrival_s, [begin_s, begin_s + 3600.0])
            columns = simulate_columns(
                arrival_s[first:last] - begin_s, slow, create_policy(fleet.candidate.policy, slow),
                slo_s=3.6, num_workers=fleet.workers,
            ).columns  # fmt: skip
            on_time += columns.on_time.sum()
            accurate += columns.accuracy[columns.on_time].sum()
        assert trial.all.arrived.sum() == len(arrival_s)
        assert trial.all.on_time.sum() == on_time
        assert trial.all.accurate.sum() == pytest.approx(accurate)
    assert found[0].attainment < found[1].attainment


def test_a_fleet_that_misses_too_much_is_asked_no_more(slow: LatencyProfile):
    with HourlyTrials(3.6, PROMISE, AS_PROFILED, processes=1) as trials:
        one, many = trials.run(piece_source(DAY), [Fielded(candidate(slow), n) for n in (1, 6)], 0)
        assert trials.num_runs == 4  # one hour of the first, three of the second
    assert one.ended_early
    assert not one.keeps(PROMISE)
    assert many.keeps(PROMISE)


BURSTS = "gamma:rate=100,cv2=64,duration=60"


def arrivals(source: PieceSource) -> int:
    return sum(len(source.piece(number)) for number in range(len(source)))


def test_a_fleet_ends_early_by_what_arrives_and_not_by_one_piece(slow: LatencyProfile):
    """A piece stood for all of them, and had 0.64 of their mean."""
    source = piece_source(BURSTS, seed=2)
    assert expected_queries(source) == 6000
    one = [Fielded(candidate(slow), 6)]
    with HourlyTrials(3.6, Promise(0.01), AS_PROFILED, processes=1) as trials:
        (whole,) = trials.run(source, one, 0)
    assert 0.1 < whole.attainment < 0.9
    exactly = Promise(whole.attainment)
    with HourlyTrials(3.6, exactly, AS_PROFILED, processes=1) as trials:
        (kept,) = trials.run(source, one, 0)
    assert kept.keeps(exactly)


def test_a_streamed_certificate_is_of_what_arrives(slow: LatencyProfile):
    """It was of a piece with 1.5 times the mean, which some fleets below it had kept."""
    source = piece_source(BURSTS, seed=8)
    made = make_long_plan(
        {0: source}, 3.6, Catalog(offers=(candidate(slow).offer,)), Promise(0.999, 0.8),
        PlanOptions(policies=["slackfit"], confidence=0.0, max_devices=1), processes=1,
    )  # fmt: skip
    count = arrivals(source)
    assert made["saturated"]
    assert made["trace"]["num_queries"] == count
    least = by_mean_rate(slow, count, 63.6, Promise(0.999, 0.8))
    assert made["certificates"]["d"]["mean"] == made["certificate_workers"] == least > 1
    assert made["certificate_of"] == "every fleet"


def test_of_two_types_a_streamed_plan_claims_no_more_than_of_one(slow: LatencyProfile):
    one = candidate(slow).offer
    catalog = Catalog(offers=(one, replace(one, name="e", price_per_hour=2.0)))
    options = PlanOptions(policies=["slackfit"], confidence=0.0)
    source = piece_source("poisson:rate=20,duration=20")
    made = make_long_plan({0: source}, 3.6, catalog, Promise(0.9), options, processes=1)
    assert "no fleet of one type costs less than" in undercut(made)
    few = replace(options, max_devices=1)
    strict = Promise(0.999, 0.8)
    source = piece_source("poisson:rate=100,duration=20")
    made = make_long_plan({0: source}, 3.6, catalog, strict, few, processes=1)
    assert re.search(r"with up to 1 devices; any policy needs \d+ of one type", made["why"])


def test_the_plan_is_the_smallest_fleet_that_keeps_the_promise_all_day_on_all_seeds(
    slow: LatencyProfile,
):
    catalog = Catalog(offers=(candidate(slow).offer,))
    options = PlanOptions(policies=["slackfit"], confidence=0.0)
    sources = {seed: piece_source(DAY, seed=seed) for seed in (0, 1)}
    made = make_long_plan(sources, 3.6, catalog, PROMISE, options, processes=1)
    chosen = FleetCandidate(
        catalog.offers[0], "slackfit", tuple(made["subnets"]), made["max_batch"]
    )
    kept: dict[int, bool] = {}
    with HourlyTrials(3.6, PROMISE, AS_PROFILED, processes=1) as trials:
        for count in (made["workers"] - 1, made["workers"]):
            runs = [trials.run(s, [Fielded(chosen, count)], seed)[0] for seed, s in sources.items()]
            kept[count] = all(run.keeps(PROMISE) for run in runs)
    assert kept == {made["workers"] - 1: False, made["workers"]: True}
    assert runs[0].attainment == made["attainment"]
    assert [row["seed"] for row in made["seeds"]] == [0, 1]
    assert made["certificate_workers"] <= made["workers"]
    workers = [row["workers"] for row in made["day"]]
    assert len(workers) == 3
    assert workers[1] >= workers[0]
    assert made["answers_of"].startswith("the busiest ")
    assert f"{made['workers']} x d" in plan_page(made | {"command": ""})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slo_s": None}, "a streamed trace carries no deadlines"),
        ({"promise": parse_promise("attainment>=0.9,1:attainment>=0.99")}, "has no tenants and"),
        ({"policies": ["proteus"]}, "--stream needs the compiled scheduler, but"),
    ],
)
def test_what_a_streamed_plan_cannot_do_is_said(
    slow: LatencyProfile, change: dict[str, Any], message: str
):
    given = {"slo_s": 3.6, "promise": PROMISE, "policies": ["slackfit"], **change}
    with pytest.raises(TraceError, match=message):
        make_long_plan(
            {0: piece_source(DAY)}, given["slo_s"], Catalog(offers=(candidate(slow).offer,)),
            given["promise"], PlanOptions(policies=given["policies"]), processes=1,
        )  # fmt: skip


def test_a_saturated_day_says_so():
    arguments = [
        "plan", "--profile", str(RESNET), "--trace", "poisson:rate=3000,duration=20", "--slo-ms",
        "36", "--slo", "attainment>=0.999,accuracy>=0.8", "--max-devices", "1", "--stream",
        "--processes", "1", "--policies", "slackfit", "--json", "-",
    ]  # fmt: skip
    result = CliRunner().invoke(build_app(arguments), arguments)
    assert result.exit_code == 3, result.stderr
    made = json.loads(result.stdout)
    assert made["saturated"]
    assert made["certificate_workers"] > 1
    assert "latency" not in result.stdout


def test_a_fleet_grows_until_every_seed_keeps_the_promise(slow: LatencyProfile):
    catalog = Catalog(offers=(candidate(slow).offer,))
    options = PlanOptions(policies=["slackfit"], confidence=0.0)
    light, heavy = (
        piece_source(f"poisson:rate={rate},duration=3600", seed=rate) for rate in (30, 70)
    )
    alone = make_long_plan({0: light}, 3.6, catalog, PROMISE, options, processes=1)
    both = make_long_plan({0: light, 1: heavy}, 3.6, catalog, PROMISE, options, processes=1)
    assert both["workers"] > alone["workers"]
    assert [row["attainment"] >= 0.999 for row in both["seeds"]] == [True, True]
    # What is told of the first seed is of the fleet that was chosen.
    assert both["seeds"][0]["accuracy"] == both["accuracy"] > alone["accuracy"]

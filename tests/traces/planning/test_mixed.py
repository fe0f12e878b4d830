"""Fleets of two types: against every such fleet, their bound, how queries are shared, the plan."""

from __future__ import annotations

import ctypes
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from serve.bench.policies.small_catalogs import SmallTask, small_task
from serve.cli import build_app
from slackfit.compiled.simulate import simulate_columns
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile, SubnetProfile
from traces.planning.candidates import Beside, FleetCandidate, candidates
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.certificate import certify
from traces.planning.mixed_bound import MixedBound
from traces.planning.mixed_search import with_mixed
from traces.planning.page import plan_page, undercut
from traces.planning.planner import PlanOptions, allowed_devices, make_plan
from traces.planning.promise import Promise, parse_promise
from traces.planning.search import Fleet, FleetSearch, FoundFleets, Task
from traces.planning.traffic import Traffic
from traces.planning.trial import run_trial
from traces.trace import Trace

MOST = 3


def flat(name: str, seconds: float, price: float, accuracy: float = 0.7) -> DeviceOffer:
    """A device of one subnet that takes one query after the other."""
    only = SubnetProfile(subnet_id="only", accuracy=accuracy, macs=1, latency_s={"p50": (seconds,)})
    profile = LatencyProfile(
        name=name, device="none", dtype="none", batch_sizes=(1,), subnets=(only,)
    )
    return DeviceOffer(name=name, profile=profile, price_per_hour=price)


BIG, SMALL = flat("big", 0.001, 10.0), flat("small", 0.01, 1.2)
STEADY_S = np.arange(0, 10, 1 / 1050)
PROMISE = Promise(0.999, 0.7)


def alone(offer: DeviceOffer, policy: str = "slackfit") -> FleetCandidate:
    profile = offer.profile
    return FleetCandidate(offer, policy, profile.subnet_ids, profile.max_batch_size)


def test_two_types_are_planned_where_they_are_cheaper_than_one():
    trace = Trace(arrival_s=STEADY_S, duration_s=10.0)
    catalog = Catalog(offers=(BIG, SMALL))
    options = PlanOptions(policies=["slackfit"], confidence=0.0)
    made = make_plan(trace, 0.05, catalog, PROMISE, options)
    assert made["fleet"] == "1 x small + 1 x big"
    assert (made["workers"], made["device"], made["mixed"]) == (2, "small + big", True)
    assert made["cost_per_hour"] == made["certificate_cost"] == pytest.approx(11.2)
    assert made["certificate_workers"] == 2
    shares = {pool["device"]: pool["share"] for pool in made["pools"]}
    assert shares == {"small": pytest.approx(1 / 11), "big": pytest.approx(10 / 11)}
    assert made["attainment"] >= 0.999
    assert made["headroom"]["factor"] > 1.0
    page = plan_page(made | {"command": ""})
    assert "1 x small + 1 x big" in page
    assert "90.9%" in page
    one_type = make_plan(trace, 0.05, catalog, PROMISE, replace(options, mixed=False))
    assert (one_type["fleet"], one_type["mixed"]) == ("11 x small", False)
    assert one_type["cost_per_hour"] == pytest.approx(13.2)
    # What is not searched is bounded all the same.
    assert one_type["certificate_cost"] == pytest.approx(11.2)
    assert undercut(one_type) == (
        "no policy needs fewer than 11 x small, no fleet costs less than 11.2 an hour"
    )
    assert undercut(made) == (
        "with 1 x big no policy needs fewer than 1 x small, no fleet costs less than 11.2 an hour"
    )
    bounded = make_plan(trace, 0.05, catalog, PROMISE, replace(options, max_devices=1))
    assert bounded["saturated"]
    assert bounded["why"] == "no policy keeps the promise with 1 devices: any needs 2 at least"
    few = Catalog(offers=(replace(BIG, max_devices=1), replace(SMALL, max_devices=3)))
    bounded = make_plan(trace, 0.05, few, Promise(0.999, 0.7), replace(options, mixed=False))
    assert bounded["why"] == (
        "no candidate keeps the promise with up to the catalogue's 1 x big, 3 x small; any policy "
        "needs 2"
    )
    few = Catalog(offers=(BIG, replace(SMALL, max_devices=3)))
    assert allowed_devices(9, few.offers) == "9 devices and the catalogue's 3 x small"
    assert allowed_devices(2, few.offers) == "2 devices"
    assert allowed_devices(None, few.offers) == "4096 devices and the catalogue's 3 x small"


def test_a_device_that_is_not_accurate_enough_alone_stands_beside_one_that_is():
    good, poor = flat("good", 0.002, 3.0, accuracy=0.8), flat("poor", 0.002, 1.0, accuracy=0.6)
    trace = Trace(arrival_s=np.arange(0, 4, 1 / 950), duration_s=4.0)
    made = make_plan(
        trace, 0.05, Catalog(offers=(good, poor)), Promise(0.99, 0.695),
        PlanOptions(policies=["slackfit"], confidence=0.0),
    )  # fmt: skip
    assert made["fleet"] == "1 x poor + 1 x good"
    assert made["accuracy"] == pytest.approx(0.7, abs=0.01)


def test_each_type_serves_its_share_as_if_it_were_alone():
    beside = Beside(alone(BIG), 1, 5.0)
    candidate = replace(alone(SMALL), beside=beside)
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.exponential(1 / 900, 5000))
    traffic = Traffic(arrival_s, float(arrival_s[-1]) + 1e-9, 0.03)
    trial = run_trial(candidate, 2, traffic)
    share = candidate.share(2)
    assert share == pytest.approx(2 / 7)
    # Dealt as evenly as can be: after k queries the smaller ones have had k times their share.
    own = np.diff(np.floor(np.arange(5001) * share + 1e-9)) > 0
    expected = 0
    for mask, offer, workers in ((own, SMALL, 2), (~own, BIG, 1)):
        policy = create_policy("slackfit", offer.profile)
        expected += simulate_columns(
            arrival_s[mask], offer.profile, policy, slo_s=0.03, num_workers=workers
        ).columns.on_time.sum()
    assert trial.all.on_time.sum() == expected
    assert 0 < expected < 5000
    assert trial.all.arrived.sum() == 5000
    assert candidate.cost(2) == pytest.approx(12.4)


def two_types(seed: int) -> SmallTask | None:
    """A drawn task with its first two types of device; None: it has but one."""
    task = small_task(seed)
    if len(task.catalog.offers) < 2:
        return None
    return task._replace(catalog=Catalog(offers=task.catalog.offers[:2]))


def in_order(task: SmallTask) -> list[DeviceOffer]:
    """The dearer type, and the cheaper one."""
    return sorted(task.catalog.offers, key=lambda o: (-o.price_per_hour, o.name))


def mixes(task: SmallTask) -> list[Fleet]:
    """Every fleet of both types with up to three each, shared in every way that is tried."""
    dear, cheap = in_order(task)
    found: list[Fleet] = []
    for few, many, weight in itertools.product(
        range(1, MOST + 1), range(1, MOST + 1), (0.5, 1.0, 2.0)
    ):
        beside = Beside(alone(dear, "drainfit"), few, weight)
        candidate = replace(alone(cheap, "drainfit"), beside=beside)
        found.append(Fleet(candidate, many, run_trial(candidate, many, task.traffic)))
    return found


def test_no_mixed_fleet_below_the_bound_keeps_the_promise():
    refuted = 0
    for seed in range(10):
        task = two_types(seed)
        if task is None:
            continue
        _, traffic, promise, _ = task
        dear, cheap = in_order(task)
        bound = MixedBound([cheap, dear], traffic, promise)
        least_beside = {few: bound.fewest_beside([few], MOST) for few in range(1, MOST + 1)}
        cheapest = bound.cheapest([MOST, MOST], 2 * MOST)
        for fleet in mixes(task):
            least = least_beside[fleet.candidate.num_beside]
            if fleet.trial.keeps(promise):
                assert least is not None, f"seed {seed}"
                assert least <= fleet.workers, f"seed {seed}"
                assert cheapest is not None, f"seed {seed}"
                assert bound.cost(cheapest) <= fleet.cost + 1e-9, f"seed {seed}"
            else:
                refuted += least is None or least > fleet.workers
    assert refuted > 3


def test_the_bound_of_one_type_is_its_certificate():
    for seed in range(8):
        catalog, traffic, promise, _ = small_task(seed)
        for offer in catalog.offers:
            rows = offer.profile.table()
            if max(s.accuracy for s in offer.profile.subnets) < promise.accuracy:
                continue
            if max(row[1] for row in rows.values()) > float(traffic.slo_s):
                continue  # what no deadline affords counts in the one, not in the other
            least = certify(offer.profile, traffic, promise, programs=False)
            found = MixedBound([offer], traffic, promise).fewest([1000], 1000)
            assert found == (max(least.mean, least.windows),), f"seed {seed}"


def test_the_bound_says_nothing_on_stdout(capfd: pytest.CaptureFixture[str]):
    """The solver's machine code told of its heuristics there, in the midst of a plan's JSON."""
    resnet = LatencyProfile.load(Path("profiles/superserve_resnet_2080ti.json"))
    fast, slow = (
        DeviceOffer(name=name, profile=resnet.scaled(factor), price_per_hour=price)
        for name, factor, price in (("fast", 1.0, 1.0), ("slow", 2.0, 0.6))
    )
    traffic = Traffic(np.arange(0, 1, 1 / 5000), 1.0, 0.036)
    bound = MixedBound([fast, slow], traffic, Promise(0.99, 0.79))
    ctypes.CDLL(None).fflush(None)  # of earlier tests
    capfd.readouterr()
    assert bound.cheapest([4096, 4096], 8192) is not None
    ctypes.CDLL(None).fflush(None)
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_a_groups_own_promise_bounds_mixed_fleets():
    is_gold = np.arange(len(STEADY_S)) % 2 == 0
    traffic = Traffic(STEADY_S, 10.0, 0.05, groups={"gold": is_gold})
    good = flat("good", 0.004, 2.0, accuracy=0.9)
    for promise, numbers in (
        (parse_promise("attainment>=0.99"), (2, 0)),
        (parse_promise("attainment>=0.99,gold:floor>=0.8,gold:attainment>=0.99"), (2, 3)),
    ):
        big = replace(BIG, price_per_hour=0.1)
        found = MixedBound([big, good], traffic, promise).cheapest([9, 9], 18)
        assert found is not None
        assert found[1] == numbers[1]


def test_the_search_finds_the_cheapest_of_all_mixed_fleets():
    found_any = 0
    for seed in range(10):
        task = two_types(seed)
        if task is None:
            continue
        catalog, traffic, promise, _ = task
        offers = tuple(replace(offer, max_devices=MOST) for offer in catalog.offers)
        search = FleetSearch(Task(traffic, promise))
        found = with_mixed(search, FoundFleets([], []), offers, "drainfit")
        kept = [fleet.cost for fleet in mixes(task) if fleet.trial.keeps(promise)]
        if found.fleets:
            best = found.fleets[0]
            assert run_trial(best.candidate, best.workers, traffic).keeps(promise), f"seed {seed}"
            found_any += 1
        if kept:
            assert found.fleets, f"seed {seed}"
            # Shares of the enumeration are others: neither has all that the other has.
            assert found.fleets[0].cost <= 1.25 * min(kept), f"seed {seed}"
    assert found_any >= 2


def test_a_mixed_fleet_that_no_policy_could_make_cheaper_is_not_tried():
    traffic = Traffic(STEADY_S, 10.0, 0.05)
    dear = replace(BIG, price_per_hour=100.0)
    search = FleetSearch(Task(traffic, PROMISE))
    tried = candidates(Catalog(offers=(dear, SMALL)), ["slackfit"], PROMISE, 0.05)
    one_type = search.run(tried)
    before = search.num_trials
    found = with_mixed(search, one_type, (dear, SMALL), "slackfit")
    assert search.num_trials == before
    assert found.fleets == one_type.fleets
    assert found.dropped[-1].why == "no policy does for less than 13.2 an hour"


def test_the_command_plans_mixed_fleets_unless_told_not_to(tmp_path: Path):
    for offer in (BIG, SMALL):
        offer.profile.save(tmp_path / f"{offer.name}.json")
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        'dated = "2026-11-01"\n'
        + "".join(
            f'[[device]]\nname = "{o.name}"\nprofile = "{o.name}.json"\n'
            f"price_per_hour = {o.price_per_hour}\n"
            for o in (BIG, SMALL)
        )
    )
    words = [
        "plan", "--catalog", str(catalog), "--trace", "gamma:rate=1050,cv2=0,duration=4",
        "--slo", "attainment>=0.99", "--slo-ms", "50", "--policies", "slackfit", "--json", "-",
    ]  # fmt: skip
    for more, fleet in (([], "1 x small + 1 x big"), (["--no-mixed"], "11 x small")):
        arguments = [*words, *more]
        result = CliRunner().invoke(build_app(arguments), arguments)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["fleet"] == fleet

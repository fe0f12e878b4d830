"""Promises of exactly what a subnet has, and of the nearest that a refusal names."""

from __future__ import annotations

import re

import numpy as np
import pytest

from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.streams.iteration_cost import IterationCosts
from traces.planning.candidates import FleetCandidate, candidates
from traces.planning.catalog import Catalog, DeviceOffer
from traces.planning.certificate import certify, query_s
from traces.planning.possible import impossible_part
from traces.planning.promise import PartPromise, Promise, parse_promise, rounded_down
from traces.planning.streams.stream_alone import impossible_streams
from traces.planning.streams.stream_promise import StreamPromise
from traces.planning.streams.stream_trial import StreamTrial
from traces.planning.traffic import Traffic
from traces.planning.trial import Counts, Trial, run_trial
from traces.trace import Trace

ACCURACY = 0.7944


def one_subnet(accuracy: float) -> LatencyProfile:
    only = SubnetProfile(subnet_id="only", accuracy=accuracy, macs=1, latency_s={"p50": (0.001,)})
    return LatencyProfile(
        name="one", device="none", dtype="none", batch_sizes=(1,), subnets=(only,)
    )


def test_all_served_by_a_subnet_keep_a_promise_of_its_accuracy():
    """Sums of floats fell short of it by a rounding."""
    profile = one_subnet(ACCURACY)
    offer = DeviceOffer(name="one", profile=profile)
    candidate = FleetCandidate(offer, "slackfit", profile.subnet_ids, 1)
    arrival_s = np.arange(0, 1, 0.002)
    short = 0
    for count in range(390, 430):
        traffic = Traffic(arrival_s[:count], 1.0, 0.05)
        trial = run_trial(candidate, 1, traffic)
        assert trial.attainment == 1.0
        short += trial.accuracy < ACCURACY
        assert trial.keeps(Promise(1.0, ACCURACY)), count
        assert trial.share_kept(Promise(1.0, ACCURACY)) == 1.0, count
    assert short > 3
    assert not trial.keeps(Promise(1.0, ACCURACY + 1e-6))


def short_by_a_rounding(count: int = 120) -> np.ndarray:
    """A block each of two queries of that accuracy, of a sum that falls short."""
    values = np.full(count, 2 * ACCURACY)
    values[::3] -= 2e-16
    assert values.sum() / (2 * count) < ACCURACY
    return values


def test_groups_and_streams_keep_what_falls_short_by_a_rounding():
    two = np.full(120, 2)
    counts = Counts(two, two, short_by_a_rounding())
    promise = Promise(1.0, ACCURACY, parts=(PartPromise("gold", 1.0, ACCURACY),))
    trial = Trial(counts, groups={"gold": counts})
    assert trial.keeps(promise)
    assert trial.share_kept(promise) == 1.0
    streams = StreamTrial(two, two, short_by_a_rounding(), short_by_a_rounding(), two, {}, {})
    kept = StreamPromise(1.0, 1.0, 1.0, ACCURACY, ACCURACY)
    assert streams.keeps(kept)
    assert streams.share_kept(kept) == 1.0
    assert not streams.keeps(kept._replace(fluidity=ACCURACY + 1e-6))


@pytest.mark.parametrize("accuracy", [0.79435678, np.nextafter(ACCURACY, 0.0), 0.7, 2 / 3])
def test_the_nearest_that_a_refusal_names_is_possible(accuracy: float):
    profile = one_subnet(accuracy)
    traffic = Traffic(np.arange(0, 1, 0.01), 1.0, 0.05)
    for promise in (Promise(0.9, 0.9), Promise(0.9, floor=0.9)):
        fault = impossible_part(promise, profile, traffic)
        named = re.search(r"nearest possible is (\w+>=[0-9.]+)", fault)
        assert named is not None
        asked = parse_promise(f"attainment>=0.9,{named[1]}")
        assert impossible_part(asked, profile, traffic) == ""
        assert certify(profile, traffic, asked).workers == 1
        catalog = Catalog(offers=(DeviceOffer(name="one", profile=profile),))
        assert candidates(catalog, ["slackfit"], asked, 0.05)
    # A rounding above the best is the best: not impossible, and of a finite certificate.
    assert query_s(profile, np.nextafter(accuracy, 1.0)) == pytest.approx(0.001)


def test_the_nearest_fluidity_that_a_refusal_names_is_possible():
    decoder = LatencyProfile.load("profiles/smollm2_135m_example.json")
    rng = np.random.default_rng(1)
    trace = Trace(
        arrival_s=np.linspace(0, 9, 30), duration_s=10.0,
        prompt_tokens=rng.integers(5, 60, 30), output_tokens=rng.integers(3, 23, 30),
    )  # fmt: skip
    costs = IterationCosts.of(decoder)
    for period_s in np.linspace(0.002, 0.012, 8).tolist():
        asked = StreamPromise(10 * period_s, period_s, fluidity=0.9999)
        told = impossible_streams(costs, trace, asked, "d")
        named = re.search(r"nearest possible is fluidity>=([0-9.]+)", told)
        assert named is not None
        assert not impossible_streams(costs, trace, asked._replace(fluidity=float(named[1])), "d")


def test_numbers_are_rounded_down():
    assert rounded_down(0.0) == 0.0
    assert [rounded_down(v) for v in (1.0, 0.9999999, 0.1234565)] == [1.0, 0.999999, 0.123456]
    assert rounded_down(np.nextafter(ACCURACY, 0.0), 1e-9) == ACCURACY


def test_what_may_miss_is_what_keeps_the_promise():
    """(1 - 0.9) x 553 million is a rounding below a whole number."""
    for count in (10, 1000, 10_000_000, 553_000_000):
        missed = count // 10
        promise = Promise(0.9)
        assert promise.is_kept((count - missed) / count, 0.0)
        assert missed <= promise.spared(count) < missed + 1

"""Mixed traffic in virtual time: the server's scheduler with its settings, on eight devices.

Loads are in parts of what the devices serve on the fastest subnet. Several models on one device are
here in bursts, too; `mixed_timed.py` has them live.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from serve.bench.mixed.cell import Finding, MixedCell
from slackfit.policies import create_policy
from slackfit.profile import LatencyProfile
from slackfit.query import Outcome, Query
from slackfit.scheduling.scheduler import Scheduler
from slackfit.simulation.shared_device import SharedDevice, SharedModel
from slackfit.simulation.simulate import simulate_queries

DEFAULT_POLICY = "drainfit"
_SLO_S = 0.036
_NUM_WORKERS = 8
_SEEDS = (0, 1)
_DURATION_S = 4.0
_MAX_QUEUE = 1000  # the server's default

Wishes = Callable[[float, bool], Query]
"""Makes the query of an arrival (seconds), that is of the minority or not; its id is set later."""


def virtual_cells(profile: LatencyProfile) -> list[MixedCell]:
    """Return the cells."""
    measures = {
        "priority5": _priority5,
        "slo_mix/tight": _tight,
        "slo_mix/queue": _full_queue,
        "pinned20": _pinned20,
        "bursty_models": _bursty_models,
    }
    return [MixedCell(name, partial(measure, profile)) for name, measure in measures.items()]


def _priority5(profile: LatencyProfile) -> list[Finding]:
    def query(at_s: float, is_urgent: bool) -> Query:
        return Query(0, at_s, at_s + _SLO_S, query_class=int(is_urgent))

    others, urgent = _served(profile, 1.15 * capacity_qps(profile), 0.05, query)
    detail = _detail("5 % of class 1 at 1.15 of capacity")
    return [
        Finding("priority5/class0", attainment(others), "fraction", ">= 0.86", detail),
        Finding("priority5/class1", attainment(urgent), "fraction", ">= 0.999", detail),
    ]


def _tight(profile: LatencyProfile) -> list[Finding]:
    others, tight = _served(profile, 11_000.0, 0.1, _with_slos(0.5, 0.012))
    detail = f"others {attainment(others):.4f}/{accuracy(others):.4f}; " + _detail(
        "10 % with an SLO of 12 ms, the others with 500 ms, 11,000 queries/s"
    )
    return [Finding("slo_mix/tight", attainment(tight), "fraction", ">= 0.998", detail)]


def _full_queue(profile: LatencyProfile) -> list[Finding]:
    tight, loose = _served(profile, 7000.0, 0.1, _with_slos(_SLO_S, 2.0))
    detail = f"loose {attainment(loose):.4f}/{accuracy(loose):.4f}; " + _detail(
        "those with 36 ms, beside 10 % with 2 s; 7,000 queries/s"
    )
    return [Finding("slo_mix/queue", attainment(tight), "fraction", ">= 0.999", detail)]


def _pinned20(profile: LatencyProfile) -> list[Finding]:
    largest = profile.subnet_ids[-1]

    def query(at_s: float, is_pinned: bool) -> Query:
        return Query(0, at_s, at_s + _SLO_S, subnet_id=largest if is_pinned else None)

    others, pinned = _served(profile, 7000.0, 0.2, query)
    detail = f"others' attainment {attainment(others):.4f}; " + _detail(
        f"20 % pinned to {largest}, 7,000 queries/s, CV^2 1; a static split of the workers gives "
        "0.781 and 1.000"
    )
    return [
        Finding("pinned20/others_accuracy", accuracy(others), "fraction", ">= 0.780", detail),
        Finding("pinned20/pinned_attainment", attainment(pinned), "fraction", ">= 0.98", detail),
    ]


def _bursty_models(profile: LatencyProfile) -> list[Finding]:
    findings: list[Finding] = []
    for load in (0.23, 0.6):
        for num_models in (2, 4):
            rate_qps = load * capacity_qps(profile) / _NUM_WORKERS / num_models
            ours, theirs = (
                _on_one_device(profile, num_models, rate_qps, policy)
                for policy in (DEFAULT_POLICY, "slackfit")
            )
            text = (
                f"accuracy {accuracy(ours):.4f}, SlackFit {attainment(theirs):.4f}/"
                f"{accuracy(theirs):.4f}; VIRTUAL time, one device at {load:g} of capacity, gamma "
                f"gaps of CV^2 4, seeds {_SEEDS}"
            )
            name = f"bursty/load{round(100 * load)}/models{num_models}/attainment"
            findings.append(Finding(name, attainment(ours), "fraction", "", text))
    return findings


def _with_slos(usual_s: float, other_s: float) -> Wishes:
    return lambda at_s, is_other: Query(0, at_s, at_s + (other_s if is_other else usual_s))


def _served(
    profile: LatencyProfile, rate_qps: float, share: float, query: Wishes
) -> tuple[list[Outcome], list[Outcome]]:
    """Serve Poisson arrivals of which `share` are a minority; return (others, minority)."""
    found: tuple[list[Outcome], list[Outcome]] = ([], [])
    for seed in _SEEDS:
        rng = np.random.default_rng(seed)
        arrival_s = _arrivals(rng, rate_qps, 1.0)
        is_minor = (rng.random(len(arrival_s)) < share).tolist()
        pairs = zip(arrival_s, is_minor, strict=True)
        queries = [query(*pair)._replace(query_id=i) for i, pair in enumerate(pairs)]
        for ended, minor in zip(
            simulate_queries(queries, _scheduler(profile, _NUM_WORKERS)), is_minor, strict=True
        ):
            found[minor].append(ended)
    return found


def _on_one_device(
    profile: LatencyProfile, num_models: int, rate_qps: float, policy: str
) -> list[Outcome]:
    ended: list[Outcome] = []
    for seed in _SEEDS:
        models: list[SharedModel] = []
        for number in range(num_models):
            rng = np.random.default_rng([seed, number])
            times_s = _arrivals(rng, rate_qps, 4.0)
            queries = [Query(i, at_s, at_s + _SLO_S) for i, at_s in enumerate(times_s)]
            models.append(SharedModel(_scheduler(profile, 1, policy), queries))
        for outcomes in SharedDevice(models).run():
            ended += outcomes
    return ended


def _scheduler(
    profile: LatencyProfile, num_workers: int, policy: str = DEFAULT_POLICY
) -> Scheduler:
    """Return a scheduler as the server has it."""
    return Scheduler(
        profile,
        create_policy(policy, profile),
        num_workers=num_workers,
        max_queue=_MAX_QUEUE,
        drop_hopeless=True,
        triage=True,
    )


def _arrivals(rng: np.random.Generator, rate_qps: float, cv2: float) -> list[float]:
    count = int(2 * rate_qps * _DURATION_S) + 100
    times_s = np.cumsum(rng.gamma(1 / cv2, cv2 / rate_qps, count))
    return times_s[times_s < _DURATION_S].tolist()


def capacity_qps(profile: LatencyProfile) -> float:
    """Return what the eight devices serve at the most."""
    return _NUM_WORKERS * profile.fastest().capacity_qps


def attainment(outcomes: Sequence[Outcome]) -> float:
    """Return the share on time."""
    return sum(o.status == "on_time" for o in outcomes) / max(len(outcomes), 1)


def accuracy(outcomes: Sequence[Outcome]) -> float:
    """Return the mean profiled accuracy of those on time, 0 for none."""
    on_time = [o.accuracy for o in outcomes if o.status == "on_time"]
    return float(np.mean(on_time)) if on_time else 0.0


def _detail(what: str) -> str:
    return (
        f"{what}; VIRTUAL time, {DEFAULT_POLICY}, {_NUM_WORKERS} devices, max_queue {_MAX_QUEUE}, "
        f"SLO {_SLO_S * 1e3:g} ms unless said, {_DURATION_S:g} s, seeds {_SEEDS}"
    )

"""Drawn simulations that hold the compiled scheduler and the Python one against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from serve.bench.rows import Row, Tell, row
from slackfit.compiled.code_cache import missing
from slackfit.compiled.simulate import simulate_columns
from slackfit.derive import densified
from slackfit.policies import create_policy, policy_names
from slackfit.profile import LatencyProfile, SubnetProfile
from slackfit.query import Outcome
from slackfit.simulation.devices import DeviceModel, Failure, Slowdown
from slackfit.simulation.simulate import simulate

NUM_CASES = 500  # of each policy

NAMES = tuple(name for name in policy_names() if "<" not in name)
PARAMETERS = {
    "slackfit": ("", "@num_buckets=40", "@variant=bucket", "@drop_hopeless=true"),
    "drainfit": ("", "@expect=0.25@lead=0.25@reserve=1", "@reserve=0", "@drop_hopeless=false"),
    "sushi": ("", "@strict=accuracy", "@batch_size=4", "@strict=accuracy@batch_size=3"),
    "modelzoo": ("", "@loading_s=0.002"),
    "maxbatch": ("", "@drop_hopeless=true"),
    "fixed:middle": ("", "@drop_hopeless=true"),
}


class Case(NamedTuple):
    """One simulation: everything but the policy."""

    arrival_s: np.ndarray
    slo_s: float | np.ndarray
    min_accuracy: float | np.ndarray
    query_class: np.ndarray | None
    profile: LatencyProfile
    devices: DeviceModel
    num_workers: int
    seed: int


def generated_profile(rng: np.random.Generator) -> LatencyProfile:
    """A few subnets, slower with accuracy and batch, but for some that are not."""
    sizes = tuple(sorted(rng.choice([1, 2, 3, 4, 6, 8, 16], rng.integers(1, 5), replace=False)))
    sizes = tuple(int(b) for b in sizes)
    accuracies = np.sort(
        rng.choice([0.6, 0.65, 0.7, 0.7, 0.75, 0.8, 0.85, 0.9], rng.integers(1, 7))
    )
    base_s = np.sort(rng.uniform(1e-3, 8e-3, len(accuracies)))
    if rng.random() < 0.3:
        rng.shuffle(base_s)
    subnets: list[SubnetProfile] = []
    for i, (accuracy, per_s) in enumerate(zip(accuracies, base_s, strict=True)):
        fixed_s = rng.uniform(0, 3e-3)
        row = np.array([fixed_s + per_s * b ** rng.uniform(0.3, 1.0) for b in sizes])
        if rng.random() < 0.8:
            row = np.maximum.accumulate(row)
        more = rng.uniform(1.0, 2.0, len(row))
        latency_s = {"p50": tuple(row.tolist()), "p95": tuple((row * more).tolist())}
        subnets.append(
            SubnetProfile(
                subnet_id=f"s{i}", accuracy=float(accuracy), macs=int(1 + 1e6 * per_s),
                latency_s=latency_s,
            )
        )  # fmt: skip
    return LatencyProfile(
        name="generated", device="none", dtype="none", batch_sizes=sizes, subnets=tuple(subnets)
    )


def generated_devices(
    rng: np.random.Generator, profile: LatencyProfile, num_workers: int, end_s: float
) -> DeviceModel:
    """Overhead, noise, other profiles, switching, failures and slow-downs, each now and then."""
    events: list[Failure | Slowdown] = []
    if rng.random() < 0.4:
        doomed = rng.permutation(num_workers)[: rng.integers(0, num_workers + 1)]
        events += [Failure(float(rng.uniform(0, end_s)), int(w)) for w in doomed]
        for _ in range(rng.integers(0, 3)):
            factor = float(rng.uniform(0.5, 3))
            at_s = float(rng.uniform(0, end_s))
            events.append(Slowdown(at_s, int(rng.integers(num_workers)), factor))
    noise = None
    if rng.random() < 0.5:
        has_tail = "p95" in profile.subnets[0].latency_s  # the published profile has medians alone
        is_profiled = bool(rng.random() < 0.5) and has_tail
        noise = profile if is_profiled else rng.uniform(0.5, 2.0, 7).tolist()
    others = None
    if rng.random() < 0.3:
        others = [profile.scaled(float(rng.uniform(0.5, 2))) for _ in range(num_workers)]
    return DeviceModel(
        overhead_s=float(rng.choice([0.0, 0.001])),
        switch_cost_s=float(rng.uniform(0, 5e-3)) if rng.random() < 0.3 else None,
        noise=noise,
        profiles=others,
        events=events,
    )


def generated_case(seed: int, resnet: LatencyProfile) -> Case:
    rng = np.random.default_rng([seed, 24])
    profile = generated_profile(rng)
    if rng.random() < 0.1:
        profile = resnet if rng.random() < 0.5 else densified(resnet, 20)
    num_workers = int(rng.integers(1, 6))
    count = int(rng.integers(1, 500))
    rate_qps = profile.fastest().capacity_qps * num_workers * rng.uniform(0.2, 2.5)
    shape = float(rng.choice([0.12, 0.5, 1.0]))
    gaps_s = rng.gamma(shape, 1 / (shape * rate_qps), count)
    if rng.random() < 0.3:  # ties, with completions too
        gaps_s = np.round(gaps_s, 3)
    arrival_s = np.cumsum(gaps_s)
    longest_s = max(row[-1] for row in profile.table().values())
    slo_s = float(longest_s * rng.uniform(0.5, 8))
    kinds = longest_s * rng.uniform(0.2, 12, 4)
    kinds[3] = np.inf if rng.random() < 0.3 else kinds[3]
    min_accuracy: float | np.ndarray = 0.0
    if rng.random() < 0.4:
        top = float(rng.choice([0.75, 0.95]))
        min_accuracy = np.where(
            rng.random(count) < rng.uniform(0, 1), rng.uniform(0, top, count), 0
        )
    return Case(
        arrival_s=arrival_s,
        slo_s=slo_s if rng.random() < 0.4 else rng.choice(kinds, count),
        min_accuracy=min_accuracy,
        query_class=rng.integers(-1, 3, count) if rng.random() < 0.3 else None,
        profile=profile,
        devices=generated_devices(rng, profile, num_workers, float(arrival_s[-1])),
        num_workers=num_workers,
        seed=int(rng.integers(0, 1 << 40)),
    )  # fmt: skip


def both(case: Case, name: str) -> tuple[list[Outcome], list[Outcome]]:
    """Return the outcomes in Python, and those of the compiled path."""
    arrival_s, profile = case.arrival_s, case.profile
    options: dict[str, Any] = {
        "slo_s": case.slo_s, "num_workers": case.num_workers, "seed": case.seed,
        "devices": case.devices, "query_class": case.query_class,
        "min_accuracy": case.min_accuracy,
    }  # fmt: skip
    want = simulate(arrival_s, profile, create_policy(name, profile), **options)
    got = simulate_columns(arrival_s, profile, create_policy(name, profile), **options)
    return want, list(got.columns)


def variant_of(name: str, case: Case, number: int) -> str:
    """Return the policy with parameters, which take turns; batch sizes fit the case's profile."""
    variants = PARAMETERS.get(name, ("",))
    full = name + variants[number % len(variants)]
    for size in (4, 3):
        most = min(size, case.profile.max_batch_size)
        full = full.replace(f"batch_size={size}", f"batch_size={most}")
    return full


def rows(resnet: LatencyProfile, seeds: Sequence[int], tell: Tell) -> list[Row]:
    """Return, over all policies, how many of the drawn cases ended otherwise compiled.

    Empty without numba.
    """
    if missing():
        return []
    differing: list[str] = []
    for name in NAMES:
        differing += differing_cases(name, resnet, seeds)
        tell(f"twin: {len(seeds)} cases of {name}")
    detail = (
        f"0; {len(seeds)} cases of each of {len(NAMES)} policies; "
        f"{'; '.join(differing[:10]) or 'none'}"
    )
    return [row("policies/twin/cases_differing", len(differing), "count", detail)]


def differing_cases(name: str, resnet: LatencyProfile, seeds: Iterable[int]) -> list[str]:
    """Return the cases of a policy in which any query ended otherwise compiled, described."""
    found: list[str] = []
    for seed in seeds:
        case = generated_case(seed, resnet)
        full = variant_of(name, case, seed)
        want, got = both(case, full)
        if got != want:
            found.append(f"{full}, case {seed}")
    return found

"""Compiled runs: in pieces, counted only, from the cache, and when they stand back for Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slackfit.compiled import code_cache
from slackfit.compiled.code_cache import missing
from slackfit.compiled.end_codes import ON_TIME
from slackfit.compiled.forms import policy_form
from slackfit.compiled.setup import why_not
from slackfit.compiled.simulate import CompiledRun, simulate_columns
from slackfit.outcome_columns import OutcomeColumns
from slackfit.policies import create_policy
from slackfit.policy import ALONE
from slackfit.profile import LatencyProfile
from slackfit.scheduling.decide import HISTORY
from slackfit.simulation.devices import AS_PROFILED, DeviceModel
from slackfit.simulation.simulate import simulate

needs_numba = pytest.mark.skipif(bool(missing()), reason=missing() or "numba is here")


def arrivals(rate_qps: float, count: int, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).gamma(0.25, 4 / rate_qps, count))


@needs_numba
@pytest.mark.parametrize("policy", ["slackfit", "drainfit", "drainfit@drop_hopeless=false"])
def test_pieces_end_as_the_whole_and_are_counted_alike(policy: str, resnet: LatencyProfile):
    arrival_s = arrivals(9000, 30_000)
    slos_s = np.random.default_rng(1).choice([0.02, 0.036, 0.1], len(arrival_s))
    options = {"slo_s": slos_s, "num_workers": 8}
    whole = simulate_columns(arrival_s, resnet, create_policy(policy, resnet), **options).columns
    block_s = arrival_s[-1] / 7
    run = CompiledRun(
        resnet, create_policy(policy, resnet), num_workers=8, block_s=block_s, num_blocks=8
    )
    for part in np.array_split(np.arange(len(arrival_s)), [1, 2, 5000, 5000, 16_384, 29_999]):
        run.feed(arrival_s[part], (arrival_s + slos_s)[part])
    run.finish()
    on_time = whole.status == ON_TIME
    expected = np.zeros((8, len(resnet.subnets)), dtype=np.int64)
    np.add.at(expected, ((arrival_s / block_s).astype(int)[on_time], whole.subnet[on_time]), 1)
    assert run.on_time.tolist() == expected.tolist()
    assert sum(run.statuses.values()) == len(arrival_s) == run.num_fed


@needs_numba
@pytest.mark.parametrize("policy", ["slackfit", "drainfit"])
def test_floors_in_small_pieces_end_as_in_python(policy: str, resnet: LatencyProfile):
    """No more arrivals of a floor were remembered than the first piece had."""
    arrival_s = arrivals(1000, 3000)  # of which a second is remembered
    floors = np.random.default_rng(2).choice([0.0, 0.76, 0.79], len(arrival_s))
    outcomes = OutcomeColumns.of(
        simulate(
            arrival_s, resnet, create_policy(policy, resnet), slo_s=0.036, min_accuracy=floors
        )
    )  # fmt: skip
    run = CompiledRun(resnet, create_policy(policy, resnet), has_floors=True)
    for part in np.array_split(np.arange(len(arrival_s)), [1, 3, 10, 500]):
        run.feed(arrival_s[part], arrival_s[part] + 0.036, floors[part])
    run.finish()
    assert run.statuses["on_time"] == outcomes.on_time.sum()
    accuracy = float(run.on_time.sum(axis=0) @ run.accuracies)
    assert accuracy == pytest.approx(outcomes.accuracy[outcomes.on_time].sum(), rel=1e-12)


@needs_numba
def test_more_arrivals_than_are_remembered_are_forgotten_alike(trio: LatencyProfile):
    # 4e5 queries/s: the history of 65,536 arrivals spans less than four SLOs.
    arrival_s = arrivals(4e5, 2 * HISTORY + 40_000)
    policy = create_policy("drainfit", trio)
    options = {"slo_s": 0.09, "num_workers": 3}
    want = simulate(arrival_s, trio, create_policy("drainfit", trio), **options)
    got = simulate_columns(arrival_s, trio, policy, **options)
    assert got.path == "compiled"
    assert list(got.columns) == want


def test_a_policy_without_a_compiled_form_runs_in_python_and_says_so(resnet: LatencyProfile):
    arrival_s = arrivals(3000, 500)
    policy = create_policy("proteus", resnet)
    got = simulate_columns(arrival_s, resnet, policy, slo_s=0.036, num_workers=2)
    assert (got.path, got.why) == ("python", "policy 'proteus' has no compiled form")
    want = simulate(arrival_s, resnet, create_policy("proteus", resnet), slo_s=0.036, num_workers=2)
    assert list(got.columns) == want


def test_without_numba_the_same_outcomes_come_from_python(
    resnet: LatencyProfile, monkeypatch: pytest.MonkeyPatch
):
    arrival_s = arrivals(6000, 3000)
    policy = create_policy("drainfit", resnet)
    options = {"slo_s": 0.036, "num_workers": 4}
    here = simulate_columns(arrival_s, resnet, policy, **options)
    monkeypatch.setattr(code_cache, "find_spec", lambda name: None)
    got = simulate_columns(arrival_s, resnet, create_policy("drainfit", resnet), **options)
    assert got.why == "numba is not installed (pip install 'supernet-serving[fast]')"
    assert list(got.columns) == list(here.columns)


def test_columns_are_the_outcomes(resnet: LatencyProfile):
    arrival_s = arrivals(20_000, 2000)
    options = {"slo_s": 0.02, "num_workers": 2, "drop_hopeless": True}
    outcomes = simulate(arrival_s, resnet, create_policy("slackfit", resnet), **options)
    columns = OutcomeColumns.of(outcomes)
    assert list(columns) == outcomes
    served = [o.accuracy for o in outcomes if o.status == "on_time"]
    assert columns.attainment == len(served) / len(outcomes)
    assert columns.mean_accuracy == pytest.approx(np.mean(served), abs=1e-12)
    assert {o.status for o in outcomes} == {"on_time", "dropped"}


def test_devices_that_cannot_be_compiled_are_named(resnet: LatencyProfile, trio: LatencyProfile):
    policy = create_policy("slackfit", resnet)
    if not missing():
        assert why_not(policy, resnet, AS_PROFILED) == ""
        other = DeviceModel(profiles=[trio])
        assert why_not(policy, resnet, other).startswith("profile 'trio' lacks subnets of")


@needs_numba
def test_bad_devices_and_counts_are_refused_as_in_python(resnet: LatencyProfile):
    policy = create_policy("slackfit", resnet)
    for options, message in (
        ({"slo_s": 0.0}, "slo_s goes down to 0.0 s, allowed more than 0"),
        ({"slo_s": 1.0, "num_workers": 0}, "num_workers is 0, allowed 1 or more"),
        ({"slo_s": 1.0, "devices": DeviceModel(overhead_s=-1.0)}, "overhead_s is -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate_columns(np.zeros(1), resnet, policy, **options)


def test_a_step_policy_is_laid_out_by_asking_it(resnet: LatencyProfile):
    """Just below, at and above every step the table says what the policy decides."""
    policy = create_policy("maxbatch", resnet)
    form = policy_form(policy, resnet, has_floors=False).step

    class Probe:
        profile, memo, wishes, others = resnet, None, (), ALONE

        def __init__(self, slack_s: float) -> None:
            from slackfit.query import Query

            self.queue = self
            self._head = Query(0, 0.0, slack_s)

        def head(self):
            return self._head

    for limit_s in form.limits_s.tolist():
        for slack_s in (np.nextafter(limit_s, 0), limit_s, np.nextafter(limit_s, 1)):
            decision = policy.decide(Probe(slack_s), 0.0)  # type: ignore[arg-type]
            at = np.searchsorted(form.limits_s, slack_s, side="left")
            assert decision is not None
            asked = (resnet.subnet_ids.index(decision.subnet_id), decision.batch_size)
            assert (form.subnet[0, at], form.size[0, at]) == asked


@needs_numba
@pytest.mark.slow
def test_machine_code_is_kept_for_its_owner_and_made_again_when_a_source_changes(tmp_path: Path):
    script = (
        "import sys, numpy as np\n"
        "from slackfit import LatencyProfile, create_policy\n"
        "from slackfit.compiled.simulate import simulate_columns\n"
        "p = LatencyProfile.load('profiles/superserve_resnet_2080ti.json')\n"
        "made = simulate_columns(np.arange(9.0), p, create_policy('slackfit', p), slo_s=1.0)\n"
        "from slackfit.compiled.driver_kernel import run\n"
        "print(made.path, sum(run.stats.cache_hits.values()))\n"
    )

    def ran() -> str:
        environment = {**os.environ, "SUPERNET_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert [ran(), ran()] == ["compiled 0", "compiled 1"]
    (folder,) = (tmp_path / "compiled").iterdir()
    assert folder.stat().st_mode & 0o077 == 0


@needs_numba
def test_read_only_arrivals_are_not_compiled_for_again(trio: LatencyProfile):
    from slackfit.compiled import driver_kernel

    arrival_s = arrivals(9000, 2000)
    classes = np.arange(2000) % 2
    for name in ("slackfit", "drainfit"):
        policy = create_policy(name, trio)
        options = {"slo_s": np.full(2000, 0.036), "query_class": classes}
        writable = simulate_columns(arrival_s, trio, policy, **options).columns
        known = len(driver_kernel.run.signatures)  # type: ignore[attr-defined]
        frozen = {key: values.copy() for key, values in options.items()}
        for values in (still := arrival_s.copy(), *frozen.values()):
            values.flags.writeable = False
        again = simulate_columns(still, trio, policy, **frozen).columns
        assert np.array_equal(again.finish_s, writable.finish_s)
        run = CompiledRun(trio, policy, has_classes=True)
        for part in (slice(0, 1000), slice(1000, None)):
            run.feed(still[part], still[part] + 0.036, None, frozen["query_class"][part])
        run.finish()
        assert len(driver_kernel.run.signatures) == known  # type: ignore[attr-defined]

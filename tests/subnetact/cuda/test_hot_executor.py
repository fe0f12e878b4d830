"""Graphs that follow what is launched, on a stand-in whose replay is faster than its call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slackfit.graph_forms import EAGER
from subnetact import measure_profile
from subnetact.profiling.revalidation import recheck
from supernet import Checkpoint
from tests.subnetact.cuda.clocked_accelerator import (
    SIZES,
    ClockedAccelerator,
    ClockedExecutor,
    both_forms,
)
from tests.subnetact.cuda.executor_case import difference, make_executor, oracle, samples


class Following:
    """An executor that follows a profile of the stand-in, warm."""

    def __init__(self, checkpoint: Checkpoint, graph_budget_bytes: int | None = None) -> None:
        self.profile = both_forms(checkpoint)
        self.device = ClockedAccelerator(self.profile)
        self.device.graph_bytes = 2**20
        self.executor = ClockedExecutor(
            checkpoint, self.device, graph_budget_bytes=graph_budget_bytes
        )
        assert self.executor.follow(self.profile, clock=self.device.clock)
        assert self.executor.background is not None
        self.hot = self.executor.background
        self.executor.warm_up()

    def launch(self, subnet_id: str, inputs: np.ndarray) -> tuple[np.ndarray, float]:
        """The logits and the seconds of a batch; nothing is captured meanwhile."""
        before_s, captures = self.device.now_s, len(self.device.captures)
        got = self.executor.result(self.executor.launch(subnet_id, [inputs]))
        assert len(self.device.captures) == captures, "captured while a batch waited"
        return got, self.device.now_s - before_s

    def run_errands(self) -> int:
        count = 0
        while self.hot.next_errand() is not None:
            self.hot.run_errand()
            count += 1
        return count


@pytest.fixture
def following(checkpoint: Checkpoint) -> Following:
    return Following(checkpoint)


def test_whatever_is_captured_results_are_those_without_graphs(
    checkpoint: Checkpoint, rng: np.random.Generator
) -> None:
    """Cold, hot, over the budget, dropped, evicted: the plain run and the extracted subnet."""
    following = Following(checkpoint, graph_budget_bytes=4 * 2**20)
    plain = make_executor(checkpoint, max_batch_size=4, graph_budget_bytes=0)
    executor, forms = following.executor, set()

    def check() -> None:
        for subnet_id in executor.subnet_ids:
            for size in (1, 2, 3, 4):
                inputs = samples(rng, size)
                launched = executor.launch(subnet_id, [inputs])
                forms.add(launched.form)
                got = executor.result(launched)
                assert difference(got, plain.run(subnet_id, inputs)) <= 1e-5
                assert difference(got, oracle(checkpoint, subnet_id, inputs)) <= 2e-4

    check()
    for subnet_id in executor.subnet_ids:
        for _ in range(48):
            following.launch(subnet_id, samples(rng, 2))
        following.run_errands()
        check()
    executor.make_resident(executor.net.slices(executor.subnet_ids[0]))
    following.run_errands()
    check()
    executor.graphs.drop()
    check()
    assert forms == {"graph", "eager"}
    assert executor.counts()["graph_bytes"] <= 4 * 2**20


def test_only_what_was_launched_is_captured(following: Following, rng: np.random.Generator) -> None:
    executor, device = following.executor, following.device
    small, *_, large = executor.subnet_ids
    warm = list(device.captures)
    assert len(warm) == 2, "of nine pairs"
    inputs = samples(rng, 1)
    for _ in range(100):
        executor.run(large, inputs)  # a probe, a profile: nobody asked
    assert following.run_errands() == 0
    for _ in range(40):
        following.launch(small, inputs)
    assert device.captures == warm
    assert executor.counts()["graphs_missing"] == 0, "not heard yet"
    assert following.hot.next_errand() is not None
    assert executor.counts()["graphs_missing"] == 1
    assert following.run_errands() == 1
    assert device.captures == [*warm, (small, 1)]
    assert executor.counts()["graphs_live"] == 3


def test_a_batch_takes_what_the_plan_says_in_either_form(
    following: Following, rng: np.random.Generator
) -> None:
    executor = following.executor

    def check() -> None:
        planned = following.hot.planned(following.profile)
        for subnet_id in executor.subnet_ids:
            for size in (1, 2, 3, 4):
                _, taken_s = following.launch(subnet_id, samples(rng, size))
                assert taken_s == pytest.approx(planned.latency_s(subnet_id, size))

    check()
    for subnet_id in executor.subnet_ids:
        for _ in range(60):
            following.launch(subnet_id, samples(rng, 1))
        assert following.run_errands() > 0
        check()
    executor.graphs.drop()
    check()


def test_a_start_is_checked_against_the_form_that_runs_then(following: Following) -> None:
    """Few graphs are captured yet: eager runs are no sign of a slower device."""
    checks = recheck(following.executor, following.profile, clock=following.device.clock)
    assert [check.ratio for check in checks] == [pytest.approx(1.0)] * len(checks)


def test_memory_that_runs_out_costs_the_graphs_and_they_come_back_when_hot(
    following: Following, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, device = following.executor, following.device
    subnet_id, inputs = executor.subnet_ids[0], samples(rng, 1)
    for _ in range(40):
        following.launch(subnet_id, inputs)
    following.run_errands()
    assert executor.counts()["graphs_live"] == 3
    expected = oracle_of(following, subnet_id, inputs)
    is_full, eager = [True], executor._eager

    def while_full(*args: object) -> torch.Tensor:
        if is_full[0]:
            is_full[0] = False
            raise torch.OutOfMemoryError("CUDA out of memory")
        return eager(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(executor, "_eager", while_full)
    other = bare(following)
    with pytest.warns(RuntimeWarning, match="the device ran out of memory"):
        following.launch(other, samples(rng, 1))
    assert executor.counts()["graphs_live"] == 0
    assert following.run_errands() == 0, "not at once: memory is short"
    got, taken_s = following.launch(subnet_id, inputs)
    assert difference(got, expected) <= 2e-4
    assert taken_s == pytest.approx(following.profile.latency_s(subnet_id, 1, EAGER))
    device.now_s += 11.0
    executor.run(subnet_id, inputs)
    assert executor.counts()["graphs_live"] == 0, "which come back is not the probe's to choose"
    following.run_errands()
    assert [key.subnet_id for key in executor.graphs.live] == [subnet_id]


def bare(following: Following) -> str:
    """A subnet of which the warm-up captured nothing."""
    executor = following.executor
    return next(i for i in executor.subnet_ids if i not in executor.graphs.ladders)


def oracle_of(following: Following, subnet_id: str, inputs: np.ndarray) -> np.ndarray:
    with following.executor.without_graphs():
        return following.executor.run(subnet_id, inputs)


@pytest.mark.parametrize(
    ("error", "most"),
    [
        (RuntimeError("operation failed due to a previous error during capture"), 3),
        (torch.OutOfMemoryError("CUDA out of memory"), 30),
    ],
)
@pytest.mark.filterwarnings("ignore:no CUDA graph for")
def test_captures_that_fail_leave_batches_eager_and_are_not_tried_for_ever(
    following: Following, rng: np.random.Generator, error: Exception, most: int
) -> None:
    device = following.device
    subnet_id, inputs = bare(following), samples(rng, 1)
    expected = oracle_of(following, subnet_id, inputs)

    def fail() -> None:
        raise error

    device.fails = fail
    before = len(device.captures)
    for _ in range(200):
        got, taken_s = following.launch(subnet_id, inputs)
        assert difference(got, expected) <= 2e-4
        assert taken_s == pytest.approx(following.profile.latency_s(subnet_id, 1, EAGER))
        following.run_errands()
        device.now_s += 60.0
    assert 2 <= len(device.captures) - before <= most, "in three hours"


def test_a_profile_of_both_forms_is_measured_and_followed(checkpoint: Checkpoint) -> None:
    executor = make_executor(checkpoint, max_batch_size=4, batch_sizes=SIZES)
    profile = measure_profile(executor, checkpoint, batch_sizes=SIZES, repeats=2)
    assert profile.padded
    assert all(len(subnet.latency_s[EAGER]) == len(SIZES) for subnet in profile.subnets)
    assert executor.follow(profile)
    executor.warm_up()
    assert executor.counts()["graphs_live"] == 9, "what was captured stays"
    assert type(profile).from_json(profile.to_json()).padded


def test_without_graphs_or_their_times_nothing_is_followed(checkpoint: Checkpoint) -> None:
    profile = both_forms(checkpoint)
    none = make_executor(checkpoint, max_batch_size=4, batch_sizes=SIZES, graph_budget_bytes=0)
    assert not none.follow(profile)
    measured = measure_profile(none, checkpoint, batch_sizes=(1,), repeats=1)
    assert EAGER not in measured.subnets[0].latency_s
    whole = make_executor(checkpoint, max_batch_size=4, batch_sizes=SIZES)
    assert not whole.follow(measured)
    whole.warm_up()
    assert whole.counts()["graphs_live"] == 9, "as before"

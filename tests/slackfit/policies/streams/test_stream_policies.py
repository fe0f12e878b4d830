"""Stream policies against plain twins: the papers' algorithms written out, and batches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

import numpy as np
import pytest

from slackfit.policies import create_policy
from slackfit.policies.streams import create_stream_policy, stream_policy_names
from slackfit.profile import LatencyProfile, ProfileError, SubnetProfile
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.simulation.simulate import simulate
from slackfit.simulation.simulate_streams import simulate_streams
from slackfit.streams.iteration_cost import CostCurve, IterationCost, IterationCosts, IterationWork
from slackfit.streams.iteration_fill import IterationFill
from slackfit.streams.stream_query import Step, StreamOutcome, StreamQuery

Chunks = list[tuple[int, int, int]]


def streams(
    rate: float, count: int, seed: int, *, prompt: float = 90.0, period_s: float = 0.25
) -> list[StreamQuery]:
    rng = random.Random(seed)
    at_s, made = 0.0, list[StreamQuery]()
    for i in range(count):
        at_s += rng.expovariate(rate)
        tokens = 1 + int(rng.expovariate(1.0 / prompt))
        outputs = 1 + int(rng.expovariate(1.0 / 15.0))
        made.append(StreamQuery(i, at_s, tokens, outputs, at_s + 0.8, period_s))
    return made


def run(
    queries: list[StreamQuery], policy: str, costs: IterationCosts, **settings: Any
) -> tuple[list[StreamOutcome], list[Step]]:
    steps: list[Step] = []
    scheduler = StreamScheduler(costs, create_stream_policy(policy, costs), **settings)
    outcomes = simulate_streams(queries, scheduler, on_step=lambda step, _: steps.append(step))
    return outcomes, steps


def chunks_of(steps: list[Step]) -> list[Chunks]:
    return [[(c.query_id, c.start, c.length) for c in step.chunks] for step in steps]


class _Seen(NamedTuple):
    """What a plain twin sees of one stream."""

    query: StreamQuery
    done: int
    outputs: int
    due_s: float


def plain(
    queries: list[StreamQuery],
    cost: IterationCost,
    order: Callable[[_Seen, float], tuple[float, ...]],
    budget: Callable[[IterationFill, float, list[_Seen], float], int],
) -> list[Chunks]:
    """Stall-free batching as the paper writes it: decodes, then prompts up to the budget.

    Memory and places without bound. `budget` is in prompt tokens.
    """
    now_s, waiting, live, taken = 0.0, list(queries), dict[int, _Seen](), list[Chunks]()
    while waiting or live:
        while waiting and (waiting[0].arrival_s <= now_s or not live):
            query = waiting.pop(0)
            now_s = max(now_s, query.arrival_s)
            live[query.query_id] = _Seen(query, 0, 0, query.first_deadline_s)
        decodes = [s for s in live.values() if s.outputs]
        prompts = [s for s in live.values() if not s.outputs]
        prompts.sort(key=lambda s: (*order(s, now_s), s.query.arrival_s, s.query.query_id))
        chunks: Chunks = [(s.query.query_id, s.done, 1) for s in decodes]
        fill = IterationFill(cost)
        for _, start, length in chunks:
            fill.add(start, length, True)
        slack_s = min((s.due_s for s in decodes), default=inf) - now_s
        left = budget(fill, slack_s, prompts, now_s)
        if not chunks and left <= 0:
            left = 1
        for seen in prompts:
            length = min(seen.query.prompt_tokens - seen.done, left)
            if length > 0:
                chunks.append((seen.query.query_id, seen.done, length))
                left -= length
        now_s += cost.seconds(
            IterationWork.of((at, n, at + n >= live[i].query.prompt_tokens) for i, at, n in chunks)
        )
        for query_id, start, length in chunks:
            seen = live[query_id]._replace(done=start + length)
            if seen.done >= seen.query.prompt_tokens:
                is_late = now_s > seen.due_s + 1e-9
                due_s = (now_s if is_late else seen.due_s) + seen.query.period_s
                seen = seen._replace(outputs=seen.outputs + 1, due_s=due_s)
            live[query_id] = seen
            if seen.outputs >= seen.query.max_tokens:
                del live[query_id]
        taken.append(chunks)
    return taken


def as_sets(steps: list[Chunks]) -> list[set[tuple[int, int, int]]]:
    return [set(chunks) for chunks in steps]


WIDE = {"max_running": 10_000, "kv_tokens": 10_000_000}


@pytest.mark.parametrize("rate", [0.7, 1.5, 4.0])
@pytest.mark.parametrize("budget", [16, 48, 200])
def test_sarathi_is_the_papers_algorithm_and_ours_on_one_width(
    decoder_costs: IterationCosts, rate: float, budget: int
):
    queries = streams(rate, 60, seed=budget)
    twin = plain(
        queries,
        decoder_costs.rung("e1"),
        lambda seen, now_s: (),
        lambda fill, slack_s, prompts, now_s: budget - fill._tokens,
    )
    for policy in (
        f"sarathi@budget={budget}",
        f"fixed:largest@room=fixed@order=fcfs@guards=false@budget={budget}",
    ):
        _, steps = run(queries, policy, decoder_costs, **WIDE)
        assert as_sets(chunks_of(steps)) == as_sets(twin), policy
        assert {step.subnet_id for step in steps} == {"e1"}


@pytest.mark.parametrize("rate", [0.7, 1.3])
def test_niyama_is_the_papers_rule_and_ours_on_one_width(
    decoder_costs: IterationCosts, rate: float
):
    # Loads at which nobody is late, so that nobody stands back: that is tested by itself.
    queries = [q._replace(first_deadline_s=q.arrival_s + 20.0) for q in streams(rate, 60, 3)]
    cost = decoder_costs.rung("e1")
    ladder = [n for n in cost.linear.at if n >= 16]

    def budget(fill: IterationFill, slack_s: float, prompts: list[_Seen], now_s: float) -> int:
        best = ladder[0]
        for tokens in ladder:  # every step, not by bisection
            chunk = tokens - fill._tokens
            start = prompts[0].done if prompts else 0
            taken_s = fill.seconds_with(start, chunk, False) if chunk > 0 else fill.seconds
            if 1.2 * taken_s <= slack_s:
                best = tokens
        return best - fill._tokens

    def order(seen: _Seen, now_s: float) -> tuple[float, ...]:
        left = seen.query.prompt_tokens - seen.done
        return (seen.due_s + 0.008 * left,)

    twin = plain(queries, cost, order, budget)
    for policy in ("niyama", "fixed:largest@room=ladder@order=hybrid@guards=false"):
        outcomes, steps = run(queries, policy, decoder_costs, **WIDE)
        assert as_sets(chunks_of(steps)) == as_sets(twin), policy
        assert not any(outcome.relegated for outcome in outcomes)
    assert len({step.budget for step in steps}) > 2, "the budget follows the slack"


@pytest.mark.parametrize("rate", [2.5, 6.0])
def test_niyama_and_ours_on_one_width_stand_the_same_back(
    decoder_costs: IterationCosts, rate: float
):
    queries = streams(rate, 80, seed=1)
    outcomes, steps = run(queries, "niyama", decoder_costs)
    ours, our_steps = run(
        queries, "fixed:largest@room=ladder@order=hybrid@guards=false", decoder_costs
    )
    assert ours == outcomes
    assert our_steps == steps
    assert any(outcome.relegated for outcome in outcomes)


def batches_of(costs: IterationCosts, most: int) -> LatencyProfile:
    """A profile of batches that take what iterations of so many one-token prompts take."""
    sizes = tuple(range(1, most + 1))
    return LatencyProfile(
        name="batches",
        device="none",
        dtype="none",
        batch_sizes=sizes,
        subnets=tuple(
            SubnetProfile(
                subnet_id=rung.subnet_id,
                accuracy=rung.quality,
                macs=1,
                latency_s={"p50": tuple(rung.seconds(IterationWork(b, b, b, b)) for b in sizes)},
            )
            for rung in costs.rungs
        ),
    )


@pytest.mark.parametrize("rate", [10.0, 40.0, 150.0, 400.0])
@pytest.mark.parametrize("which", ["smallest", "middle", "largest"])
def test_with_one_output_per_query_it_is_the_scheduler_of_batches(
    decoder_costs: IterationCosts, rate: float, which: str
):
    most = 16
    profile = batches_of(decoder_costs, most)
    rng = np.random.default_rng(7)
    arrival_s = np.cumsum(rng.exponential(1.0 / rate, 400))
    slo_s = rng.choice([0.1, 0.2, 0.4], 400)
    batched = simulate(arrival_s, profile, create_policy(f"fixed:{which}", profile), slo_s=slo_s)
    queries = [
        StreamQuery(i, a, 1, 1, a + slo, 1.0)
        for i, (a, slo) in enumerate(zip(arrival_s.tolist(), slo_s.tolist(), strict=True))
    ]
    width = decoder_costs.subnet_ids[{"smallest": 0, "middle": 1, "largest": 2}[which]]
    outcomes, _ = run(queries, f"edf@budget={most}@subnet_id={width}", decoder_costs)
    for query, outcome in zip(batched, outcomes, strict=True):
        assert outcome.start_s == pytest.approx(query.start_s)
        assert outcome.finish_s == pytest.approx(query.finish_s)
        assert (outcome.status, outcome.subnet_ids) == (query.status, (query.subnet_id,))
    on_time = sum(query.status == "on_time" for query in batched)
    assert sum(outcome.fluidity for outcome in outcomes) == on_time


# --- ours ----------------------------------------------------------------------------------------


def on_time(outcomes: list[StreamOutcome]) -> float:
    return sum(outcome.status == "on_time" for outcome in outcomes) / len(outcomes)


def quality(outcomes: list[StreamOutcome]) -> float:
    found = [q for outcome in outcomes for q in outcome.qualities]
    return sum(found) / len(found)


def test_width_follows_the_load(decoder_costs: IterationCosts):
    calm, _ = run(streams(0.3, 80, 5), "slackwidth", decoder_costs)
    busy, steps = run(streams(1.8, 200, 5), "slackwidth", decoder_costs)
    fixed, _ = run(streams(1.8, 200, 5), "fixed:largest", decoder_costs)
    assert on_time(calm) >= 0.98  # a prompt is too long for its deadline
    assert quality(calm) > 0.97
    assert {step.subnet_id for step in steps} == {"e0.5", "e0.75", "e1"}
    assert on_time(busy) > on_time(fixed) + 0.03
    assert quality(busy) < 0.97


def test_a_smaller_width_that_is_no_faster_is_not_taken(decoder_costs: IterationCosts):
    """Under a load that none carries it would give quality away for nothing."""
    largest = decoder_costs.rungs[-1]
    alike = [
        replace(largest, subnet_id=rung.subnet_id, quality=rung.quality)
        for rung in decoder_costs.rungs
    ]
    costs = replace(decoder_costs, rungs=tuple(alike))
    outcomes, steps = run(streams(9.0, 60, seed=1), "slackwidth", costs)
    assert sum(outcome.status != "on_time" for outcome in outcomes) > 20
    assert {step.subnet_id for step in steps} == {"e1"}


def test_every_iteration_ends_before_the_most_urgent_decode_is_due_if_any_width_allows_it(
    decoder_costs: IterationCosts,
):
    queries = streams(1.5, 150, 8)
    fastest = decoder_costs.rungs[0]
    _, steps = run(queries, "slackwidth@max_skipped=1000000", decoder_costs)
    late = 0
    for step in steps:
        decodes = [(c.start, 1, True) for c in step.chunks if c.length == 1 and c.samples]
        if 1.1 * fastest.seconds(IterationWork.of(decodes)) <= step.slack_s:
            assert step.expected_s <= step.slack_s * (1 + 1e-9)
        else:
            late += 1
    assert late < len(steps)


def test_it_goes_down_at_once_and_up_after_a_while(decoder_costs: IterationCosts):
    _, quick = run(streams(1.5, 150, 8), "slackwidth@up_after=1", decoder_costs)
    _, steady = run(streams(1.5, 150, 8), "slackwidth@up_after=8", decoder_costs)

    def ups(steps: list[Step]) -> list[int]:
        widths = [decoder_costs.subnet_ids.index(step.subnet_id) for step in steps]
        return [i for i in range(1, len(widths)) if widths[i] > widths[i - 1]]

    assert len(ups(steady)) < len(ups(quick))
    widths = [decoder_costs.subnet_ids.index(step.subnet_id) for step in steady]
    for at in ups(steady):
        assert at >= 8
        assert len(set(widths[at - 8 : at])) == 1, "nothing changed in the 8 before"


def test_what_is_lost_stands_back_and_a_first_output_a_little_late_is_not_lost(
    decoder_costs: IterationCosts,
):
    policy = create_stream_policy("slackwidth", decoder_costs)
    scheduler = StreamScheduler(decoder_costs, policy)
    # Both first outputs are due before any width can compute them; 90 more make one period good.
    late = {"first_deadline_s": 0.01, "period_s": 0.5}
    scheduler.submit(StreamQuery(0, 0.0, 100, 5, **late), 0.0)
    scheduler.submit(StreamQuery(1, 0.0, 100, 90, **late), 0.0)
    assert scheduler.poll(0.0).step is not None
    assert scheduler.num_relegated == 1


def test_streams_are_not_admitted_that_would_make_all_late(decoder_costs: IterationCosts):
    # 400 ms periods bear about 60 decodes on the smallest width; 300 streams come at once.
    queries = [StreamQuery(i, 0.0, 4, 60, 10.0, 0.2) for i in range(300)]
    outcomes, steps = run(queries, "slackwidth", decoder_costs, max_running=300)
    most = max(len(step.chunks) for step in steps)
    assert most < 60
    assert on_time(outcomes) > 0.1
    unguarded, _ = run(queries, "slackwidth@guards=false", decoder_costs, max_running=300)
    assert on_time(unguarded) < on_time(outcomes)


def test_prompts_are_never_left_for_long_however_short_the_slack(decoder_costs: IterationCosts):
    # 30 ms periods can't be kept by any width.
    queries = [StreamQuery(i, 0.0, 40, 40, 1.0, 0.03) for i in range(6)]
    _, steps = run(queries, "slackwidth@decode_share=1.0@max_skipped=3", decoder_costs)
    began = {c.query_id: i for i, step in reversed(list(enumerate(steps))) for c in step.chunks}
    assert len(began) == 6
    prompts = [any(c.length > 1 for c in step.chunks) for step in steps]
    first, last = prompts.index(True), len(prompts) - 1 - prompts[::-1].index(True)
    idle = "".join("x" if has else "." for has in prompts[first : last + 1])
    assert "." * 60 not in idle


def test_corrected_costs_are_used_from_the_next_iteration_on(decoder_costs: IterationCosts):
    scheduler = StreamScheduler(decoder_costs, create_stream_policy("slackwidth", decoder_costs))
    scheduler.submit(StreamQuery(0, 0.0, 16, 40, 2.0, 0.08), 0.0)
    now_s, before, after = 0.0, list[Step](), list[Step]()
    for _ in range(4):
        step = scheduler.poll(now_s).step
        assert step is not None
        before.append(step)
        now_s += step.expected_s
        scheduler.complete(step.step_id, now_s)
    scheduler.reconfigure(now_s, costs=decoder_costs.scaled(3.0))
    step = scheduler.poll(now_s).step
    assert step is not None
    after.append(step)
    assert step.expected_s > 2.0 * before[-1].expected_s


# --- the registry --------------------------------------------------------------------------------


def test_every_name_makes_a_policy_of_that_name(decoder_costs: IterationCosts):
    for name in stream_policy_names():
        name = name.replace("<subnet_id>", "e0.5")
        policy = create_stream_policy(name, decoder_costs)
        assert policy.name.startswith("fixed:e" if name.startswith("fixed:") else name)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("maxacc", ValueError, "unknown for streams, allowed slackwidth, sarathi"),
        ("fixed:e9", ProfileError, "no rung 'e9'"),
        ("sarathi@chunk=5", ValueError, "no parameter chunk; it has budget"),
        ("sarathi@budget=0", ValueError, "budget is 0"),
        ("sarathi@budget=all", ValueError, "budget of policy 'sarathi' is 'all', allowed a whole"),
        ("slackwidth@order=random", ValueError, "order is 'random', allowed fcfs, edf"),
        ("slackwidth@room=all", ValueError, "room is 'all', allowed slack"),
        ("slackwidth@up_after=0", ValueError, "up_after is 0"),
        ("slackwidth@decode_share=2", ValueError, "decode_share is 2"),
        ("slackwidth@widths=e1 e7", ProfileError, "no rung 'e7'"),
        ("niyama@safety=0.5", ValueError, "safety is 0.5"),
        ("lars@long_share=0", ValueError, "long_share is 0"),
        ("fcfs@budget=-1", ValueError, "budget is -1"),
    ],
)
def test_names_and_parameters_that_cannot_be(
    decoder_costs: IterationCosts, name: str, error: type[Exception], says: str
):
    with pytest.raises(error, match=says):
        create_stream_policy(name, decoder_costs)


def test_sarathis_budget_is_derived_from_the_period(decoder_costs: IterationCosts):
    for period_s in (0.15, 0.3):
        _, steps = run(streams(1.0, 40, 2, period_s=period_s), "sarathi", decoder_costs)
        most = max(sum(c.length for c in step.chunks) for step in steps)
        cost = decoder_costs.rung("e1")
        at_context = IterationFill(cost, IterationWork(8, 8, 8, 8 * 512))
        assert at_context.seconds_with(512, most - 8, False) <= period_s
        assert at_context.seconds_with(512, most - 7, False) > period_s


def test_flat_costs_are_no_trouble(decoder_costs: IterationCosts):
    flat = CostCurve((1,), (0.01,))
    rungs = tuple(replace(rung, linear=flat, head=flat) for rung in decoder_costs.rungs)
    outcomes, _ = run(streams(1.0, 30, 2), "slackwidth", replace(decoder_costs, rungs=rungs))
    assert len(outcomes) == 30

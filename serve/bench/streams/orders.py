"""Long prompts among short ones by LARS and first come first served; the scheduler's own cost."""

from __future__ import annotations

import time

import numpy as np

from serve.bench.rows import Row, row
from serve.bench.streams.setting import StreamSetting
from slackfit.policies.streams import create_stream_policy
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.streams.iteration_fill import prompt_alone_s
from slackfit.streams.stream_query import StreamQuery

_SHORT, _TIMES, _LONG_SHARE = 64, 30, 0.01
_RUNNING = 64
POLICIES = {name: f"{name}@granule=8@budget=192" for name in ("fcfs", "lars")}
"""An iteration that a long prompt fills is what short ones wait for: here a little shorter."""


def lars_rows(setting: StreamSetting, num: int = 3000, load: float = 0.3) -> list[Row]:
    """Return the tails of first outputs by LARS over those by arrival, 1 % of prompts 30 times.

    Where short prompts are served at once and are a part r of what the device can do, a long one
    has what they leave: it takes 1 / (1 - r) times as long, and no order can mend that.
    """
    cost = setting.costs.rungs[-1]
    seconds = prompt_alone_s(cost, 0, _SHORT, 256)
    long_s = prompt_alone_s(cost, 0, _TIMES * _SHORT, 256)
    mean_s = seconds * (1 - _LONG_SHARE) + long_s * _LONG_SHARE
    short_load = load * seconds * (1 - _LONG_SHARE) / mean_s
    suffix = "" if load == 0.3 else f"load{load:g}/"
    tails: dict[str, list[float]] = {"short": [], "long": []}
    absolute: dict[str, list[float]] = {"fcfs": [], "lars": []}
    for seed in setting.seeds:
        queries = _mixed(np.random.default_rng(seed), num, load / mean_s, seconds)
        p99: dict[tuple[str, str], float] = {}
        for policy, given in POLICIES.items():
            outcomes = setting.simulated(queries, given)
            first = {True: list[float](), False: list[float]()}
            for outcome in outcomes:
                is_long = outcome.query.prompt_tokens > _SHORT
                first[is_long].append(outcome.output_s[0] - outcome.query.arrival_s)
            for name, is_long in (("short", False), ("long", True)):
                p99[policy, name] = float(np.percentile(first[is_long], 99))
            absolute[policy].append(p99[policy, "short"])
        for name, ratios in tails.items():
            ratios.append(p99["lars", name] / p99["fcfs", name])
    return [
        row(
            f"streams/lars/{suffix}{name}_tail_over_fcfs",
            sum(ratios) / len(ratios),
            "ratio",
            setting.detail(
                trace=f"{num} prompts of {_SHORT} tokens, 1 % of {_SHORT * _TIMES}, one output, "
                f"Poisson at load {load:g}",
                per_seed=[round(value, 3) for value in ratios],
                policies=list(POLICIES.values()),
                long_over_alone_if_short_go_first=round(1.0 / (1.0 - short_load), 3),
                short_p99_s={k: [round(v, 3) for v in values] for k, values in absolute.items()},
                bar=0.2 if name == "short" else 1.3,
            ),
        )
        for name, ratios in tails.items()
    ]


def _mixed(
    rng: np.random.Generator, num: int, rate_qps: float, short_s: float
) -> list[StreamQuery]:
    """Short prompts and long ones, due after ten times what they take alone."""
    arrival_s = np.cumsum(rng.exponential(1.0 / rate_qps, num)).tolist()
    is_long = rng.random(num) < _LONG_SHARE
    queries: list[StreamQuery] = []
    for i, at_s in enumerate(arrival_s):
        times = _TIMES if is_long[i] else 1
        due_s = at_s + 10 * times * short_s
        queries.append(StreamQuery(i, at_s, times * _SHORT, 1, due_s, 0.2))
    return queries


def cost_rows(setting: StreamSetting, iterations: int = 2000) -> list[Row]:
    """Return the processor time of one iteration's `poll` and `complete` at 64 running streams."""
    rows: list[Row] = []
    for policy in ("slackwidth", "niyama", "sarathi"):
        scheduler = StreamScheduler(
            setting.costs,
            create_stream_policy(policy, setting.costs),
            max_running=_RUNNING + 4,
            kv_tokens=10_000_000,
        )
        for i in range(_RUNNING):
            scheduler.submit(StreamQuery(i, 0.0, 8, 10**5, 10.0, 1.0), 0.0)
        now_s, spent_s, counted, next_id, warm_up = 0.0, 0.0, 0, _RUNNING, 200
        while counted < iterations:
            if scheduler.num_waiting < 4 and scheduler.num_running <= _RUNNING:
                query = StreamQuery(next_id, now_s, 200, 2, now_s + 20.0, 1.0)
                scheduler.submit(query, now_s)
                next_id += 1
            began_s = time.process_time()
            step = scheduler.poll(now_s).step
            assert step is not None, "streams run until the end"
            now_s += step.expected_s
            scheduler.complete(step.step_id, now_s)
            spent = time.process_time() - began_s
            warm_up -= 1
            if warm_up < 0:
                assert scheduler.num_running >= _RUNNING, "64 streams run"
                spent_s += spent
                counted += 1
        rows.append(
            row(
                f"streams/scheduler_cost/{policy}",
                spent_s / counted * 1e3,
                "ms",
                f"processor time of poll and complete, mean of {counted} iterations with "
                f"{_RUNNING} streams running and prompts waiting; bar 0.3",
            )
        )
    return rows

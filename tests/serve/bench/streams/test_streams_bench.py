"""`supernet bench streams` in a short form: every part's rows, and what stands in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve.bench.decoder.bench import random_checkpoint
from serve.bench.streams import peers
from serve.bench.streams.bench import StreamsBench
from serve.bench.streams.chunking import chunking_rows
from serve.bench.streams.door import door_rows
from serve.bench.streams.live import live_runner, serve_live
from serve.bench.streams.measured_costs import measured_here
from serve.bench.streams.orders import cost_rows, lars_rows
from serve.bench.streams.peers import PeerSetting, peer_rows
from serve.bench.streams.processor_time import processor_runner
from serve.bench.streams.setting import StreamSetting, drawn_conversation
from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_query import StreamOutcome, StreamQuery
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.timed_decoder import TimedDecoder
from supernet.definition import define_supernet

PROFILE = LatencyProfile.load("profiles/smollm2_135m_example.json")
COSTS = IterationCosts.of(PROFILE)
SETTING = StreamSetting(
    costs=COSTS, profile="example", base=drawn_conversation(count=400), seeds=(0,), num_streams=80
)


def bench() -> StreamsBench:
    return StreamsBench(SETTING, PROFILE, checkpoint=None, tell=lambda _: None)


def values(rows: list[dict]) -> dict[str, float]:
    assert all(row["figure"].startswith("streams/") for row in rows)
    return {row["figure"].removeprefix("streams/"): row["value"] for row in rows}


def test_chunking_spares_readers_and_costs_the_prompt_little():
    found = values(bench().run(["chunking"]))
    assert found["gap_unchunked_over_chunked"] > 10
    assert 1.0 <= found["ttft_chunked_over_alone/b128"] < found["ttft_chunked_over_alone/b32"] < 3
    assert found["ttft_chunked_over_alone/beside8/b32"] > found["ttft_chunked_over_alone/b32"]
    assert 0.25 < found["prefix_hit_over_cold/shared75"] < 0.5


def test_capacity_and_overload_against_every_rival():
    rows = bench().run(["capacity", "overload"])
    found = values(rows)
    assert {"capacity_over_fixed_largest", "capacity_over_niyama", "capacity_over_sarathi"} <= set(
        found
    )
    assert found["capacity/fixed_smallest"] > found["capacity/fixed_largest"] > 0
    assert found["capacity_over_fixed_largest"] > 1.0
    assert all(f"overload/{name}_above/niyama" in found for name in ("fluidity", "on_time"))
    detail = next(r for r in rows if r["figure"] == "streams/capacity_over_niyama")["detail"]
    assert detail["quality"] >= detail["least_quality"]
    assert detail["length_scale"] == 0.125
    assert "drawn" in detail["trace"]


def test_orders_and_cost():
    found = values(lars_rows(SETTING, num=400) + cost_rows(SETTING, iterations=30))
    assert found["lars/short_tail_over_fcfs"] < 1.0
    assert found["lars/long_tail_over_fcfs"] > 0.9
    assert 0.0 < found["scheduler_cost/slackwidth"] < 5.0


def test_what_needs_a_decoder_says_so():
    rows = bench().run(["live"])
    assert {row["unit"] for row in rows} == {"skipped"}
    assert all("--checkpoint" in row["detail"] for row in rows)
    with pytest.raises(ValueError, match="part 'speed' is unknown, allowed chunking, capacity"):
        bench().run(["speed"])


def test_live_streams_have_the_outcomes_of_simulated_ones():
    fast = replace(SETTING, costs=COSTS.scaled(0.02))
    queries = [q._replace(arrival_s=q.arrival_s * 0.01) for q in fast.queries(0, 1.0)[:12]]
    decoder = TimedDecoder(fast.costs)
    outcomes = asyncio.run(serve_live(queries, fast.costs, "slackwidth", decoder, 256))
    for query, outcome in zip(queries, outcomes, strict=True):
        assert len(outcome.output_s) == query.max_tokens
        assert outcome.query.arrival_s == pytest.approx(query.arrival_s)
        assert outcome.output_s[0] > query.arrival_s


def test_the_same_scenarios_run_live():
    costs = COSTS.scaled(0.01)

    def make() -> TimedDecoder:
        return TimedDecoder(costs)

    rows = chunking_rows(live_runner(costs, make, 256), costs, "timed")
    assert len(rows) == 7


def test_a_decoder_serves_in_processor_time():
    """Every iteration is computed: all outputs come, at the times that computing takes."""
    checkpoint = random_checkpoint(define_supernet("decoder_tiny", max_positions=512))
    executor = StreamExecutor(checkpoint, capacity_tokens=4096)
    rungs = [
        replace(rung, subnet_id=i)
        for rung, i in zip(COSTS.rungs, executor.subnet_ids, strict=False)
    ]
    costs = replace(COSTS, rungs=tuple(rungs)).scaled(0.01)
    run = processor_runner(costs, executor, 100, kv_tokens=4096)
    queries = [
        StreamQuery(i, 0.01 * i, 130, 4, 0.01 * i + 1.0, 0.2, cached_tokens=128 * (i == 2))
        for i in range(5)
    ]
    outcomes = run(queries, "slackwidth")
    assert [len(outcome.output_s) for outcome in outcomes] == [4] * 5
    assert all(o.output_s[0] > o.query.arrival_s for o in outcomes)
    assert executor.cache.table.free_tokens == 4096


def test_every_peer_that_is_not_there_says_why(monkeypatch: pytest.MonkeyPatch):
    """Ours and its largest width are policies of one server, asked in turn."""
    asked: list[tuple[str, str | None]] = []

    @contextlib.contextmanager
    def served(_: PeerSetting) -> Iterator[str]:
        yield "ours"

    async def replayed(url: str, queries: list[StreamQuery]) -> list[StreamOutcome]:
        return SETTING.simulated(queries, asked[-1][1] or "fcfs")

    async def carried(url: str, run_s: float) -> float:
        return 0.5

    monkeypatch.setattr(peers, "_ours", served)
    monkeypatch.setattr(peers, "_use", lambda url, policy: asked.append((url, policy)))
    monkeypatch.setattr(peers, "_replay", replayed)
    monkeypatch.setattr(peers, "_capacity_qps", carried)
    rows = peer_rows(PeerSetting(Path("x"), None, PROFILE, run_s=30.0), lambda _: None)
    found = values(rows)
    assert {row["figure"] for row in rows if row["unit"] == "skipped"} == {
        "streams/peers/llamacpp",
        "streams/peers/vllm",
    }
    policies = [policy for _, policy in asked]
    assert policies == ["fixed:largest", *["fixed:largest", "slackwidth"] * 3]
    for load in ("0.7", "1", "1.3"):
        gained = found[f"peers/load{load}/on_time_ours_less_largest"]
        ours, largest = (found[f"peers/load{load}/{n}/on_time"] for n in ("ours", "largest"))
        assert gained == pytest.approx(ours - largest)


@pytest.mark.slow
def test_the_door_is_measured_beside_the_engine():
    rows = door_rows(SETTING, PROFILE, lambda _: None, tokens=20)
    found = values(rows)
    detail = rows[0]["detail"]
    assert detail["server_us_per_token"] > detail["engine_us_per_token"] > 0
    assert 0 < found["door/processor_us_per_token"] < 2000
    assert 0 < found["door/first_byte_beyond_engine"] < 0.1


def test_chunking_is_simulated_with_what_was_measured_first():
    """And so named; parts that compare policies keep the profile that they were given."""
    slow = COSTS.scaled(2.0).in_profile(replace(PROFILE, name="this machine", packing="half"))
    measuring = StreamsBench(
        SETTING, PROFILE, checkpoint=None, measure=lambda tell: slow, tell=lambda _: None
    )
    assumed, measured = bench().run(["chunking"]), measuring.run(["chunking"])
    assert all("took here just before: this machine, half" in row["detail"] for row in measured)
    assert all("simulated with example" in row["detail"] for row in assumed)
    seconds = [values_of(rows, "ttft_chunked_over_alone/b32") for rows in (assumed, measured)]
    assert seconds[1] == pytest.approx(2 * seconds[0], rel=1e-3)


def values_of(rows: list[dict], figure: str) -> float:
    """The seconds that a row of chunking tells of: `2000 tokens, 7.391 s; alone ...`."""
    (detail,) = (row["detail"] for row in rows if row["figure"] == f"streams/{figure}")
    return float(detail.split(", ")[1].split(" s")[0])


def test_iterations_are_measured_without_any_file():
    """On random weights, in the fastest form; here on a small decoder, whatever neighbours do."""
    told: list[str] = []
    small = define_supernet("decoder_tiny", max_positions=1024)
    profile = measured_here(told.append, small, repeats=1, max_error=1e3)
    costs = IterationCosts.of(profile)
    assert len(costs.rungs) == 2
    assert costs.rungs[0].quality < costs.rungs[1].quality
    assert profile.packing in told[0]
    assert profile.threads == 1

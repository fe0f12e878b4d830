"""The stream engine in virtual time, by `step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from serve.engine.streams.open_stream import MOST_UNREAD_BYTES, OpenStream, StreamRequest
from serve.engine.streams.prefix_cache import PrefixCache
from serve.engine.streams.stream_device import SharedPrefix, StreamDevice, greedy
from serve.engine.streams.stream_engine import StreamEngine
from serve.models.stream_refusal import stream_refusal
from slackfit.policies.streams import create_stream_policy
from slackfit.profile import LatencyProfile
from slackfit.scheduling.streams.stream_scheduler import StreamScheduler
from slackfit.simulation.simulate_streams import simulate_streams
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_query import StreamChunk, StreamOutcome, StreamQuery
from subnetact.timed_decoder import TimedDecoder

COSTS = IterationCosts.of(LatencyProfile.load("profiles/smollm2_135m_example.json"))


class Clock:
    """Virtual time, which sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Bench:
    """An engine without thread or loop."""

    def __init__(
        self,
        policy: str = "slackwidth",
        *,
        decoder: type[TimedDecoder] = TimedDecoder,
        prefixes: PrefixCache | None = None,
        **settings: Any,
    ):
        self.clock = Clock()
        self.decoder = decoder(COSTS, clock=self.clock, sleep=self.clock.sleep)
        self.outcomes: list[StreamOutcome] = []
        self.scheduler = StreamScheduler(COSTS, create_stream_policy(policy, COSTS), **settings)
        self.engine = StreamEngine(
            self.scheduler,
            StreamDevice(self.decoder, prefixes),
            clock=self.clock,
            observer=self.outcomes.append,
        )
        self.engine._state = "ready"

    def open(self, prompt: Sequence[int], outputs: int = 5, **more: Any) -> OpenStream:
        now_s = self.clock()
        fields = {"first_deadline_s": now_s + 2.0, "period_s": 0.25, **more}
        return self.engine.open(
            StreamRequest(prompt=prompt, max_tokens=outputs, arrival_s=now_s, **fields)
        )

    def run(self) -> None:
        while self.engine.step():
            pass


def tokens_of(stream: OpenStream) -> list[int]:
    return [output.token for output in stream._outputs]


def continued(prompt: Sequence[int], outputs: int) -> list[int]:
    """What the decoder says alone, token by token."""
    ids = list(prompt)
    for _ in range(outputs):
        ids.append(TimedDecoder(COSTS).next_token(ids))
    return ids[len(prompt) :]


def test_every_stream_gets_its_own_text_whatever_the_company():
    bench = Bench()
    prompts = [[i + 1, 7, 200 - i] * (5 * i + 1) for i in range(6)]
    streams = [bench.open(prompt, 4 + i) for i, prompt in enumerate(prompts)]
    bench.run()
    for i, (stream, prompt) in enumerate(zip(streams, prompts, strict=True)):
        assert tokens_of(stream) == continued(prompt, 4 + i)
        assert stream.outcome is not None
        assert stream.outcome.status == "on_time"
        assert [output.at_s for output in stream._outputs] == list(stream.outcome.output_s)
    bench.engine.step()
    assert bench.decoder.held_tokens == 0
    assert len(bench.outcomes) == 6


def test_a_preempted_text_comes_out_the_same():
    bench = Bench("fcfs", kv_tokens=512, extent_tokens=64)
    prompts = [[3 + i] * 60 for i in range(5)]
    streams = [bench.open(prompt, 120) for prompt in prompts]
    bench.run()
    outcomes = [stream.outcome for stream in streams]
    assert sum(outcome.preemptions for outcome in outcomes if outcome) > 0
    for stream, prompt in zip(streams, prompts, strict=True):
        assert tokens_of(stream) == continued(prompt, 120)


def test_live_and_simulated_runs_are_the_same_run():
    """The engine under a clock that only the device moves decides what the simulator decides."""
    bench = Bench(max_running=4)
    prompts = [[9] * n for n in (30, 400, 5, 90, 64, 1)]
    streams = [bench.open(prompt, 12) for prompt in prompts]
    bench.run()
    queries = [StreamQuery(i, 0.0, len(prompt), 12, 2.0, 0.25) for i, prompt in enumerate(prompts)]
    policy = create_stream_policy("slackwidth", COSTS)
    twin = StreamScheduler(COSTS, policy, max_running=4)
    # The engine polls once all are there; the simulator polls at each arrival.
    for query in queries[1:]:
        assert twin.submit(query, 0.0) is None
    by_id: dict[int, StreamOutcome] = {}
    twin_outcomes = _simulated(queries[0], twin, by_id)
    for stream in streams:
        assert stream.outcome is not None
        simulated = twin_outcomes[stream.query.query_id]
        assert stream.outcome.output_s == pytest.approx(simulated.output_s)
        assert stream.outcome.subnet_ids == simulated.subnet_ids
        assert stream.outcome.status == simulated.status


def _simulated(
    first: StreamQuery, scheduler: StreamScheduler, by_id: dict[int, StreamOutcome]
) -> dict[int, StreamOutcome]:
    class Kept:
        """Notes every outcome, also of streams that the driver was not given."""

        next_wakeup_s = scheduler.next_wakeup_s
        submit = scheduler.submit
        poll = scheduler.poll
        cancel_all = scheduler.cancel_all

        def complete(self, *args: Any) -> tuple[StreamOutcome, ...]:
            outcomes = scheduler.complete(*args)
            by_id.update({outcome.query_id: outcome for outcome in outcomes})
            return outcomes

    simulate_streams([first], Kept())
    return by_id


def test_an_end_token_is_the_last():
    bench = Bench()
    text = continued([5, 6], 9)
    stream = bench.open([5, 6], 9, end_tokens=frozenset({text[3]}))
    bench.run()
    assert tokens_of(stream) == text[: text.index(text[3]) + 1]
    assert stream.outcome is not None
    assert stream.outcome.is_complete


def test_a_client_that_goes_frees_its_memory():
    bench = Bench()
    gone, stays = bench.open([1] * 50, 50), bench.open([2] * 50, 8)
    for _ in range(3):
        bench.engine.step()
    gone.cancel()
    gone.cancel()
    assert gone.outcome is not None
    assert (gone.outcome.status, gone.outcome.reason) == ("dropped", "cancelled")
    bench.run()
    bench.engine.step()
    assert bench.decoder.held_tokens == 0
    assert stays.outcome is not None
    assert stays.outcome.status == "on_time"
    assert len(bench.outcomes) == 2


class Poisonous(TimedDecoder):
    """Fails every iteration that token 13 is in."""

    def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
        if any(13 in chunk.ids for chunk in chunks):
            raise RuntimeError("13")
        return super().run(subnet_id, chunks)


def test_a_poisonous_prompt_costs_its_own_stream_only():
    bench = Bench(decoder=Poisonous)
    streams = [bench.open(prompt, 3) for prompt in ([1, 2], [4, 13], [5])]
    bench.run()
    statuses = [stream.outcome.status for stream in streams if stream.outcome]
    assert statuses == ["on_time", "failed", "on_time"]
    assert streams[1].outcome is not None
    assert streams[1].outcome.reason == "execution failed: RuntimeError: 13"
    assert tokens_of(streams[0]) == continued([1, 2], 3)
    assert tokens_of(streams[2]) == continued([5], 3)


def choosing_badly(row: Any, position: int) -> int:
    raise ValueError("no token")


@pytest.mark.parametrize("first", [True, False])
def test_a_token_that_cant_be_chosen_costs_its_own_stream_and_writes_no_other_twice(first: bool):
    """The iteration has happened: to run it again would compute the others' tokens again."""
    bench = Bench()
    wishes = [{"choose": choosing_badly}, {}] if first else [{}, {"choose": choosing_badly}]
    streams = [bench.open([4, 5 + i], 4, **wish) for i, wish in enumerate(wishes)]
    bench.run()
    bad, good = streams if first else streams[::-1]
    assert bad.outcome is not None
    assert good.outcome is not None
    assert (bad.outcome.status, bad.outcome.reason) == (
        "failed",
        "execution failed: ValueError: no token",
    )
    assert good.outcome.status == "on_time"
    assert tokens_of(good) == continued(good.request.prompt, 4)
    assert bench.decoder.num_iterations == 4


class NotFinite(TimedDecoder):
    """Computes NaN for the sequence that begins with 13."""

    def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
        logits = super().run(subnet_id, chunks)
        sampled = [chunk for chunk in chunks if chunk.samples]
        for row, chunk in zip(logits, sampled, strict=True):
            if self._sequences[chunk.sequence][0] == 13:
                row[7] = float("nan")
        return logits


def test_logits_that_are_not_finite_fail_their_stream():
    bench = Bench(decoder=NotFinite)
    good, bad = bench.open([1, 2], 3), bench.open([13, 2], 3)
    bench.run()
    assert bad.outcome is not None
    assert bad.outcome.reason == "execution failed: the output holds NaN or infinity"
    assert tokens_of(good) == continued([1, 2], 3)
    assert stream_refusal(bad.outcome, 1).message.startswith("the output holds NaN or infinity, of")


def test_what_is_not_finite_is_kept_for_nobody():
    """Whoever begins alike would be given its keys and values."""
    prefixes = PrefixCache(64, {rung.subnet_id: rung.quality for rung in COSTS.rungs})
    device = StreamDevice(NotFinite(COSTS, clock=Clock(), sleep=lambda _: None), prefixes)
    for query_id, token in enumerate((13, 2)):
        device.begin(query_id, [token] * 70, greedy, None)
    chunks = [StreamChunk(query_id, 0, 70, True) for query_id in range(2)]
    assert list(device.run(COSTS.subnet_ids[0], chunks).failed) == [0]
    assert [prefixes.pin([token] * 70, "", 0.0) is None for token in (13, 2)] == [True, False]


class Losing(TimedDecoder):
    """Loses `going` before the next iteration."""

    going: tuple[str, ...] = ()

    def look_after(self) -> Any:
        lost, self.going = self.going, ()
        for name in lost:
            self.release(name)
        return lost


def test_a_stream_whose_promised_beginning_is_lost_computes_it():
    """It was opened while the worker died that had it, or while the server drains."""
    prefixes = PrefixCache(64, {rung.subnet_id: rung.quality for rung in COSTS.rungs})
    bench = Bench(decoder=Losing, prefixes=prefixes)
    prompt = [3] * 130
    first = bench.open(prompt, 3)
    bench.run()
    stream, other, gone = bench.open(prompt, 3), bench.open([2], 3), bench.open(prompt, 3)
    gone.cancel()
    assert (stream.query.cached_tokens, other.query.cached_tokens) == (128, 0)
    assert isinstance(bench.decoder, Losing)
    bench.decoder.going = ("prefix-0",)
    bench.scheduler.drain()
    bench.run()
    assert tokens_of(first) == tokens_of(stream) == continued(prompt, 3)
    assert tokens_of(other) == continued([2], 3)
    assert stream.query.cached_tokens == 0
    assert stream.outcome is not None
    assert (stream.outcome.status, stream.outcome.query) == ("on_time", stream.query)
    assert prefixes.evict() == "prefix-0"  # nobody holds on to it any more


def test_a_stream_that_cant_be_begun_fails_alone():
    """Its prompt is said to begin with what the executor does not have."""
    bench = Bench()
    lost, good = bench.open([1] * 20, 3, shared=SharedPrefix("nowhere", 10)), bench.open([2], 3)
    bench.run()
    assert lost.outcome is not None
    assert (lost.outcome.status, lost.outcome.reason) == (
        "failed",
        "execution failed: KeyError: 'nowhere'",
    )
    assert tokens_of(good) == continued([2], 3)


class Small(TimedDecoder):
    """Has room for ten blocks; `arriving` opens streams as an iteration begins."""

    arriving: Any = None

    def __init__(self, costs: IterationCosts, **others: Any) -> None:
        super().__init__(costs, capacity_tokens=640, **others)

    def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
        longest = max(len(self._sequences.get(chunk.sequence, ())) for chunk in chunks)
        if self.arriving is not None and longest == 256:
            arriving, self.arriving = self.arriving, None
            arriving()
        return super().run(subnet_id, chunks)


@pytest.mark.parametrize("when", ["before", "within the iteration"])
def test_who_waits_on_a_shared_beginning_costs_nobody_who_runs_its_memory(when: str):
    """The scheduler counts what runs; what the others share is taken back and computed later."""
    prefixes = PrefixCache(64, {rung.subnet_id: rung.quality for rung in COSTS.rungs})
    room = {"kv_tokens": 640, "extent_tokens": 64, "max_running": 1}
    bench = Bench("fixed:largest", decoder=Small, prefixes=prefixes, **room)
    assert isinstance(bench.decoder, Small)
    prompts = [[2 + i] * 129 for i in range(3)]
    for prompt in prompts:
        bench.open(prompt, 1)
    bench.run()
    assert prefixes.counts().entries == 3
    runs = bench.open([9] * 60, 500)
    bench.engine.step()
    others: list[OpenStream] = []

    def arrive() -> None:
        others.extend(bench.open(prompt, 4) for prompt in prompts)
        assert [stream.query.cached_tokens for stream in others] == [128] * 3

    if when == "before":
        arrive()
    else:
        bench.decoder.arriving = arrive
    bench.run()
    for stream, prompt, outputs in zip(
        (runs, *others), ([9] * 60, *prompts), (500, 4, 4, 4), strict=True
    ):
        assert stream.outcome is not None
        assert stream.outcome.is_complete, stream.outcome.reason
        assert tokens_of(stream) == continued(prompt, outputs)
        assert stream.outcome.query == stream.query
    assert 0 in [stream.query.cached_tokens for stream in others]
    bench.engine.step()
    while prefixes.evict():
        pass
    assert len(prefixes._entries) == 0, "nobody holds on to any"


class Unsharing(TimedDecoder):
    """Can't begin a stream with what is kept of a prompt."""

    def share(self, source: int | str, sequence: int | str, tokens: int) -> None:
        if str(source).startswith("prefix"):
            raise RuntimeError("a table that is full")
        super().share(source, sequence, tokens)


def test_a_beginning_that_cant_be_shared_is_promised_to_nobody_any_more():
    prefixes = PrefixCache(64, {rung.subnet_id: rung.quality for rung in COSTS.rungs})
    bench = Bench(decoder=Unsharing, prefixes=prefixes)
    bench.open([3] * 130, 3)
    bench.run()
    again = bench.open([3] * 130, 3)
    assert again.query.cached_tokens == 128
    bench.run()
    assert again.outcome is not None
    assert again.outcome.reason == "execution failed: RuntimeError: a table that is full"
    assert prefixes.evict() == "prefix-0", "else its room is never anybody's"


def test_what_nobody_reads_is_bounded():
    bench = Bench()
    most = MOST_UNREAD_BYTES // 100_000
    asleep = bench.open([1], 50, output_bytes=100_000)
    reads = bench.open([2], 50)
    bench.run()
    assert asleep.outcome is not None
    assert (asleep.outcome.status, asleep.outcome.reason) == ("dropped", "too_slow")
    assert len(asleep.waiting()) == most + 1
    assert reads.outcome is not None
    assert reads.outcome.is_complete
    bench.engine.step()
    assert bench.decoder.held_tokens == 0


def test_a_shared_prefix_is_not_computed_again():
    bench = Bench()
    prompt = list(range(1, 201))
    bench.decoder.run("e1", [_Run("kept", tuple(prompt[:150]), False)])
    began_s = bench.clock()
    stream = bench.open(prompt, 3, shared=SharedPrefix("kept", 150))
    bench.run()
    assert tokens_of(stream) == continued(prompt, 3)
    cold = Bench()
    alone = cold.open(prompt, 3)
    cold.run()
    assert stream.outcome is not None
    assert alone.outcome is not None
    assert stream.outcome.output_s[0] - began_s < 0.6 * alone.outcome.output_s[0]


class _Run:
    def __init__(self, sequence: str, ids: tuple[int, ...], samples: bool) -> None:
        self.sequence, self.ids, self.samples = sequence, ids, samples


def test_a_policy_that_fails_is_replaced():
    bench = Bench()
    bench.scheduler.policy.decide = lambda view, now_s: 1 / 0  # type: ignore[method-assign]
    stream = bench.open([1, 2, 3], 3)
    bench.run()
    assert tokens_of(stream) == continued([1, 2, 3], 3)
    status = bench.engine.status()
    assert "ZeroDivisionError" in status.fallback
    assert status.policy == "fixed:e0.5"
    assert status.ended == {"on_time": 1}


def test_a_refused_stream_has_its_outcome_at_once():
    bench = Bench(kv_tokens=256, extent_tokens=64)
    stream = bench.open([1] * 400, 3)
    assert stream.outcome is not None
    assert (stream.outcome.status, stream.outcome.reason) == ("rejected", "too_long")
    assert bench.engine.status().ended == {"rejected": 1}

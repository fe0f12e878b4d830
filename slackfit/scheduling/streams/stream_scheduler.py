"""The stream scheduler: a policy that is asked before every iteration of a decoder.

The verbs of `Scheduler`, for queries that stay: no clock, no thread, no I/O, no tensor; a driver
calls it with the time of its own clock, `poll` when the device is free, `complete` when it is done.
Every stream ends exactly once.

Each iteration holds every decode (stall-free batching of Sarathi-Serve, OSDI'24), and of prompts
what the policy's decision leaves room for. A prompt is begun only when memory for the keys and
values of all of it is free, and an extent to spare; when a decode finds none, the stream whose next
output is due last is pre-empted and computed again later, and nothing new is begun then. A prompt
that the policy relegates stands back, but at least one token in ten of those computed for others is
computed for the relegated, so that none waits for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from typing import Any, NamedTuple

from slackfit.query import Status
from slackfit.scheduling.streams.cost_correction import CostCorrection
from slackfit.scheduling.streams.kv_table import KVTable
from slackfit.scheduling.streams.live_stream import LiveStream
from slackfit.scheduling.streams.relegation_credit import RelegationCredit
from slackfit.scheduling.streams.step_composer import StepComposer
from slackfit.scheduling.streams.stream_admission import StreamAdmission, check_stream
from slackfit.scheduling.streams.stream_places import StreamPlaces
from slackfit.scheduling.streams.stream_standing import StreamStanding
from slackfit.streams.iteration_cost import IterationCosts
from slackfit.streams.stream_policy import StreamPolicy
from slackfit.streams.stream_query import Step, StreamOutcome, StreamQuery

KV_TOKENS = 65_536
MAX_RUNNING = 64
RELEGATED_SHARE = 0.1
_DECAY = 0.995  # of the prompt tokens per second, per iteration (Niyama's)


class StepDispatch(NamedTuple):
    """What `poll` did: an iteration to run (or None), and the streams that ended without it."""

    step: Step | None
    dropped: tuple[StreamOutcome, ...]


class StreamScheduler:
    """Decides, iteration by iteration, which streams' tokens are computed on which width."""

    def __init__(
        self,
        costs: IterationCosts,
        policy: StreamPolicy,
        *,
        kv_tokens: int = KV_TOKENS,
        extent_tokens: int = 256,
        max_running: int = MAX_RUNNING,
        max_waiting: int | None = None,
        relegated_share: float = RELEGATED_SHARE,
        correct_costs: bool = False,
        tenant_shares: Mapping[str, float] | None = None,
    ) -> None:
        """Start empty. Raises ValueError for a count below 1 or a share outside 0 to 1.

        `kv_tokens` is for how many tokens the device has memory, in extents of `extent_tokens`;
        `max_running` bounds the streams in an iteration, `max_waiting` those that wait for a place
        (None: no bound); `relegated_share` is the part of prompt tokens that the relegated get;
        `correct_costs` corrects predictions by what iterations took (`CostCorrection`);
        `tenant_shares` are fractions of the device's time that tenants have at least while others
        want it too (`StreamStanding`).
        """
        if max_running < 1:
            raise ValueError(f"max_running is {max_running}, allowed 1 or more")
        self._standing = StreamStanding(tenant_shares)
        self._places = StreamPlaces(KVTable(kv_tokens, extent_tokens), max_running, self._standing)
        self._admission = StreamAdmission(max_waiting, self.kv.capacity_tokens)
        self._credit = RelegationCredit(relegated_share)
        self._correction = CostCorrection(costs) if correct_costs else None
        self._composer = StepComposer(costs, policy, self._places, self._credit, self._standing)
        self._view, self._queue = self._composer.view, self._composer.queue
        self._live: dict[int, LiveStream] = {}
        self._step: Step | None = None
        self._ended: list[StreamOutcome] = []  # not yet handed out by `poll`
        self._earliest_end_s = inf  # no hard deadline of a live stream is before

    def __len__(self) -> int:
        """Return how many streams wait or run."""
        return len(self._live)

    @property
    def num_running(self) -> int:
        """How many streams hold a place."""
        return len(self._places)

    @property
    def num_waiting(self) -> int:
        """How many streams hold none yet."""
        return len(self._live) - len(self._places)

    @property
    def num_relegated(self) -> int:
        """How many prompts stand behind the others."""
        return self._queue.num_relegated

    @property
    def costs(self) -> IterationCosts:
        """What iterations are predicted to take, as corrected so far."""
        return self._view.costs

    @property
    def cost_factor(self) -> float | None:
        """How much longer than profiled iterations are taken to be; None: not corrected."""
        return None if self._correction is None else self._correction.factor

    @property
    def quality_in_force(self) -> float:
        """The quality of the latest iteration's width, of the largest before the first.

        A prompt that is begun now is computed about as well: what is cached of it should be no
        worse than that, nor than the query's own floor.
        """
        return self._composer.quality

    @property
    def policy(self) -> StreamPolicy:
        """The policy that decides."""
        return self._composer.policy

    @property
    def kv(self) -> KVTable:
        """Who holds how much memory; to look at."""
        return self._places.kv

    @property
    def max_running(self) -> int:
        """How many streams may run at once."""
        return self._places.most

    @property
    def settings(self) -> dict[str, Any]:
        """How it was set, by the names of its arguments."""
        settings: dict[str, Any] = {
            "kv_tokens": self.kv.capacity_tokens,
            "extent_tokens": self.kv.extent_tokens,
            "max_running": self._places.most,
            "max_waiting": self._admission.max_waiting,
            "relegated_share": self._credit.share,
            "correct_costs": self._correction is not None,
        }
        if self._standing.shares:
            settings["tenant_shares"] = self._standing.shares
        return settings

    def submit(self, query: StreamQuery, now_s: float) -> StreamOutcome | None:
        """Admit a stream (None), or return why it is refused at once.

        The reasons are those of `StreamAdmission.refusal`. Where as many wait as may, a stream of a
        higher standing takes the place of one of the lowest, which leaves as `queue_full` with the
        next `poll`.
        Raises ValueError for an id that is live, counts below 1 and times that are none.
        """
        check_stream(query)
        if query.query_id in self._live:
            raise ValueError(f"query_id {query.query_id} waits or runs already; ids must differ")
        stream = LiveStream(query)
        best = self.costs.rungs[-1].quality
        reason = self._admission.refusal(query, self.num_waiting, best)
        if reason == "queue_full" and self._make_room(query, now_s):
            reason = ""
        if reason:
            return stream.end("rejected", reason, now_s)
        self._live[query.query_id] = stream
        self._queue.add(stream, now_s)
        self._earliest_end_s = min(self._earliest_end_s, query.deadline_s)
        return None

    def recompute(self, query_id: int, now_s: float) -> None:
        """Have all of a waiting stream's prompt be computed: what was cached of it is gone.

        One that is not live is no error. Raises ValueError for one that was begun.
        """
        stream = self._live.get(query_id)
        if stream is None:
            return
        if stream.start_s is not None:
            raise ValueError(f"query {query_id} was begun; recompute those that wait")
        stream.query = stream.query._replace(cached_tokens=0)
        stream.cached = 0
        self._queue.update(stream, now_s)

    def cancel(
        self, query_id: int, now_s: float, reason: str = "cancelled"
    ) -> StreamOutcome | None:
        """Drop a stream, wherever it is; None when it has ended or was never admitted.

        Its memory is free for the next iteration; what the running one computes of it is ignored.
        """
        stream = self._live.get(query_id)
        return None if stream is None else self._end(stream, "dropped", reason, now_s)

    def cancel_all(self, now_s: float, reason: str = "cancelled") -> tuple[StreamOutcome, ...]:
        """Drop every stream, in order of admission."""
        return tuple(
            self._end(stream, "dropped", reason, now_s) for stream in tuple(self._live.values())
        )

    def poll(self, now_s: float) -> StepDispatch:
        """Decide the next iteration, if none runs and there is anything to compute.

        Raises StreamPolicyError when the policy fails; the streams stay.
        """
        if self._step is not None:
            return self._handed_out(None)
        if now_s >= self._earliest_end_s:
            self._expire(now_s)
        if not self._live:
            return self._handed_out(None)
        self._step = self._composer.compose(now_s, len(self._live))
        return self._handed_out(self._step)

    def complete(
        self,
        step_id: int,
        now_s: float,
        ended: Collection[int] = (),
        failed: Collection[tuple[int, str]] = (),
    ) -> tuple[StreamOutcome, ...]:
        """End an iteration: its sampled outputs came at `now_s`; return the streams that are over.

        A stream is over with its last output, or with this one when the device says so: its id is
        in `ended` (an end token). `failed` are (id, reason) of streams whose chunk failed alone.
        Raises ValueError if the iteration does not run.
        """
        step = self._taken_off(step_id)
        quality = self._view.costs.rung(step.subnet_id).quality
        outcomes = [
            self._end(self._live[query_id], "failed", reason, now_s)
            for query_id, reason in failed
            if query_id in self._live
        ]
        num_prompt_tokens = 0
        for query_id, start, length, samples in step.chunks:
            stream = self._live.get(query_id)
            if stream is None:  # it was cancelled meanwhile, or failed
                continue
            is_prompt = not stream.is_decoding
            stream.cached = start + length
            if is_prompt:
                num_prompt_tokens += length
                if samples:
                    self._queue.remove(stream)
                else:
                    self._queue.update(stream, now_s)
            if samples:
                stream.output(now_s, step.subnet_id, quality)
                if len(stream.output_s) >= stream.query.max_tokens or query_id in ended:
                    self._forget(stream)
                    outcomes.append(stream.complete(now_s))
        self._learn(step, now_s)
        if num_prompt_tokens and now_s > step.start_s:
            self._note_rate(num_prompt_tokens / (now_s - step.start_s))
        return tuple(outcomes)

    def fail(self, step_id: int, now_s: float, reason: str) -> tuple[StreamOutcome, ...]:
        """End an iteration without results: its streams fail. Raises ValueError as `complete`."""
        step = self._taken_off(step_id)
        streams = [self._live[chunk[0]] for chunk in step.chunks if chunk[0] in self._live]
        return tuple(self._end(stream, "failed", reason, now_s) for stream in streams)

    def next_wakeup_s(self) -> float | None:
        """Return when `poll` will act even if nothing arrives or completes, None if never.

        That is at once while streams that ended are to be handed out, and else when one that is
        live expires.
        """
        if self._ended:
            return self._ended[0].finish_s
        return None if self._earliest_end_s == inf else self._earliest_end_s

    def reconfigure(
        self,
        now_s: float,
        *,
        policy: StreamPolicy | None = None,
        costs: IterationCosts | None = None,
    ) -> None:
        """Change policy or costs from the next iteration on; streams stay.

        Raises ValueError, and changes nothing, for costs of other widths.
        """
        if costs is not None:
            if costs.subnet_ids != self.costs.subnet_ids:
                raise ValueError(
                    f"the new costs have widths {', '.join(costs.subnet_ids)}, streams were "
                    f"admitted for {', '.join(self.costs.subnet_ids)}"
                )
            if self._correction is not None:
                self._correction = self._correction.replaced(costs)
                costs = self._correction.costs
            self._view.costs = costs
        if policy is not None:
            self._composer.use(policy, now_s)

    def drain(self) -> None:
        """Refuse new streams from now on; what was admitted is still served."""
        self._admission.is_draining = True

    # --- ends ------------------------------------------------------------------------------------

    def _make_room(self, query: StreamQuery, now_s: float) -> bool:
        """Drop a stream of the lowest standing that is below a newcomer's; whether there was one.

        Of those that were not begun yet the one whose output is due last.
        """
        rank = self._standing.rank
        waiting = [stream for stream in self._live.values() if stream.start_s is None]
        last = min(waiting, key=lambda s: (rank(s.query), -s.due_s), default=None)
        if last is None or rank(last.query) >= rank(query):
            return False
        self._ended.append(self._end(last, "dropped", "queue_full", now_s))
        return True

    def _expire(self, now_s: float) -> None:
        for stream in tuple(self._live.values()):
            if stream.query.deadline_s <= now_s:
                self._ended.append(self._end(stream, "dropped", "expired", now_s))
        live = self._live.values()
        self._earliest_end_s = min([s.query.deadline_s for s in live], default=inf)

    def _end(self, stream: LiveStream, status: Status, reason: str, now_s: float) -> StreamOutcome:
        self._queue.remove(stream)
        self._forget(stream)
        return stream.end(status, reason, now_s)

    def _forget(self, stream: LiveStream) -> None:
        del self._live[stream.query_id]
        self._places.release(stream)

    def _handed_out(self, step: Step | None) -> StepDispatch:
        ended, self._ended = self._ended, []
        return StepDispatch(step, tuple(ended))

    def _taken_off(self, step_id: int) -> Step:
        step = self._step
        if step is None or step.step_id != step_id:
            running = "none" if step is None else str(step.step_id)
            raise ValueError(f"iteration {step_id} does not run (running: {running})")
        self._step = None
        return step

    def _learn(self, step: Step, now_s: float) -> None:
        """Correct the costs by an iteration that has ended."""
        correction = self._correction
        if correction is not None and correction.observe(step.expected_s, now_s - step.start_s):
            self._view.costs = correction.costs

    def _note_rate(self, tokens_per_s: float) -> None:
        before = self._view.tokens_per_s
        is_first = before == 0.0
        new = tokens_per_s if is_first else _DECAY * before + (1.0 - _DECAY) * tokens_per_s
        self._view.tokens_per_s = new

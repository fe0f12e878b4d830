"""`StepComposer`: puts one iteration together: its decodes, its width, the prompts that fill it.

Every decode is in it. The policy sees what is left (`ScheduleView`) and decides width and room;
`StepFiller` takes prompts in the queue's order, those that are relegated by their credit first.
"""

from __future__ import annotations

from itertools import islice
from math import inf

from slackfit.scheduling.streams.live_stream import LiveStream
from slackfit.scheduling.streams.prompt_queue import PromptQueue
from slackfit.scheduling.streams.relegation_credit import RelegationCredit
from slackfit.scheduling.streams.schedule_view import ScheduleView, StreamPolicyError
from slackfit.scheduling.streams.step_filler import PromptPart, StepFiller
from slackfit.scheduling.streams.stream_places import StreamPlaces
from slackfit.scheduling.streams.stream_standing import ChargedChunk, StreamStanding
from slackfit.streams.iteration_cost import IterationCost, IterationCosts
from slackfit.streams.iteration_fill import IterationFill
from slackfit.streams.stream_policy import StreamDecision, StreamPolicy
from slackfit.streams.stream_query import Step, StreamChunk

LOOK_AHEAD = 32


class StepComposer:
    """The prompts of a scheduler (`queue`), what policies see of it (`view`), and its next step."""

    def __init__(
        self,
        costs: IterationCosts,
        policy: StreamPolicy,
        places: StreamPlaces,
        credit: RelegationCredit,
        standing: StreamStanding,
    ) -> None:
        """Begin without prompts."""
        self.policy = policy
        self.view = ScheduleView(costs)
        self.queue = PromptQueue(policy, standing)
        self.quality = costs.rungs[-1].quality
        """Of the latest iteration's width, of the largest before the first."""
        self._places = places
        self._credit = credit
        self._standing = standing
        self._num_steps = 0

    def use(self, policy: StreamPolicy, now_s: float) -> None:
        """Decide by another policy from the next iteration on."""
        self.policy = policy
        self.view.memo = None
        self.queue.use(policy, now_s)

    def compose(self, now_s: float, num_live: int) -> Step | None:
        """Return the next iteration, None if there is nothing to compute.

        `num_live` streams wait or run. Raises StreamPolicyError when the policy fails; the streams
        stay.
        """
        self._standing.refresh(now_s)
        chunks, decoding, preempted = self._decodes(now_s)
        decision, waiting = self._decide(now_s, num_live)
        cost = self._rung(decision.subnet_id)
        fill = IterationFill(cost, self.view.decodes)
        taken = self._prompts(decision, cost, fill, waiting, not preempted, now_s)
        chunks += [
            StreamChunk(s.query_id, s.cached, length, length == s.remaining) for s, length in taken
        ]
        if not chunks:
            return None
        if self._standing.shares:
            streams = [*decoding, *(stream for stream, _ in taken)]
            self._standing.charge(
                [ChargedChunk(s.query, c) for s, c in zip(streams, chunks, strict=True)],
                cost,
                fill.seconds,
                now_s,
            )
        step_id = self._num_steps
        self._num_steps += 1
        self.quality = cost.quality
        return Step(
            step_id,
            cost.subnet_id,
            tuple(chunks),
            now_s,
            fill.seconds,
            self.view.slack_s,
            decision.budget,
            tuple(preempted),
        )

    def _decodes(self, now_s: float) -> tuple[list[StreamChunk], list[LiveStream], list[int]]:
        """Return a chunk for every decode, whose, and whom it cost its memory; sets the view."""
        decoding, gave_way = self._places.make_room()
        for stream in gave_way:
            self._begin_again(stream, now_s)
        view = self.view
        cached = [stream.cached for stream in decoding]
        view.decodes = view.costs.decode_work(cached)
        dues = [stream.fluidity.due_s for stream in decoding]
        view.slack_s = min(dues) - now_s if dues else inf
        running = self._places.streams
        view.period_s = min([stream.query.period_s for stream in running], default=inf)
        view.min_quality = max([stream.query.min_quality for stream in running], default=0.0)
        chunks = [
            StreamChunk(s.query_id, c, 1, True) for s, c in zip(decoding, cached, strict=True)
        ]
        return chunks, decoding, [stream.query_id for stream in gave_way]

    def _decide(self, now_s: float, num_live: int) -> tuple[StreamDecision, list[LiveStream]]:
        """Ask the policy; return its decision and the prompts in order, the relegated last."""
        view, policy = self.view, self.policy
        view.num_running = len(self._places)
        view.num_waiting = num_live - view.num_running
        view.free_tokens = self._places.kv.free_tokens
        waiting: list[LiveStream] = []
        view.first = []
        try:
            lost: list[LiveStream] = []
            for stream in self.queue.in_order(now_s):
                prompt = stream.prompt()
                if policy.relegates(prompt, view, now_s):
                    lost.append(stream)
                    continue
                waiting.append(stream)
                view.first.append(prompt)
                if len(waiting) >= LOOK_AHEAD:
                    break
            for stream in lost:
                self.queue.relegate(stream)
            if not waiting:  # the relegated are all there is
                waiting = list(islice(self.queue.relegated(), LOOK_AHEAD))
                view.first = [stream.prompt() for stream in waiting]
            if view.first:
                view.min_quality = max(view.min_quality, view.first[0].query.min_quality)
            decision = policy.decide(view, now_s)
            view.memo = decision.memo
            self._rung(decision.subnet_id)
        except Exception as error:
            raise StreamPolicyError(policy.name, repr(error), num_live) from error
        return decision, waiting

    def _prompts(
        self,
        decision: StreamDecision,
        cost: IterationCost,
        fill: IterationFill,
        waiting: list[LiveStream],
        is_open: bool,
        now_s: float,
    ) -> list[PromptPart]:
        """Fill an iteration with prompts; return which. Nothing is begun unless it `is_open`."""
        places = self._places.most
        if decision.max_running is not None:
            places = min(places, max(decision.max_running, 1))

        def admit(stream: LiveStream) -> bool:
            nonlocal is_open
            if stream.is_running:
                return True
            if cost.quality < stream.query.min_quality:
                return False
            is_open = is_open and self._places.admit(stream, places, now_s)
            return is_open

        has_decodes = fill.num_tokens > 0
        filler = StepFiller(fill, decision, self.policy.granule, admit)
        first = next(self.queue.relegated(), None)
        if first is not None and waiting[0] is not first:
            self._credit.pay(first, filler, self.policy.granule)
        owed = len(filler.taken)
        filler.take_all(waiting)
        regular = filler.taken[owed:]
        taken = {stream.query_id for stream, _ in filler.taken}
        rest = [stream for stream in self._behind(waiting) if stream.query_id not in taken]
        filler.take_all(rest)
        if not has_decodes and not filler.taken:
            filler.force([*waiting, *rest])
        self._credit.earn(regular, self.queue.num_relegated)
        return filler.taken

    def _behind(self, waiting: list[LiveStream]) -> list[LiveStream]:
        """Return who may have what is left: begun prompts far back in the order, the relegated."""
        begun = [stream for stream in self._places.streams if not stream.is_decoding]
        behind = [*begun, *islice(self.queue.relegated(), LOOK_AHEAD)]
        seen = {stream.query_id for stream in waiting}
        return [s for s in dict.fromkeys(behind) if s.query_id not in seen]

    def _rung(self, subnet_id: str) -> IterationCost:
        """Return the decided width, or the least that is as good as those in it ask for."""
        cost = self.view.costs.rung(subnet_id)
        floor = self.view.min_quality
        if cost.quality >= floor:
            return cost
        return next(rung for rung in self.view.costs.rungs if rung.quality >= floor)

    def _begin_again(self, stream: LiveStream, now_s: float) -> None:
        """Let a stream wait that has lost its memory."""
        was_decoding = stream.is_decoding
        stream.preempt()
        if was_decoding:
            self.queue.add(stream, now_s)
        else:
            self.queue.update(stream, now_s)

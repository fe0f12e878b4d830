"""`ServedDecoder`: one decoder behind a name: its stream engine, tokenizer, due times."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from serve.config import LiveConfig, ServeConfigError
from serve.engine.guarded import Guarded
from serve.engine.streams.open_stream import OUTPUT_BYTES, OpenStream, StreamRequest
from serve.engine.streams.stream_device import Choose, greedy
from serve.engine.streams.stream_engine import StreamEngine
from serve.models.limits import RefusedError
from serve.models.stream_refusal import stream_refusal
from serve.models.stream_terms import NO_WISHES, SloWishes, resolve_terms
from serve.models.tenant_limits import NO_LIMITS, TenantLimits
from serve.models.text_assembly import StopWatch
from serve.models.text_coder import TextCoder
from serve.observe.request_record import RequestObserver
from serve.observe.stream_record import StreamRecord
from serve.proto.names import class_of
from slackfit.policies.streams import create_stream_policy
from slackfit.streams.stream_query import StreamOutcome
from subnetact.decoding.sampling_params import SamplingParams

SamplerMaker = Callable[[SamplingParams, Sequence[int], frozenset[int]], Choose]

_LONGEST_TOKEN = 64  # characters: a longer text than so many per position is not worth encoding
_SEED_BITS = 63
_SCORE_BYTES = 150  # of an alternative to a token, with its log-probability


class DecoderSpec(NamedTuple):
    """What a door must know of a decoder to judge a request."""

    name: str
    vocab_size: int
    max_positions: int
    eos_ids: frozenset[int]
    quality_kind: str
    fingerprint: str = ""
    profile: str = ""
    device: str = ""
    created: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextWishes:
    """What a request asks of its text and its time, whatever the protocol it came by.

    `max_tokens` None: as many as there is room for. `seed` None draws another one each time.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int | None = None
    slo: SloWishes = NO_WISHES
    min_quality: float = 0.0
    priority: int = 0


class DecoderStream(NamedTuple):
    """A text that is being written: its stream, and what its door must know besides.

    `choose` has the `scores` of its tokens where log-probabilities were asked for.
    """

    stream: OpenStream
    end_tokens: frozenset[int]
    choose: Any


class ServedDecoder:
    """What a door of streams talks to."""

    def __init__(
        self,
        spec: DecoderSpec,
        engine: StreamEngine,
        coder: TextCoder,
        live: LiveConfig,
        make_sampler: SamplerMaker,
        request_observers: Sequence[RequestObserver] = (),
    ) -> None:
        """`make_sampler` makes what chooses tokens of a text that is not simply the likeliest.

        `request_observers` are told of every stream that the engine was asked for.
        """
        assert live.policy is not None, "a served decoder has a policy"
        assert live.ttft_ms is not None, "a served decoder says when outputs are due"
        assert live.tpot_ms is not None, "a served decoder says when outputs are due"
        self.spec = spec
        self.engine = engine
        self.coder = coder
        self._make_sampler = make_sampler
        self._observers = [Guarded(observer) for observer in request_observers]
        self._start = self._live = live

    @property
    def policy_name(self) -> str:
        """The name of the policy in force."""
        return self.engine.status().policy

    @property
    def longest_tokens(self) -> int:
        """The most tokens that prompt and output may have together."""
        return min(self.spec.max_positions, self.engine.kv_tokens)

    def check_text(self, text: str) -> None:
        """Raise RefusedError, `too_long`, for a text that can't fit, before it is encoded."""
        if len(text) > _LONGEST_TOKEN * self.longest_tokens:
            text = f"the prompt has {len(text)} characters, allowed {self.longest_tokens} tokens"
            raise RefusedError("too_long", f"{text} with the output (the longest context)")

    def open(
        self,
        prompt: Sequence[int],
        wishes: TextWishes,
        headers: Mapping[str, str],
        *,
        arrival_s: float,
        tenant: TenantLimits = NO_LIMITS,
        request_id: str = "",
    ) -> DecoderStream:
        """Begin to write what follows a prompt. Raises RefusedError where it is refused at once."""
        self.check_ready()
        max_tokens = self._room(prompt, wishes)
        tenant.check_wishes(wishes.priority, None)
        terms = resolve_terms(
            headers,
            wishes.slo,
            arrival_s=arrival_s,
            ttft_s=(self._live.ttft_ms or 0.0) * 1e-3,
            tpot_s=(self._live.tpot_ms or 0.0) * 1e-3,
            max_tokens=max_tokens,
            tenant=tenant,
        )
        if terms.deadline_s <= self.engine.clock():
            raise RefusedError("expired", "the time limit had passed when the request was read")
        self._check_quality(wishes.min_quality)
        end_tokens = frozenset(wishes.stop_token_ids)
        if not wishes.ignore_eos:
            end_tokens |= self.spec.eos_ids
        choose = self._chooser(prompt, wishes, end_tokens)
        ends = None
        if wishes.stop:
            ends = StopWatch(self.coder, wishes.stop, wishes.sampling.min_tokens, prompt)
        stream = self.engine.open(
            StreamRequest(
                prompt=prompt,
                max_tokens=max_tokens,
                arrival_s=arrival_s,
                first_deadline_s=terms.first_deadline_s,
                period_s=terms.period_s,
                deadline_s=terms.deadline_s,
                min_quality=wishes.min_quality,
                query_class=class_of(wishes.priority),
                tenant=tenant.name,
                choose=choose,
                end_tokens=end_tokens,
                ends=ends,
                output_bytes=_output_bytes(wishes.sampling),
                on_end=self._observed(headers, request_id),
            )
        )
        if stream.outcome is not None:
            raise self.refusal(stream)
        return DecoderStream(stream, end_tokens, choose)

    def _observed(
        self, headers: Mapping[str, str], request_id: str
    ) -> Callable[[StreamOutcome], None] | None:
        """Return what tells the observers how a stream ended, that is opened now."""
        if not self._observers:
            return None
        submitted_s = self.engine.clock()

        def ended(outcome: StreamOutcome) -> None:
            record = StreamRecord(self.spec.name, request_id, headers, submitted_s, outcome)
            for observer in self._observers:
                observer(record)

        return ended

    def refusal(self, stream: OpenStream) -> RefusedError:
        """Return why a stream that has ended gave no whole text."""
        assert stream.outcome is not None, "asked of a stream that has ended"
        return stream_refusal(stream.outcome, self.engine.kv_tokens)

    def _room(self, prompt: Sequence[int], wishes: TextWishes) -> int:
        """Return how many tokens may come. Raises RefusedError where prompt or wish is too long."""
        longest = self.longest_tokens
        room = longest - len(prompt)
        asked = wishes.max_tokens
        if not prompt:
            raise RefusedError("bad_request", "the prompt is empty, allowed one token or more")
        if max(prompt) >= self.spec.vocab_size:  # of a tokenizer that knows more than the network
            text = f"the prompt has token {max(prompt)}, allowed 0 to {self.spec.vocab_size - 1}"
            raise RefusedError("bad_request", f"{text}: the network has no more")
        if room < 1 or (asked is not None and asked > room):
            wish = "" if asked is None else f" and {asked} tokens are asked for"
            text = f"the prompt has {len(prompt)} tokens{wish}, allowed {longest} together"
            raise RefusedError("too_long", f"{text} (the longest context)")
        return room if asked is None else asked

    def _check_quality(self, floor: float) -> None:
        best = self.engine.costs.rungs[-1]
        if floor > best.quality:
            text = f"min_quality is {floor:g}, allowed {best.quality:.6g} or less: what the width"
            raise RefusedError("accuracy_floor", f"{text} {best.subnet_id} has, the best offered")

    def _chooser(
        self, prompt: Sequence[int], wishes: TextWishes, end_tokens: frozenset[int]
    ) -> Choose:
        params = wishes.sampling
        if params.is_greedy:
            return greedy
        seed = secrets.randbits(_SEED_BITS) if wishes.seed is None else wishes.seed % 2**64
        return self._make_sampler(replace(params, seed=seed), prompt, end_tokens)

    def check_ready(self) -> None:
        """Raise RefusedError unless the engine takes streams."""
        status = self.engine.status()
        if status.state != "ready":
            reason = "not_ready" if status.state == "starting" else "draining"
            reason = "device_failed" if status.fault else reason
            raise RefusedError(
                reason, f"model {self.spec.name!r} is {status.state}", retry_after_s=1.0
            )

    def reconfigure(self, change: LiveConfig, *, from_start: bool = False) -> dict[str, Any]:
        """Switch policy or due times between two iterations; all of it or nothing.

        What is not given stays, or (`from_start`) is as it was at the start. Returns the settings
        in force. Raises ServeConfigError for an unknown policy.
        """
        before = self._start if from_start else self._live
        given = change.model_dump(exclude_none=True, include={"policy", "ttft_ms", "tpot_ms"})
        live = before.model_copy(update=given)
        if live.policy != self._live.policy:
            try:
                policy = create_stream_policy(live.policy or "", self.engine.costs)
            except ValueError as error:
                raise ServeConfigError(str(error)) from None
            self.engine.reconfigure(policy)
        self._live = live
        return self.live_settings()

    def settings(self) -> dict[str, Any]:
        """Return what a simulated twin must share with the model."""
        return {
            "policy": self._live.policy,
            "ttft_ms": self._live.ttft_ms,
            "tpot_ms": self._live.tpot_ms,
            "kv_tokens": self.engine.kv_tokens,
            "max_running": self.engine.max_running,
        }

    def live_settings(self) -> dict[str, Any]:
        """Return the settings in force and the engine's state, as plain data."""
        status = self.engine.status()
        return {
            **self.settings(),
            "policy": status.policy,
            "subnets": list(self.engine.costs.subnet_ids),
            "state": status.state,
            "running": status.num_running,
            "waiting": status.num_waiting,
            "kv_share": status.kv_share,
            "fallback": status.fallback,
            "fault": status.fault,
            "ended": dict(status.ended),
        }


def _output_bytes(sampling: SamplingParams) -> int:
    """Return about what an output holds while it waits for its reader."""
    return OUTPUT_BYTES + _SCORE_BYTES * (0 if sampling.logprobs is None else 1 + sampling.logprobs)

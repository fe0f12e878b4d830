"""`StreamDevice`: the tokens of the open streams, between a scheduler of counts and a decoder.

The scheduler speaks of positions, the executor of token ids: this holds each stream's ids, cuts the
chunks of a step out of them, and chooses the next token of what was sampled. What the executor is
does not matter here: `subnetact.decoding` has the real one, `TimedDecoder` sleeps.

An iteration has happened once the executor has returned: its keys and values are there, whatever
fails behind it. What fails there, choosing a token above all, fails its own stream and is never run
again, or the others would be written twice.

With a `PrefixCache`, prompts that were computed stay, as sequences that nobody runs; where the
executor finds no room for an iteration, they go, and then what streams share that have not run yet,
which the scheduler does not count. What runs always fits, so then it does, unless a part of the
executor is being replaced: then that is waited for. Kept prompts that were lost with it are given
up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Sequence
from math import isfinite
from typing import Any, NamedTuple, Protocol

from serve.engine.runner import NOT_FINITE
from serve.engine.streams.prefix_cache import PrefixCache, SharedPrefix
from slackfit.streams.stream_query import StreamChunk
from subnetact.decoding.extents import CacheFullError

logger = logging.getLogger(__name__)

Choose = Callable[[Any, int], int]
"""Chooses a token by its row of logits (vocabulary,) and its position in the sequence."""

_FULL = (CacheFullError, MemoryError)
_PROBE = "probe"  # a sequence of no stream


class IterationExecutor(Protocol):
    """What runs one iteration of a decoder."""

    @property
    def subnet_ids(self) -> tuple[str, ...]: ...

    def run(self, subnet_id: str, chunks: Sequence[Any]) -> Any:
        """Run chunks (`TokenRun`); return logits (S, vocabulary) of those that sample, in order.

        Where it raises, nothing of the iteration was kept.
        """
        ...

    def share(self, source: Any, sequence: Any, tokens: int) -> None:
        """Begin a sequence with the first `tokens` of one that is kept, without computing them."""
        ...

    def release(self, sequence: Any) -> None:
        """Forget a sequence's keys and values."""
        ...

    def look_after(self) -> Collection[Any]:
        """See to what it runs on, between iterations; return sequences that were lost with it.

        Raises where it can't run anything any more.
        """
        ...

    def wait_until_whole(self) -> bool:
        """Wait for what is being replaced, and has room; return whether there was anything.

        All waits between two calls of `look_after` last no longer than one may. Raises where that
        was too short.
        """
        ...

    def close(self) -> None:
        """End what it runs on."""
        ...


class TokenRun(NamedTuple):
    """The next tokens of one sequence, behind what is cached of it."""

    sequence: int | str
    ids: tuple[int, ...]
    samples: bool


class IterationResult(NamedTuple):
    """What came of an iteration: the next token of streams that sampled, why others failed.

    Both by the stream's id; a stream is in one of them at the most.
    """

    tokens: dict[int, int]
    failed: dict[int, str]


class _OpenText:
    __slots__ = ("choose", "ids", "is_kept", "only_shares", "prompt_tokens", "quality", "tenant")

    def __init__(self, prompt: Sequence[int], choose: Choose, tenant: str) -> None:
        self.ids = list(prompt)
        self.choose = choose
        self.tenant = tenant
        self.prompt_tokens = len(prompt)
        self.quality = 1.0  # of the worst width that computed any of the prompt
        self.is_kept = False  # as a prefix
        self.only_shares = False  # holds what is another's, and was not run yet


class StreamDevice:
    """One executor and the ids of the streams on it; used by one thread only."""

    def __init__(self, executor: IterationExecutor, prefixes: PrefixCache | None = None) -> None:
        """Begin without streams."""
        self.executor = executor
        self.prefixes = prefixes
        self._texts: dict[int, _OpenText] = {}
        self._taken_back: list[int] = []

    def __len__(self) -> int:
        """Return how many streams are open."""
        return len(self._texts)

    def begin(
        self,
        query_id: int,
        prompt: Sequence[int],
        choose: Choose,
        shared: SharedPrefix | None,
        tenant: str = "",
    ) -> None:
        """Take a stream's prompt, before its first chunk, and what is computed of it already."""
        text = self._texts[query_id] = _OpenText(prompt, choose, tenant)
        if shared is None:
            return
        try:
            self.executor.share(shared.source, query_id, shared.tokens)
            text.only_shares = True
            if self.prefixes is not None:
                text.quality = self.prefixes.quality_of(shared.source)
        finally:  # also where it can't be begun: what stays promised is never evicted
            if self.prefixes is not None:
                self.prefixes.unpin(shared.source)

    def run(self, subnet_id: str, chunks: Sequence[StreamChunk]) -> IterationResult:
        """Run one iteration; a stream whose token can't be chosen is in `failed`.

        Raises what the executor raises, and then no stream has got on.
        """
        runs: list[TokenRun] = []
        for query_id, at, length, samples in chunks:
            text = self._texts[query_id]
            text.only_shares = False
            runs.append(TokenRun(query_id, tuple(text.ids[at : at + length]), samples))
        logits = self._run_with_room(subnet_id, runs)
        sampled = [query_id for query_id, _, _, samples in chunks if samples]
        result = IterationResult({}, {})
        if len(logits) == len(sampled):
            for query_id, row in zip(sampled, logits, strict=True):
                self._choose(query_id, row, result)
        else:
            why = f"execution failed: {len(logits)} rows of logits for {len(sampled)} that sample"
            logger.error(why)
            result.failed.update(dict.fromkeys(sampled, why))
        if self.prefixes is not None:
            self._keep_prompts(self.prefixes, subnet_id, chunks, result.failed)
        return result

    def probe(self, subnet_id: str) -> None:
        """Run a token that nobody asked for. Raises what the executor raises."""
        try:
            self._run_with_room(subnet_id, [TokenRun(_PROBE, (1,), True)])
        finally:
            self.executor.release(_PROBE)

    def restart(self, query_id: int) -> None:
        """Give up a stream's keys and values; its tokens stay, to be computed again."""
        self.executor.release(query_id)
        text = self._texts[query_id]
        text.quality, text.only_shares = 1.0, False

    def release(self, query_id: int) -> None:
        """Forget a stream; one that is not there is no error."""
        if self._texts.pop(query_id, None) is not None:
            self.executor.release(query_id)

    def taken_back(self) -> list[int]:
        """Return, once, the streams that lost what they shared: all of their prompt is to compute.

        None of them was run.
        """
        taken, self._taken_back = self._taken_back, []
        return taken

    def look_after(self) -> list[int]:
        """See to what the executor runs on; return the streams that were lost with a part of it.

        Raises as the executor's.
        """
        lost = self.executor.look_after()
        if self.prefixes is not None:
            for name in self.prefixes.forget(lost):
                self.executor.release(name)
        return [name for name in lost if name in self._texts]

    def _run_with_room(self, subnet_id: str, runs: list[TokenRun]) -> Any:
        while True:
            try:
                return self.executor.run(subnet_id, runs)
            except _FULL:
                sequence = self._give_up()
                if sequence is not None:
                    self.executor.release(sequence)
                elif not self.executor.wait_until_whole():
                    raise

    def _give_up(self) -> int | str | None:
        """Return the sequence that makes room next, None if there is none that may.

        Kept prompts that nobody was promised; what streams share that were not run, those that came
        last first; what was promised to streams that come with the next iteration.
        """
        name = None if self.prefixes is None else self.prefixes.evict()
        if name is not None:
            return name
        for query_id in reversed(self._texts):
            text = self._texts[query_id]
            if text.only_shares:
                text.quality, text.only_shares = 1.0, False
                self._taken_back.append(query_id)
                return query_id
        return None if self.prefixes is None else self.prefixes.take_back()

    def _keep_prompts(
        self,
        prefixes: PrefixCache,
        subnet_id: str,
        chunks: Sequence[StreamChunk],
        failed: Container[int],
    ) -> None:
        """Note which quality computed prompts, and keep those that are whole now.

        But for those that failed: what is not finite would be everybody's who begins alike.
        """
        quality = prefixes.qualities[subnet_id]
        for query_id, at, length, samples in chunks:
            text = self._texts[query_id]
            if text.is_kept or at >= text.prompt_tokens:
                continue
            text.quality = min(text.quality, quality)
            if samples and at + length == text.prompt_tokens and query_id not in failed:
                text.is_kept = True
                try:
                    self._keep_prompt(prefixes, query_id, text)
                except (
                    Exception
                ):  # a cache: what it can't keep is logged and costs its stream nothing
                    logger.exception("the prompt of stream %d is not kept", query_id)

    def _keep_prompt(self, prefixes: PrefixCache, query_id: int, text: _OpenText) -> None:
        def share(name: str, tokens: int) -> None:
            self.executor.share(query_id, name, tokens)

        prompt = text.ids[: text.prompt_tokens]
        for name in prefixes.keep(prompt, text.tenant, text.quality, share):
            self.executor.release(name)

    def _choose(self, query_id: int, row: Any, result: IterationResult) -> None:
        """Choose a stream's next token from its logits (vocabulary,), or say why it fails."""
        text = self._texts[query_id]
        if not isfinite(float(row.sum())):  # one that is not finite leaves no sum that is
            logger.error("stream %d: %s", query_id, NOT_FINITE)
            result.failed[query_id] = f"execution failed: {NOT_FINITE}"
            return
        try:
            token = int(text.choose(row, len(text.ids)))
        except Exception as error:  # what a request asks for: it ends with that request
            logger.exception("no token of stream %d can be chosen", query_id)
            result.failed[query_id] = f"execution failed: {type(error).__name__}: {error}"
            return
        text.ids.append(token)
        result.tokens[query_id] = token


def greedy(row: Any, position: int) -> int:
    """Choose the most likely token."""
    return int(row.argmax())

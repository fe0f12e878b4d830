"""`StepRunner`: runs iterations on a decoder's device; the model's faults do not escape.

An iteration that the executor refuses is run again stream by stream, so that a poisonous prompt
costs its own stream only. What fails once it has been computed fails its stream as well, and is not
run again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from serve.engine.idle_probe import had_memory
from serve.engine.streams.open_stream import OpenStream
from serve.engine.streams.stream_device import IterationResult, StreamDevice
from slackfit.streams.stream_query import Step
from subnetact.parallel.worker_failure import WorkerFailedError

logger = logging.getLogger(__name__)


class StepResult(NamedTuple):
    """What came of an iteration: tokens by stream, whose was the last, why others failed."""

    tokens: dict[int, int]
    over: list[int]
    failed: dict[int, str]


class StepRunner:
    """Used by one thread only."""

    def __init__(self, device: StreamDevice) -> None:
        """Run on `device`."""
        self.device = device

    def begin(self, stream: OpenStream) -> str:
        """Hand a stream to the device; return why that failed, empty if it did not."""
        request, query_id = stream.request, stream.query.query_id
        try:
            self.device.begin(
                query_id, request.prompt, request.choose, request.shared, request.tenant
            )
        except Exception as error:  # the executor's code: it costs this stream alone
            logger.exception("stream %d can't be begun", query_id)
            return failure_of(error)
        return ""

    def run(self, step: Step, streams: Mapping[int, OpenStream]) -> StepResult:
        """Run an iteration of `streams`; those that are not there were withdrawn meanwhile."""
        for query_id in step.preempted:
            self.device.restart(query_id)
        tokens, failed = self._computed(step)
        over: list[int] = []
        for query_id, token in list(tokens.items()):
            stream = streams.get(query_id)
            if stream is None:
                continue
            try:
                if _is_last(stream, token):
                    over.append(query_id)
            except Exception as error:  # what a request asks for: it ends with that request
                logger.exception("whether stream %d is over can't be told", query_id)
                del tokens[query_id]
                failed[query_id] = failure_of(error)
        return StepResult(tokens, over, failed)

    def probe(self, subnet_id: str) -> None:
        """Run a token that nobody asked for. Raises what the executor raises.

        But for a lost worker: those are looked after in an iteration, so that one which says so
        is no fault. Nor is want of memory, which may pass.
        """
        try:
            had_memory(lambda: self.device.probe(subnet_id), f"a token on {subnet_id}")
        except WorkerFailedError:
            logger.exception("a worker is lost")

    def _computed(self, step: Step) -> IterationResult:
        try:
            return self.device.run(step.subnet_id, step.chunks)
        except Exception as error:  # the model's code: its errors end with their inputs
            logger.exception("iteration %d on %s failed", step.step_id, step.subnet_id)
            if len(step.chunks) == 1:
                return IterationResult({}, {step.chunks[0].query_id: failure_of(error)})
        result = IterationResult({}, {})
        for chunk in step.chunks:
            try:
                alone = self.device.run(step.subnet_id, [chunk])
            except Exception as error:  # the stream whose input fails ends, the others go on
                result.failed[chunk.query_id] = failure_of(error)
            else:
                result.tokens.update(alone.tokens)
                result.failed.update(alone.failed)
        return result


def failure_of(error: Exception) -> str:
    """Return the reason of a stream that fails with an error."""
    if isinstance(error, WorkerFailedError):  # no fault of the input
        return "device_failed"
    return f"execution failed: {type(error).__name__}: {error}"


def _is_last(stream: OpenStream, token: int) -> bool:
    request = stream.request
    return token in request.end_tokens or (request.ends is not None and request.ends(token))

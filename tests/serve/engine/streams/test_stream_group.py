"""Streams that are answered together: what has ended is freed at once."""

from __future__ import annotations

import gc
import weakref

import pytest

from serve.engine.streams.open_stream import OpenStream, StreamOutput, StreamRequest
from serve.engine.streams.stream_group import StreamGroup
from slackfit.streams.stream_query import StreamOutcome

REQUEST = StreamRequest(
    prompt=(1, 2), max_tokens=2, arrival_s=0.0, first_deadline_s=1.0, period_s=0.1
)


@pytest.mark.parametrize("ended_before", [False, True])
def test_a_group_whose_streams_have_ended_is_in_no_cycle(ended_before: bool) -> None:
    stream = OpenStream(REQUEST.query(1), REQUEST, lambda stream, reason: None)
    outcome = StreamOutcome(1, "dropped", "expired", stream.query, None, 1.0)
    stream.put(StreamOutput(7, 0.5, "small", 0.9))
    if ended_before:
        stream.end(outcome)
    group = StreamGroup([stream])
    if not ended_before:
        stream.end(outcome)
    freed = weakref.ref(stream)
    gc.disable()
    try:
        del stream, group
        assert freed() is None
    finally:
        gc.enable()

"""Asking again within the slack: what is retried, with how much time, and how often at most."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from serve.retry import Retrying
from traces.target import ReplayReply, ReplayRequest

REQUEST = ReplayRequest(query_id=1, payload=np.zeros((1, 2, 2), np.uint8), slo_s=1.0, timeout_s=2.0)
OK = ReplayReply(status="ok")
GONE = ReplayReply(status="failed", reason="connection: ReadError", can_retry=True)


class Scripted:
    """Answers in turn, each after `latency_s` of virtual time; the last answer stays."""

    def __init__(self, *replies: ReplayReply, latency_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.asked: list[ReplayRequest] = []
        self._replies = list(replies)
        self._latency_s = latency_s

    async def infer(self, request: ReplayRequest) -> ReplayReply:
        self.asked.append(request)
        self.now_s += self._latency_s
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    async def close(self) -> None: ...

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


def ask(target: Scripted, count: int = 1) -> tuple[Retrying, ReplayReply]:
    retrying = Retrying(target, clock=lambda: target.now_s, sleep=target.sleep)

    async def main() -> ReplayReply:
        return [await retrying.infer(REQUEST) for _ in range(count)][-1]

    return retrying, asyncio.run(main())


@pytest.mark.parametrize(
    "lost",
    [
        GONE,
        ReplayReply(status="rejected", reason="draining"),
        ReplayReply(status="failed", reason="device_failed"),
    ],
)
def test_lost_query_is_asked_again_with_the_slack_that_is_left(lost):
    target = Scripted(lost, OK, latency_s=0.2)
    retrying, reply = ask(target)
    assert (reply.status, retrying.num_retries) == ("ok", 1)
    assert target.asked[1].slo_s == pytest.approx(0.79)
    assert target.asked[1].timeout_s == pytest.approx(1.79)


@pytest.mark.parametrize("reason", ["queue_full", "infeasible", "expired", "bad_tensor"])
def test_refusal_for_load_or_fault_of_the_client_is_not_retried(reason):
    target = Scripted(ReplayReply(status="rejected", reason=reason), OK)
    assert ask(target)[1].reason == reason
    assert len(target.asked) == 1


def test_retries_end_with_the_slack():
    target = Scripted(GONE, latency_s=0.3)
    retrying, reply = ask(target)
    assert reply == GONE
    assert retrying.num_retries == 3
    assert target.now_s < 1.0 + 0.3, "the last one started within the slack"


def test_server_that_is_down_does_not_get_many_times_the_load():
    target = Scripted(GONE)
    retrying, _ = ask(target, count=1000)
    assert retrying.num_retries == 100, "the bucket is empty and nothing refills it"

"""Bytes of requests in flight: a bound for all of them, and the slowest makes room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve.doors import body_budget
from serve.doors.body_budget import BodyBudget
from serve.models.limits import RefusedError

pytestmark = pytest.mark.alone


def run(use: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(use(), 20))  # type: ignore[arg-type]


async def arrive(budget: BodyBudget, *sizes: int, pause_s: float = 0.0, hold_s: float = 0.0) -> str:
    """Let a request of these pieces arrive, and hold it; return how it ended."""
    try:
        async with budget.body() as body:
            async with body.arriving():
                for size in sizes:
                    await body.take(size)
                    await asyncio.sleep(pause_s)
            await asyncio.sleep(hold_s)
            return "ok"
    except RefusedError as error:
        return error.reason


def test_what_fits_is_taken_and_given_back():
    async def use() -> tuple[list[str], int]:
        budget = BodyBudget(100)
        ends = [await arrive(budget, 60, 40) for _ in range(3)]
        return ends, budget.used_bytes

    assert run(use) == (["ok"] * 3, 0)


def test_more_than_there_is_room_for_waits_until_it_fits():
    async def use() -> tuple[list[str], int]:
        budget = BodyBudget(100)
        ends = await asyncio.gather(*(arrive(budget, 60, pause_s=0.01) for _ in range(20)))
        return ends, budget.used_bytes

    assert run(use) == (["ok"] * 20, 0)


def test_the_slowest_arrival_makes_room():
    async def use() -> list[str]:
        budget = BodyBudget(100)
        slow = [asyncio.ensure_future(arrive(budget, 50, pause_s=10)) for _ in range(2)]
        await asyncio.sleep(0)
        quick = [await arrive(budget, 40, 10) for _ in range(5)]
        left = str(budget.used_bytes)
        slow[1].cancel()
        return [await slow[0], *quick, left]

    assert run(use) == ["queue_full", *["ok"] * 5, "50"]


def test_one_that_needs_more_itself_and_is_the_slowest_goes():
    async def use() -> list[str]:
        budget = BodyBudget(100)
        asked = [
            asyncio.ensure_future(arrive(budget, 60, 60, pause_s=0.15)),
            asyncio.ensure_future(arrive(budget, 30, hold_s=0.5)),
        ]
        return await asyncio.gather(*asked)

    assert run(use) == ["queue_full", "ok"]


def test_where_whole_requests_hold_everything_a_newcomer_is_refused():
    async def use() -> tuple[str, float]:
        budget = BodyBudget(100)
        held = asyncio.ensure_future(arrive(budget, 100, hold_s=5))
        await asyncio.sleep(0.01)
        start_s = asyncio.get_running_loop().time()
        end = await arrive(budget, 1)
        held.cancel()
        return end, asyncio.get_running_loop().time() - start_s

    end, took_s = run(use)
    assert end == "queue_full"
    assert took_s < 0.1 + body_budget.GRACE_S


def test_where_whole_requests_are_answered_a_newcomer_waits_for_it():
    async def use() -> list[str]:
        budget = BodyBudget(100)
        return await asyncio.gather(*(arrive(budget, 100, hold_s=0.03) for _ in range(3)))

    assert run(use) == ["ok"] * 3


def test_a_body_has_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body_budget, "BODY_TIMEOUT_S", 0.05)

    async def use() -> tuple[str, int]:
        budget = BodyBudget(100)
        return await arrive(budget, 10, pause_s=5), budget.used_bytes

    assert run(use) == ("too_slow", 0)


def test_no_bytes_are_lost_whatever_ends_how(rng, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body_budget, "GRACE_S", 0.02)

    async def use() -> tuple[set[str], int]:
        budget = BodyBudget(1000)
        asked = []
        for _ in range(300):
            sizes = rng.integers(1, 400, size=rng.integers(1, 4)).tolist()
            pause_s, hold_s = rng.choice([0.0, 0.002, 0.3], 2, p=[0.5, 0.4, 0.1])
            asked.append(
                asyncio.ensure_future(arrive(budget, *sizes, pause_s=pause_s, hold_s=hold_s))
            )
            if rng.random() < 0.2:
                asyncio.get_running_loop().call_later(0.01, asked[-1].cancel)
            await asyncio.sleep(0.001)
            assert budget.used_bytes <= 1000
        ends = await asyncio.gather(*asked, return_exceptions=True)
        kinds = {end for end in ends if isinstance(end, str)}
        return kinds, budget.used_bytes

    kinds, left = run(use)
    assert left == 0
    assert "ok" in kinds


def test_one_whose_time_is_over_when_it_is_to_make_room_just_ends(monkeypatch: pytest.MonkeyPatch):
    """In a loop that stood still both timers came due together, and the second one failed."""
    monkeypatch.setattr(body_budget, "GRACE_S", 0.06)
    faults: list[Any] = []

    async def use() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        budget = BodyBudget(100)
        ends: list[asyncio.Task[str]] = []
        for size, timeout_s in ((100, 0.05), (10, 20.0)):
            monkeypatch.setattr(body_budget, "BODY_TIMEOUT_S", timeout_s)
            ends.append(asyncio.ensure_future(arrive(budget, size, pause_s=5.0 * (size > 10))))
            await asyncio.sleep(0)
        time.sleep(0.1)
        return await asyncio.gather(*ends)

    assert run(use)[1] == "ok"
    assert not faults

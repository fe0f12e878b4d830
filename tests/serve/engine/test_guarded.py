"""Whatever watches the engine may fail: nobody's answer, batch or thread depends on it."""

from __future__ import annotations

import asyncio

import pytest

from serve.engine.guarded import Guarded
from serve.engine.job import Ledger
from serve.observe.demand import Demand
from serve.observe.metrics import ModelMetrics
from serve.observe.statistics import Statistics

URL = "/v2/models/tiny/infer"
TENSOR = {"name": "input", "datatype": "UINT8", "shape": [4, 1, 2, 2], "data": [0] * 16}
BODY = {"inputs": [TENSOR], "parameters": {"timeout": 5_000_000}}


class Broken:
    """An observer that raises, and says whether it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1
        raise RuntimeError("an observer broke")


@pytest.mark.parametrize("owner", [ModelMetrics, Statistics, Demand])
def test_each_observer_of_replies_may_fail(serve_timed, monkeypatch, owner):
    """One that raised on the first of four samples had left the request without an answer."""
    broken = Broken()
    monkeypatch.setattr(owner, "observe", broken)

    async def main() -> tuple[int, str]:
        async with serve_timed() as client, asyncio.timeout(10):
            answer = await client.post(URL, json=BODY)
            stats = await client.get("/v2/models/tiny/stats")
            return answer.status_code, stats.text

    status, stats = asyncio.run(main())
    assert status == 200
    assert broken.calls == 1, "once for a query, whatever it holds"
    others_counted = '"inference_count": 4' in stats.replace(":4", ": 4")
    assert others_counted == (owner is not Statistics)


def test_the_observer_of_decisions_does_not_end_the_device_thread(serve_timed, monkeypatch):
    broken = Broken()
    monkeypatch.setattr(ModelMetrics, "decided", broken)

    async def main() -> list[int]:
        async with serve_timed() as client, asyncio.timeout(10):
            codes = [(await client.post(URL, json=BODY)).status_code for _ in range(3)]
            return [*codes, (await client.get("/v2/health/live")).status_code]

    assert asyncio.run(main()) == [200, 200, 200, 200]
    assert broken.calls >= 3


def test_jobs_are_answered_before_anybody_looks(make_bench, profile):
    bench = make_bench(profile)
    done: list = []
    seen: list[int] = []
    bench.engine._ledger = Ledger(lambda _: seen.append(len(done)))
    done = bench.submit(slo_s=1.0, count=2)
    bench.engine.step()
    assert seen == [1]


def test_a_failure_is_logged_with_its_traceback_and_then_tenfold(caplog):
    guarded = Guarded(Broken())
    for _ in range(105):
        guarded("anything")
    assert guarded.num_failures == 105
    assert caplog.text.count("Traceback") == 3
    assert [r.getMessage() for r in caplog.records] == [
        f"observer Broken failed ({count} times so far)" for count in (1, 10, 100)
    ]

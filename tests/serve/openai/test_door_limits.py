"""Limits hold at the OpenAI door as at the HTTP door behind it: the same server, asked at both."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.doors.rest_infer import RestInference

TENSOR = {"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0] * 4}
INFER = ("/v2/models/tiny/infer", {"inputs": [TENSOR]})
WRITE = ("/v1/completions", {"model": "lm", "prompt": "x", "max_tokens": 2, "temperature": 0})
BOTH = pytest.mark.parametrize("asked", [INFER, WRITE], ids=["http", "openai"])
SECRET, GOLD = "s" * 16, "g" * 16


@pytest.fixture
def serve_both(
    serving_streams: Callable[..., Any], tmp_path: Path, profile: Any
) -> Callable[..., contextlib.AbstractAsyncContextManager[Any]]:
    """`serve_both(**settings)` is a context with a server of a decoder and of images."""
    from slackfit.profile import LatencyProfile
    from slackfit.streams.iteration_cost import IterationCosts

    example = LatencyProfile.load("profiles/smollm2_135m_example.json")
    IterationCosts.of(example).scaled(0.02).in_profile(example).save(tmp_path / "lm.json")
    profile.save(tmp_path / "tiny.json")

    @contextlib.asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[Any]:
        models = {
            "lm": {"profile": str(tmp_path / "lm.json")},
            "tiny": {
                "profile": str(tmp_path / "tiny.json"),
                "input_shape": [1, 2, 2],
                "slo_ms": 20_000,  # nothing is late on a busy machine
            },
        }
        async with serving_streams(device="timed", models=models, **settings) as streams:
            yield streams

    return start


def told(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, reason, and whether the connection is closed."""
    fields = answer.json()
    error = fields["error"] if isinstance(fields.get("error"), dict) else fields
    return answer.status_code, error["reason"], answer.headers.get("connection", "")


@BOTH
def test_a_body_is_bounded_and_unpacked(serve_both: Callable[..., Any], asked: Any) -> None:
    path, fields = asked

    async def main() -> None:
        async with serve_both(max_body_bytes=2000) as streams:
            post = streams.client.post
            assert (await post(path, json=fields)).status_code == 200
            large = json.dumps({**fields, "x": "y" * 3000}).encode()
            assert told(await post(path, content=large)) == (413, "too_large", "close")
            packed = await post(path, json=fields, headers={"content-encoding": "gzip"})
            assert told(packed)[:2] == (415, "unsupported_encoding")
            assert packed.headers["accept-encoding"] == "identity"

    asyncio.run(main())


@BOTH
def test_a_request_holds_its_bytes_until_it_is_answered(
    serve_both: Callable[..., Any], asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fields = asked

    async def main() -> None:
        async with serve_both(max_body_bytes=4000, max_inflight_bytes=6000) as streams:
            body = json.dumps({**fields, "x": "y" * 3000}).encode()
            budget, most = streams.server.budget, 0

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, budget.used_bytes)
                    await asyncio.sleep(0)

            watching = asyncio.ensure_future(watch())
            answers = await asyncio.gather(
                *(streams.client.post(path, content=body) for _ in range(4))
            )
            watching.cancel()
            assert {a.status_code for a in answers} <= {200, 429}
            assert len(body) <= most <= 6000
            assert budget.used_bytes == 0

    asyncio.run(main())


def test_a_stream_that_waits_holds_its_bytes(serve_both: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_both() as streams:
            path, fields = WRITE
            body = {**fields, "stream": True, "max_tokens": 5000}
            async with streams.client.stream("POST", path, json=body) as response:
                await anext(response.aiter_lines())
                assert streams.server.budget.used_bytes > 50
            async with asyncio.timeout(3.0):
                while streams.server.budget.used_bytes:
                    await asyncio.sleep(0.005)

    asyncio.run(main())


@BOTH
def test_tokens_scopes_and_tenants(
    serve_both: Callable[..., Any], asked: Any, tmp_path: Path
) -> None:
    path, fields = asked
    tokens = tmp_path / "tokens"
    tokens.write_text(f"seer metrics {SECRET}\na infer {GOLD} gold\n")
    tenants = {"gold": {"highest_priority": 2, "rate_limit_qps": 0.01, "rate_limit_burst": 4}}

    async def main() -> None:
        async with serve_both(tokens_file=str(tokens), tenants=tenants) as streams:
            post = streams.client.post
            unknown = await post(path, json=fields)
            assert told(unknown) == (401, "unauthenticated", "close")
            assert unknown.headers["www-authenticate"] == "Bearer"
            seer = {"authorization": f"Bearer {SECRET}"}
            assert told(await post(path, json=fields, headers=seer))[:2] == (403, "forbidden")
            gold = {"authorization": f"Bearer {GOLD}"}
            wish = {"priority": 1}
            wished = fields | (wish if path == WRITE[0] else {"parameters": wish})
            assert told(await post(path, json=wished, headers=gold))[:2] == (403, "forbidden")
            codes = [(await post(path, json=fields, headers=gold)).status_code for _ in range(4)]
            assert codes == [200, 200, 200, 429]  # what was forbidden has been counted
            text = streams.server.metrics.render().decode()
            assert 'reason="rate_limited",tenant="gold"' in text

    asyncio.run(main())


def test_each_prompt_of_a_list_is_charged(serve_both: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_both(rate_limit_qps=0.01, rate_limit_burst=3) as streams:
            path, fields = WRITE
            several = {**fields, "prompt": ["a", "b", "c"]}
            assert (await streams.client.post(path, json=several)).status_code == 200
            refused = await streams.client.post(path, json=fields)
            assert told(refused)[:2] == (429, "rate_limited")
            assert int(refused.headers["retry-after"]) >= 1

    asyncio.run(main())


@BOTH
def test_who_asks_through_a_proxy_is_whom_it_names(
    serve_both: Callable[..., Any], asked: Any
) -> None:
    path, fields = asked
    settings = {"rate_limit_qps": 0.01, "rate_limit_burst": 1}

    async def main() -> list[int]:
        async with serve_both(trusted_proxies=["127.0.0.0/8"], **settings) as streams:
            codes = []
            for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2"):
                headers = {"x-forwarded-for": address}
                answer = await streams.client.post(path, json=fields, headers=headers)
                codes.append(answer.status_code)
            return codes

    assert asyncio.run(main()) == [200, 429, 200]


@BOTH
def test_a_server_that_drains_sends_its_clients_away(
    serve_both: Callable[..., Any], asked: Any
) -> None:
    path, fields = asked

    async def main() -> None:
        async with serve_both() as streams:
            await streams.server.drain()
            answer = await streams.client.post(path, json=fields)
            assert told(answer) == (503, "draining", "close")

    asyncio.run(main())


def test_images_beside_a_decoder_go_the_short_way(
    serve_both: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    at_once = RestInference.answer_at_once

    def noting(self: RestInference, *args: Any) -> None:
        taken.append(args[3])
        at_once(self, *args)

    monkeypatch.setattr(RestInference, "answer_at_once", noting)

    async def main() -> None:
        async with serve_both() as streams:
            path, fields = INFER
            assert (await streams.client.post(path, json=fields)).status_code == 200
            path, fields = WRITE
            assert (await streams.client.post(path, json=fields)).status_code == 200

    asyncio.run(main())
    assert taken == ["tiny"]


def test_connections_that_stream_are_counted(serve_both: Callable[..., Any]) -> None:
    """Every one that may be held is being answered: the newcomer is told so."""

    async def main() -> None:
        async with serve_both(max_connections=1) as streams:
            path, fields = WRITE
            body = {**fields, "stream": True, "max_tokens": 5000}
            async with streams.client.stream("POST", path, json=body) as response:
                await anext(response.aiter_lines())
                async with httpx.AsyncClient(base_url=streams.url) as other:
                    answer = await other.post(path, json=fields)
                    assert told(answer)[:2] == (503, "too_many_connections")

    asyncio.run(main())

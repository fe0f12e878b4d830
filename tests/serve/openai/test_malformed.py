"""Malformed requests: never a 500, never a dead engine, whatever is bent in a good one."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"model": "lm", "prompt": "Hi", "max_tokens": 2, "stop": ["a"]}),
    ("/v1/completions", {"model": "lm", "prompt": [1, 2, 3], "max_tokens": 2, "logprobs": 1,
                         "logit_bias": {"5": 1.5}, "stop_token_ids": [4], "seed": 3}),
    ("/v1/completions", {"model": "lm", "prompt": "Hi", "max_tokens": 2, "stream": True,
                         "stream_options": {"include_usage": True}, "top_p": 0.5, "top_k": 3}),
    ("/v1/chat/completions", {"model": "lm", "messages": [{"role": "user", "content": "Hi"}],
                              "max_completion_tokens": 2, "slo": {"ttft_ms": 900},
                              "presence_penalty": 1, "min_quality": 0.1, "priority": 2}),
    ("/v1/chat/completions", {"model": "lm", "max_tokens": 2, "temperature": 0.7, "min_p": 0.1,
                              "messages": [{"role": "user", "content": [
                                  {"type": "text", "text": "Hi"}]}], "repetition_penalty": 1.1}),
    ("/tokenize", {"model": "lm", "prompt": "Hi"}),
    ("/detokenize", {"model": "lm", "tokens": [1, 2]}),
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 1.5, -0.0, 1e308, float("inf"),
    float("-inf"), float("nan"), "", "x", "\x00", "\ud800", "a" * 3000, [], [[]], [None], [1.5],
    [[1]], ["a", "b"], {}, {"a": 1}, [{"role": "user"}], {"5": "x"}, {"-1": 1}, [True], [2**40],
]  # fmt: skip
HEADERS = ["x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-ms", "x-request-timeout-seconds",
           "x-stainless-read-timeout", "content-encoding", "authorization"]  # fmt: skip
HEADER_VALUES = ["", "0", "-1", "nan", "inf", "1e9", "1,2", "x", "9" * 400, "0.0000001"]
FINE = (200, 400, 404, 405, 413, 415, 504)


def bent(rng: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A good request with something wrong: a value, a field, the text, a header."""
    path, fields = rng.choice(GOOD)
    fields = json.loads(json.dumps(fields))
    for _ in range(rng.randrange(3)):
        name = rng.choice([*fields, "n", "best_of", "tools", "response_format", "min_tokens"])
        holder = fields
        if isinstance(fields.get(name), dict) and rng.random() < 0.5:
            holder = fields[name]
            name = rng.choice([*holder, "other"])
        holder[name] = copy.deepcopy(rng.choice(ODD))  # the next round may write into it
    body = json.dumps(fields).encode()
    kind = rng.randrange(5)
    if kind == 0:
        at = rng.randrange(len(body))
        body = body[:at] + bytes([rng.randrange(256)]) + body[at + rng.randrange(2) :]
    elif kind == 1:
        body = body[: rng.randrange(len(body))]
    headers = {}
    if rng.random() < 0.3:
        headers[rng.choice(HEADERS)] = rng.choice(HEADER_VALUES)
    return path, body, headers


async def ask_all(streams: Any, count: int, seed: int) -> Counter[int]:
    rng, statuses = random.Random(seed), Counter[int]()
    waiting = asyncio.Semaphore(16)

    async def ask(path: str, body: bytes, headers: dict[str, str]) -> None:
        async with waiting:
            response = await streams.client.post(path, content=body, headers=headers)
        statuses[response.status_code] += 1
        assert response.status_code in FINE, (path, body, headers, response.text)
        if response.status_code != 200:
            assert response.json()["error"]["message"], (path, body)

    await asyncio.gather(*(ask(*bent(rng)) for _ in range(count)))
    return statuses


@pytest.mark.parametrize(
    ("count", "seed"), [(200, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)]
)
def test_whatever_is_bent_is_answered(
    serve_streams: Callable[..., Any], count: int, seed: int
) -> None:
    async def main() -> None:
        async with serve_streams(factor=0.0005, max_body_bytes=65536) as streams:
            statuses = await ask_all(streams, count, seed)
            assert statuses[400] > count // 5, statuses
            assert statuses[200] > count // 20, statuses
            alive = await streams.complete("Hi", max_tokens=3)
            assert alive.json()["usage"]["completion_tokens"] == 3
            engine = streams.decoder.engine
            assert engine.status().ended.get("failed", 0) == 0
            engine._scheduler.kv.check_integrity()

    asyncio.run(main())

"""A request with several prompts: a stream for each, choices by index, one usage, one fate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

PROMPTS = ["Hello", list(b"Hi there"), "x"]


def test_each_prompt_has_its_choice_and_usage_is_the_sum(
    serve_streams: Callable[..., Any],
) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            alone = [(await streams.complete(p, max_tokens=6)).json() for p in PROMPTS]
            answer = (await streams.complete(PROMPTS, max_tokens=6)).json()
            assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
            texts = [choice["text"] for choice in answer["choices"]]
            assert texts == [each["choices"][0]["text"] for each in alone]
            usage = answer["usage"]
            for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                assert usage[name] == sum(each["usage"][name] for each in alone)
            served = usage["supernet"]
            assert [each["status"] for each in served["choices"]] == ["on_time"] * 3
            assert 0 < served["quality"] <= 1
            events = await streams.events(
                "/v1/completions",
                prompt=PROMPTS,
                max_tokens=6,
                stream_options={"include_usage": True},
            )
            written = ["", "", ""]
            reasons: list[tuple[int, str]] = []
            for event in events[:-2]:
                (choice,) = event["choices"]
                written[choice["index"]] += choice["text"]
                if choice["finish_reason"]:
                    reasons.append((choice["index"], choice["finish_reason"]))
            assert written == texts
            assert sorted(reasons) == [(i, "length") for i in range(3)]
            assert events[-2]["usage"]["completion_tokens"] == 18
            assert events[-1] == "[DONE]"
            assert streams.decoder.engine.status().ended == {"on_time": 9}

    asyncio.run(main())


def test_scores_and_offsets_are_each_texts_own(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            options = {"max_tokens": 4, "logprobs": 1}
            alone = (await streams.complete("Hi", **options)).json()["choices"][0]
            found = [""] * 2
            offsets: list[list[int]] = [[], []]
            fields = {"prompt": ["Hi", "Ho"], **options}
            for event in (await streams.events("/v1/completions", **fields))[:-1]:
                choice = event["choices"][0]
                if choice["logprobs"]:
                    offsets[choice["index"]] += choice["logprobs"]["text_offset"]
                    found[choice["index"]] += "".join(choice["logprobs"]["tokens"])
            assert offsets == [alone["logprobs"]["text_offset"]] * 2
            assert found[0] == alone["text"]

    asyncio.run(main())


def test_one_that_is_refused_costs_the_others(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams(kv_tokens=640, prefix_cache=False) as streams:
            refused = await streams.complete([[1] * 20, [1] * 700], max_tokens=5)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "context_length_exceeded"
            async with asyncio.timeout(3.0):
                while streams.device.held_tokens:
                    await asyncio.sleep(0.001)
            assert streams.decoder.engine.status().ended == {"dropped": 1}

    asyncio.run(main())


def test_an_error_of_one_ends_the_answer(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams(prefix_cache=False) as streams:
            run = type(streams.device).run

            def run_or_fail(device: Any, subnet_id: str, chunks: Any) -> Any:
                if any(len(device._sequences.get(c.sequence, ())) >= 30 for c in chunks):
                    long = [c for c in chunks if len(device._sequences.get(c.sequence, ())) >= 30]
                    raise RuntimeError(f"{len(long)} too long")
                return run(device, subnet_id, chunks)

            type(streams.device).run = run_or_fail
            try:
                events = await streams.events(
                    "/v1/completions", prompt=[[5] * 20, [6] * 2], max_tokens=5000
                )
            finally:
                type(streams.device).run = run
            assert events[-2]["error"]["code"] == "execution_failed"
            assert events[-1] == "[DONE]"
            async with asyncio.timeout(3.0):
                while streams.device.held_tokens:
                    await asyncio.sleep(0.001)
            assert streams.decoder.engine.status().ended == {"failed": 1, "dropped": 1}

    asyncio.run(main())


def test_others_have_their_turn_between_two_prompts(
    serve_streams: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may be as long as is encoded in the loop at once: all of them would be a second."""

    async def main() -> None:
        async with serve_streams() as streams:
            turns, seen = [0], []

            async def turn() -> None:
                while True:
                    turns[0] += 1
                    await asyncio.sleep(0)

            def encode(text: str) -> list[int]:
                seen.append(turns[0])
                return list(text.encode())

            monkeypatch.setattr(streams.decoder.coder, "encode", encode)
            others = asyncio.ensure_future(turn())
            answer = await streams.complete(["a", "b", "c", "d"], max_tokens=1)
            others.cancel()
            assert answer.status_code == 200, answer.text
            assert len(set(seen)) == 4

    asyncio.run(main())

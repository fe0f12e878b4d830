"""The OpenAI door on a decoder that sleeps: answers, streams, refusals, ends."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from subnetact.timed_decoder import TimedDecoder


def said(ids: list[int], outputs: int, decoder: TimedDecoder) -> list[int]:
    """What the timed decoder says behind `ids`."""
    ids = list(ids)
    for _ in range(outputs):
        ids.append(decoder.next_token(ids))
    return ids[-outputs:]


def text_of(events: list[Any]) -> str:
    """The text of a completion's events."""
    return "".join(c["text"] for e in events[:-1] for c in e["choices"])


def test_a_text_is_continued_whole(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            response = await streams.complete("Hello", max_tokens=8)
            answer = response.json()
            assert response.status_code == 200, answer
            wanted = bytes(said(list(b"Hello"), 8, streams.device)).decode("latin-1")
            (choice,) = answer["choices"]
            assert (choice["text"], choice["finish_reason"]) == (wanted, "length")
            assert (answer["object"], answer["model"]) == ("text_completion", "lm")
            usage = answer["usage"]
            counts = [usage[f"{n}_tokens"] for n in ("prompt", "completion", "total")]
            assert counts == [5, 8, 13]
            served = usage["supernet"]
            assert sum(count for _, count in served["widths"]) == 8
            assert (served["status"], served["fluidity"]) == ("on_time", 1.0)
            by_ids = await streams.complete(list(b"Hello"), max_tokens=8)
            assert by_ids.json()["choices"][0]["text"] == wanted
            assert response.headers["x-request-id"]

    asyncio.run(main())


def test_a_stream_says_the_same_event_by_event(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            whole = (await streams.complete("Hi", max_tokens=6)).json()
            events = await streams.events("/v1/completions", prompt="Hi", max_tokens=6)
            assert events[-1] == "[DONE]"
            assert text_of(events) == whole["choices"][0]["text"]
            assert [e["choices"][0]["finish_reason"] for e in events[:-1]][-1] == "length"
            assert len({(e["id"], e["created"], e["model"]) for e in events[:-1]}) == 1
            assert all("usage" not in event for event in events[:-1])

    asyncio.run(main())


def test_a_chat_says_who_speaks_and_then_its_usage(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            *events, done = await streams.events(
                "/v1/chat/completions",
                messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
                max_completion_tokens=3,
                stream_options={"include_usage": True},
            )
            assert done == "[DONE]"
            first, *middle, end, usage = events
            assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert {e["object"] for e in events} == {"chat.completion.chunk"}
            assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == (
                {},
                "length",
            )
            assert usage["choices"] == []
            assert usage["usage"]["completion_tokens"] == 3
            assert all(e["usage"] is None for e in (first, *middle, end))
            prompt = list(b"user: Hi\nassistant: ")
            wanted = bytes(said(prompt, 3, streams.device)).decode("latin-1")
            assert "".join(e["choices"][0]["delta"]["content"] for e in middle) == wanted

    asyncio.run(main())


def test_a_stop_string_across_tokens_ends_a_text(serve_streams: Callable[..., Any]) -> None:
    """Its tokens are the last: nothing is computed behind it, nothing of it is shown."""

    async def main() -> None:
        async with serve_streams() as streams:
            whole = (await streams.complete("Hi", max_tokens=12)).json()["choices"][0]["text"]
            stop = whole[5:8]
            begin = whole[: whole.index(stop)]
            answer = (await streams.complete("Hi", max_tokens=12, stop=[stop])).json()
            assert answer["choices"][0] == {
                "index": 0, "text": begin, "logprobs": None, "finish_reason": "stop",
            }  # fmt: skip
            assert answer["usage"]["completion_tokens"] == len(begin) + len(stop)
            events = await streams.events("/v1/completions", prompt="Hi", max_tokens=12, stop=stop)
            assert text_of(events) == begin
            free = (await streams.complete("Hi", max_tokens=12, stop=[stop], min_tokens=9)).json()
            assert free["choices"][0]["text"].startswith(whole[:9])

    asyncio.run(main())


def test_end_tokens_end_a_text_unless_it_shall_not(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            tokens = said(list(b"Hi"), 6, streams.device)
            fields = {"max_tokens": 6, "stop_token_ids": [tokens[3]]}
            answer = (await streams.complete("Hi", **fields)).json()
            text = bytes(tokens[: tokens.index(tokens[3])]).decode("latin-1")
            assert answer["choices"][0]["text"] == text
            assert answer["choices"][0]["finish_reason"] == "stop"
            kept = (await streams.complete("Hi", min_tokens=6, **fields)).json()
            assert kept["usage"]["completion_tokens"] == 6
            assert kept["choices"][0]["finish_reason"] == "length"

    asyncio.run(main())


def test_a_seed_gives_the_same_text_whatever_the_company(
    serve_streams: Callable[..., Any],
) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            fields = {"max_tokens": 10, "temperature": 1.0}

            async def text(**more: Any) -> str:
                answer = await streams.complete("Hi", **fields, **more)
                return answer.json()["choices"][0]["text"]

            alone = await text(seed=7)
            together = await asyncio.gather(*(text(seed=7 + i % 3) for i in range(9)))
            assert together[::3] == [alone] * 3
            assert len(set(together)) == 3
            assert await text() != await text()

    asyncio.run(main())


def test_logprobs_stand_beside_each_token(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            answer = (await streams.complete("Hi", max_tokens=3, logprobs=2)).json()
            scores = answer["choices"][0]["logprobs"]
            assert "".join(scores["tokens"]) == answer["choices"][0]["text"]
            assert scores["text_offset"] == [0, 1, 2]
            assert all(len(top) == 2 for top in scores["top_logprobs"])
            assert [max(top.values()) for top in scores["top_logprobs"]] == scores["token_logprobs"]
            events = await streams.events(
                "/v1/chat/completions",
                messages=[{"role": "user", "content": "Hi"}],
                max_tokens=2,
                logprobs=True,
                top_logprobs=1,
            )
            entries = [
                entry
                for e in events[:-1]
                if (of := e["choices"][0]["logprobs"])
                for entry in of["content"]
            ]
            assert [len(entry["top_logprobs"]) for entry in entries] == [1, 1]

    asyncio.run(main())


CHAT = [{"role": "user", "content": "x"}]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("completions", {"prompt": "x", "n": 2}, "n"),
    ("completions", {"prompt": "x", "best_of": 3}, "best_of"),
    ("completions", {"prompt": "x", "echo": True}, "echo"),
    ("completions", {"prompt": ""}, "prompt"),
    ("completions", {"prompt": []}, "prompt"),
    ("completions", {"prompt": ["a", ""]}, "prompt"),
    ("completions", {"prompt": ["a", [300]]}, "prompt"),
    ("completions", {"prompt": ["a"] * 65}, "prompt"),
    ("completions", {"prompt": [1, 256]}, "prompt"),
    ("completions", {"prompt": [True]}, "prompt"),
    ("completions", {"prompt": {"a": 1}}, "prompt"),
    ("completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ("completions", {"prompt": "x", "max_tokens": "5"}, "max_tokens"),
    ("completions", {"prompt": "x", "min_tokens": 99}, "min_tokens"),
    ("completions", {"prompt": "x", "temperature": -1}, "temperature"),
    ("completions", {"prompt": "x", "temperature": True}, "temperature"),
    ("completions", {"prompt": "x", "top_p": 0}, "top_p"),
    ("completions", {"prompt": "x", "stop": ["a"] * 17}, "stop"),
    ("completions", {"prompt": "x", "stop": [""]}, "stop"),
    ("completions", {"prompt": "x", "logit_bias": {"999": 1}}, "logit_bias"),
    ("completions", {"prompt": "x", "logprobs": 21}, "logprobs"),
    ("completions", {"prompt": "x", "stream": 1}, "stream"),
    ("completions", {"prompt": "x", "slo": {"ttft_ms": -1}}, "slo.ttft_ms"),
    ("completions", {"prompt": "x", "slo": 5}, "slo"),
    ("completions", {"prompt": "x", "min_quality": 2}, "min_quality"),
    ("completions", {"prompt": "x", "priority": 11}, "priority"),
    ("completions", {"prompt": "x", "model": 5}, "model"),
    ("completions", {"prompt": "x", "use_beam_search": True}, "use_beam_search"),
    ("completions", {"prompt": "x", "include_stop_str_in_output": True},
     "include_stop_str_in_output"),
    ("completions", {"prompt": "x", "allowed_token_ids": [5]}, "allowed_token_ids"),
    ("completions", {"prompt": "x", "bad_words": ["a"]}, "bad_words"),
    ("completions", {"prompt": "x", "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ("completions", {"prompt": "x", "prompt_logprobs": 0}, "prompt_logprobs"),
    ("completions", {"prompt": "x", "truncate_prompt_tokens": -1}, "truncate_prompt_tokens"),
    ("completions", {"prompt": "x", "skip_special_tokens": False}, "skip_special_tokens"),
    ("completions", {"prompt": "x", "add_special_tokens": False}, "add_special_tokens"),
    ("completions", {"prompt": "x", "return_token_ids": True}, "return_token_ids"),
    ("chat/completions", {"messages": CHAT, "add_special_tokens": True}, "add_special_tokens"),
    ("chat/completions", {"messages": CHAT, "add_generation_prompt": False},
     "add_generation_prompt"),
    ("chat/completions", {"messages": CHAT, "continue_final_message": True},
     "continue_final_message"),
    ("chat/completions", {"messages": CHAT, "chat_template": "x"}, "chat_template"),
    ("chat/completions", {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}},
     "chat_template_kwargs"),
    ("chat/completions", {"messages": []}, "messages"),
    ("chat/completions", {"messages": "x"}, "messages"),
    ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("chat/completions", {"messages": [{"content": "x"}]}, "messages[0].role"),
    ("chat/completions", {"messages": CHAT, "tools": [{"type": "function"}]}, "tools"),
    ("chat/completions", {"messages": CHAT, "response_format": {"type": "json_object"}},
     "response_format"),
    ("chat/completions", {"messages": CHAT, "top_logprobs": 3}, "top_logprobs"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages[0].content[0]"),
]  # fmt: skip


def test_what_is_not_served_is_refused_by_its_field(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            for path, fields, param in BAD:
                body = {"model": "lm", **fields}
                response = await streams.client.post(f"/v1/{path}", json=body)
                error = response.json()["error"]
                assert response.status_code == 400, (fields, error)
                assert error["param"] == param, (fields, error)
                assert error["type"] == "invalid_request_error"
                assert param.split(".")[0].split("[")[0] in error["message"], error
                assert response.headers["x-should-retry"] == "false"
            text = streams.server.metrics.render().decode()
            assert 'door="openai",reason="bad_request"' in text

    asyncio.run(main())


def test_what_asks_for_nothing_else_is_served(serve_streams: Callable[..., Any]) -> None:
    """Clients send the defaults of other servers along."""

    async def main() -> None:
        async with serve_streams() as streams:
            answer = await streams.complete(
                "x", max_tokens=2, n=1, best_of=1, use_beam_search=False, prompt_logprobs=None,
                skip_special_tokens=True, add_special_tokens=True, bad_words=[], echo=False,
                include_stop_str_in_output=False, truncate_prompt_tokens=None, user="me",
            )  # fmt: skip
            assert answer.status_code == 200, answer.text
            chat = {"add_generation_prompt": True, "add_special_tokens": False}
            body = {"model": "lm", "messages": CHAT, "max_tokens": 2, "temperature": 0, **chat}
            body |= {"chat_template_kwargs": {}, "documents": None}
            answer = await streams.client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            asked = {"model": "lm", "prompt": "x", "add_special_tokens": False}
            refused = await streams.client.post("/tokenize", json=asked)
            assert (refused.status_code, refused.json()["error"]["param"]) == (
                400, "add_special_tokens"
            )  # fmt: skip

    asyncio.run(main())


def test_a_role_counts_as_text_before_it_is_encoded(
    serve_streams: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template writes any role out, however long: it would be encoded in the loop."""

    async def main() -> None:
        async with serve_streams(kv_tokens=640) as streams:
            monkeypatch.setattr(streams.decoder.coder, "encode_chat", None)
            longest = 64 * streams.decoder.longest_tokens
            messages = [{"role": "x" * (longest + 1), "content": "Hi"}]
            body = {"model": "lm", "messages": messages}
            response = await streams.client.post("/v1/chat/completions", json=body)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["code"] == "context_length_exceeded"

    asyncio.run(main())


def test_what_can_not_be_is_refused_with_its_status(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams(kv_tokens=640, max_body_bytes=8192) as streams:
            post, get = streams.client.post, streams.client.get

            async def told(response: httpx.Response) -> tuple[int, str]:
                return response.status_code, response.json()["error"]["code"]

            over = await streams.complete([1] * 700, max_tokens=5)
            assert await told(over) == (400, "context_length_exceeded")
            assert (
                "700 tokens and 5 tokens are asked for, allowed 640"
                in over.json()["error"]["message"]
            )
            long = await streams.complete([1] * 600, max_tokens=50)
            assert await told(long) == (400, "context_length_exceeded")
            other = await post("/v1/completions", json={"model": "gpt-4", "prompt": "x"})
            assert await told(other) == (404, "model_not_found")
            assert await told(await post("/v1/completions", content=b"{")) == (400, "bad_request")
            assert await told(await post("/v1/completions", content=b"[" * 8000)) == (
                400, "bad_request"
            )  # fmt: skip
            assert await told(await post("/v1/completions", content=b"x" * 9000)) == (
                413, "too_large"
            )  # fmt: skip
            assert await told(await get("/v1/completions")) == (405, "method_not_allowed")
            assert await told(await get("/v1/embeddings")) == (404, "unknown_path")
            late = await streams.client.post(
                "/v1/completions",
                json={"model": "lm", "prompt": "x"},
                headers={"x-slo-ttft-ms": "soon"},
            )
            assert await told(late) == (400, "bad_deadline")
            floor = await streams.complete("x", min_quality=0.99999)
            assert floor.status_code in (200, 400)
            elsewhere = await get("/v2/models/lm")
            assert elsewhere.status_code == 404
            assert "/v1/completions" in elsewhere.json()["error"]

    asyncio.run(main())


def test_a_client_that_goes_takes_its_stream_along(serve_streams: Callable[..., Any]) -> None:
    """Within an iteration its memory is free, and who is left notices nothing."""

    async def main() -> None:
        async with serve_streams(factor=0.2, prefix_cache=False) as streams:
            stays = asyncio.ensure_future(
                streams.events("/v1/completions", prompt=list(b"stay"), max_tokens=60)
            )
            body = {"model": "lm", "prompt": "go", "max_tokens": 5000, "stream": True}
            body["temperature"] = 0
            async with streams.client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.aiter_lines()
                await anext(lines)
                assert streams.decoder.engine.status().num_running == 2
            went = streams.device.num_iterations
            while streams.decoder.engine.status().num_running > 1:
                await asyncio.sleep(0.001)
            assert streams.device.num_iterations - went <= 3  # the wire, and the one that ran
            events = await stays
            assert events[-2]["choices"][0]["finish_reason"] == "length"
            ended = streams.decoder.engine.status().ended
            assert ended == {"dropped": 1, "on_time": 1}
            async with asyncio.timeout(2.0):
                while streams.device.held_tokens:
                    await asyncio.sleep(0.001)

    asyncio.run(main())


def test_a_time_limit_ends_a_stream_inside_of_it(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams(factor=0.2) as streams:
            events = await streams.events(
                "/v1/completions",
                headers={"x-request-timeout-seconds": "1"},
                prompt="x",
                max_tokens=5000,
            )
            assert events[-1] == "[DONE]"
            error = events[-2]["error"]
            assert (error["code"], error["type"]) == ("expired", "timeout_error")
            assert "of at most 5000 tokens had come" in error["message"]
            response = await streams.client.post(
                "/v1/completions",
                json={"model": "lm", "prompt": "x", "max_tokens": 5000, "temperature": 0},
                headers={"x-stainless-read-timeout": "0.2"},
            )
            assert (response.status_code, response.json()["error"]["code"]) == (504, "expired")

    asyncio.run(main())


def test_models_health_and_tokens(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            get, post = streams.client.get, streams.client.post
            listed = (await get("/v1/models")).json()
            assert [model["id"] for model in listed["data"]] == ["lm"]
            assert (await get("/v1/models/lm")).json() == listed["data"][0]
            assert (await get("/v1/models/other")).status_code == 404
            assert (await get("/health")).status_code == 200
            assert (await get("/v2/health/ready")).json() == {"ready": True}
            tokens = await post("/tokenize", json={"model": "lm", "prompt": "Hi"})
            assert tokens.json()["tokens"] == [72, 105]
            text = await post("/detokenize", json={"model": "lm", "tokens": [72, 105]})
            assert text.json() == {"prompt": "Hi"}
            await streams.server.drain()
            refused = await streams.complete("x")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert (await get("/health")).status_code == 503

    asyncio.run(main())


def test_live_settings_reach_a_decoder(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            post = streams.client.post
            shown = (await streams.client.get("/admin/config")).json()["lm"]
            assert (shown["policy"], shown["ttft_ms"]) == ("slackwidth", 1000.0)
            change = {"policy": "fixed:smallest", "tpot_ms": 50}
            told = (await post("/admin/config", json=change)).json()["lm"]
            assert told["tpot_ms"] == 50
            answer = (await streams.complete("x", max_tokens=4)).json()
            smallest = streams.decoder.engine.costs.subnet_ids[0]
            assert answer["usage"]["supernet"]["widths"] == [[smallest, 4]]
            wrong = await post("/admin/config", json={"policy": "slackfit"})
            assert wrong.status_code == 400
            assert "slackwidth" in wrong.json()["error"]

    asyncio.run(main())


def test_a_body_that_is_no_request(serve_streams: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve_streams() as streams:
            bodies = (b"null", b"[]", b'"x"', b"1e999", b'{"model": null}', b"\xff")
            for path, body in itertools.product(("completions", "chat/completions"), bodies):
                response = await streams.client.post(f"/v1/{path}", content=body)
                assert response.status_code == 400, response.text
                assert json.loads(response.text)["error"]["message"]

    asyncio.run(main())

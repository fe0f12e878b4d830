"""What a user of OpenAI's client does, run in its own environment by test_openai_client.py.

`python openai_session.py URL` prints one JSON object of what the client saw.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import openai
from openai import OpenAI

MODEL = "lm"
CHAT: Any = [{"role": "user", "content": "Hi"}]


def main(url: str) -> dict[str, Any]:
    client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    return {
        "models": [model.id for model in client.models.list()],
        "chat": chat(client),
        "text": text(client),
        "errors": errors(client),
        "inside": inside(client),
        "gone": gone(client),
        "retries": retries(url),
        "timeout": timeout(url),
    }


def chat(client: OpenAI) -> dict[str, Any]:
    options: Any = {"model": MODEL, "messages": CHAT, "temperature": 0, "max_tokens": 6}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = list(stream)
    usage = chunks[-1].usage
    return {
        "whole": whole.choices[0].message.content,
        "streamed": "".join(
            c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].delta
        ),
        "finish": [c.choices[0].finish_reason for c in chunks if c.choices][-1],
        "usage": [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens],
        "fluidity": usage.supernet["fluidity"],
        "scores": sum(
            len(c.choices[0].logprobs.content)
            for c in chunks
            if c.choices and c.choices[0].logprobs
        ),
    }


def text(client: OpenAI) -> dict[str, Any]:
    options: Any = {"model": MODEL, "temperature": 0, "max_tokens": 5}
    by_text = client.completions.create(prompt="Hi", **options)
    by_ids = client.completions.create(
        prompt=list(b"Hi"), extra_body={"slo": {"ttft_ms": 500}, "ignore_eos": True}, **options
    )
    pieces = client.completions.create(prompt="Hi", stream=True, **options)
    several = client.completions.create(prompt=["Hi", "Hello"], **options)
    return {
        "several": [[choice.index, choice.text] for choice in several.choices],
        "several_tokens": several.usage.completion_tokens,
        "by_text": by_text.choices[0].text,
        "by_ids": by_ids.choices[0].text,
        "streamed": "".join(piece.choices[0].text for piece in pieces),
        "widths": by_ids.usage.supernet["widths"],
    }


def errors(client: OpenAI) -> dict[str, list[Any]]:
    def told(**fields: Any) -> list[Any]:
        try:
            client.completions.create(**{"model": MODEL, "prompt": "x", **fields})
        except openai.APIStatusError as error:
            return [type(error).__name__, error.code, error.param]
        return ["answered"]

    return {
        "model": told(model="gpt-4"),
        "field": told(n=2),
        "length": told(max_tokens=10**9),
        "deadline": told(extra_headers={"x-slo-ttft-ms": "soon"}),
    }


def inside(client: OpenAI) -> list[Any]:
    """An error that comes behind the first events."""
    pieces = []
    try:
        for piece in client.completions.create(
            model=MODEL,
            prompt="x",
            max_tokens=5000,
            temperature=0,
            stream=True,
            extra_headers={"x-request-timeout-seconds": "0.5"},
        ):
            pieces.append(piece)
    except openai.APIError as error:
        return [len(pieces) > 0, error.code]
    return ["answered"]


def gone(client: OpenAI) -> int:
    """Take two events of a long text, and close it."""
    stream = client.completions.create(
        model=MODEL, prompt="x", max_tokens=5000, temperature=0, stream=True
    )
    seen = 0
    for _ in stream:
        seen += 1
        if seen == 2:
            break
    stream.close()
    return seen


def retries(url: str) -> list[Any]:
    """A refusal that another try can't change is not tried again."""
    client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=3)
    begun_s = time.monotonic()
    try:
        client.completions.create(model=MODEL, prompt="x", extra_headers={"x-slo-ttft-ms": "-1"})
    except openai.APIStatusError as error:
        return [error.status_code, time.monotonic() - begun_s < 0.4]
    return ["answered"]


def timeout(url: str) -> list[Any]:
    """A client that waits a short time only; the server knows, and ends the stream with it."""
    client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=0.3)
    try:
        client.completions.create(model=MODEL, prompt="x", max_tokens=5000, temperature=0)
    except (openai.APITimeoutError, openai.APIStatusError) as error:
        return [type(error).__name__]
    return ["answered"]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))

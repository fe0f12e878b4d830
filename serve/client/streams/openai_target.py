"""`OpenAITarget`: streams of any server that speaks OpenAI's protocol, as a replay sends them.

Prompts are token ids, so no tokenizer is needed, and the length is forced (`ignore_eos`, which
vLLM, llama.cpp and ours understand). How many tokens came with a chunk is what the server counts
(`continuous_usage_stats`), where it does not, one for each chunk with text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from serve.client.environment import bearer, trusting_context
from serve.client.rest_answers import ClientError
from traces.open_loop.stream_target import StreamCall, StreamEnd, StreamModel

_VOCABULARY = 1000  # of a server that does not say: few are smaller
_CONNECT_S = 5.0
_READ_BYTES = 2**18  # of one line


class OpenAITarget:
    """One model at one address; made by `open`."""

    def __init__(self, url: str, session: aiohttp.ClientSession, model: StreamModel) -> None:
        self.model = model
        self._url = url
        self._session = session

    @classmethod
    async def open(cls, url: str, model: str | None = None) -> OpenAITarget:
        """Ask a server what it serves; `model` None is its first. Raises ClientError."""
        url = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
        connector = aiohttp.TCPConnector(
            limit=0, ssl=trusting_context() if url.startswith("https") else True
        )
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_S)
        session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=bearer(), read_bufsize=_READ_BYTES
        )
        try:
            return cls(url, session, await _model(session, url, model))
        except BaseException:
            await session.close()
            raise

    async def stream(self, call: StreamCall, on_tokens: Callable[[int], None]) -> StreamEnd:
        """Send one call; see `StreamTarget`."""
        body = {
            "model": self.model.name,
            "prompt": list(call.prompt),
            "max_tokens": call.max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        headers = {
            "x-slo-ttft-ms": f"{max(call.ttft_s, 1e-3) * 1e3:.3f}",
            "x-slo-tpot-ms": f"{call.tpot_s * 1e3:.3f}",
        }
        try:
            async with self._session.post(
                f"{self._url}/v1/completions", json=body, headers=headers
            ) as response:
                if response.status != 200:
                    return _refused(response.status, await response.read())
                return await _read(response.content, on_tokens)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return StreamEnd("failed", type(error).__name__)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


class EventReader:
    """Counts the tokens of a stream's events, and keeps how it ended."""

    def __init__(self, on_tokens: Callable[[int], None]) -> None:
        self._on_tokens = on_tokens
        self._counted = 0
        self._is_finished = False
        self._error: Mapping[str, Any] | None = None
        self._served: Mapping[str, Any] = {}

    def take(self, line: bytes) -> bool:
        """Take a line in; return whether it was the last. Raises ValueError for what is no JSON."""
        if not line.startswith(b"data:"):
            return False  # empty, or a comment
        data = line[5:].strip()
        if data == b"[DONE]":
            return True
        event = json.loads(data)
        if event.get("error"):
            self._error = event["error"]
            return True
        usage = event.get("usage") or {}
        self._served = usage.get("supernet") or self._served
        choices = event.get("choices") or []
        if choices and choices[0].get("finish_reason"):
            self._is_finished = True
        has_text = bool(choices) and bool(choices[0].get("text"))
        count = usage.get("completion_tokens")
        new = (count - self._counted) if isinstance(count, int) else int(has_text)
        if new > 0:
            self._counted += new
            self._on_tokens(new)
        return False

    def end(self) -> StreamEnd:
        """Return how the stream ended."""
        if self._error is not None:
            reason = str(self._error.get("code") or self._error.get("type") or "error")
            is_failed = reason in ("execution_failed", "device_failed", "internal")
            return StreamEnd("failed" if is_failed else "dropped", reason)
        if not self._is_finished:
            return StreamEnd("failed", "torn")
        widths = tuple((str(name), int(count)) for name, count in self._served.get("widths", ()))
        return StreamEnd("ok", "", widths, self._served.get("fluidity"))


async def _read(content: aiohttp.StreamReader, on_tokens: Callable[[int], None]) -> StreamEnd:
    reader = EventReader(on_tokens)
    async for line in content:
        if reader.take(line):
            break
    return reader.end()


def _refused(status: int, body: bytes) -> StreamEnd:
    try:
        error = json.loads(body)["error"]
        reason = str(error.get("code") or error.get("type"))
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = f"http {status}"
    if status >= 500 and status not in (503, 504):
        return StreamEnd("failed", reason)
    return StreamEnd("rejected" if status != 504 else "dropped", reason)


async def _model(session: aiohttp.ClientSession, url: str, name: str | None) -> StreamModel:
    try:
        async with session.get(f"{url}/v1/models") as response:
            if response.status != 200:
                raise ClientError(f"{url}: says {response.status} to GET /v1/models")
            listed = (await response.json())["data"]
            models = {str(model["id"]): model for model in listed}
    except (aiohttp.ClientError, OSError) as error:
        raise ClientError(f"{url} can't be reached ({error})") from None
    except (ValueError, KeyError, TypeError):
        raise ClientError(f"{url}: GET /v1/models is not answered as OpenAI does") from None
    chosen = next(iter(models), None) if name is None else name
    if chosen is None or chosen not in models:
        raise ClientError(f"{url}: model {name!r} is not served; served: {', '.join(models)}")
    return _described(chosen, models[chosen])


def _described(name: str, model: Mapping[str, Any]) -> StreamModel:
    served: Mapping[str, Any] = model.get("supernet") or {}
    meta: Mapping[str, Any] = model.get("meta") or {}  # llama.cpp's
    size = served.get("vocab_size") or meta.get("n_vocab") or _VOCABULARY
    return StreamModel(
        name,
        int(size),
        str(served.get("policy", "")),
        {str(k): float(v) for k, v in served.get("widths", {}).items()} or None,
        str(served.get("quality_kind", "not told")),
    )

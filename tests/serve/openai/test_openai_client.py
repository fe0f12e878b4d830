"""The official client of OpenAI, unmodified, in an environment of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SESSION = Path(__file__).with_name("openai_session.py")
PYTHON = Path(".venv-openai/bin/python")


def test_the_official_client_sees_what_it_expects(serve_streams: Callable[..., Any]) -> None:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: `make test` installs it")

    async def main() -> tuple[dict[str, Any], dict[str, int], int]:
        async with serve_streams(factor=0.2) as streams:
            process = await asyncio.create_subprocess_exec(
                str(PYTHON), str(SESSION), streams.url, stdout=asyncio.subprocess.PIPE
            )
            async with asyncio.timeout(60.0):
                out, _ = await process.communicate()
            assert process.returncode == 0
            engine = streams.decoder.engine
            async with asyncio.timeout(2.0):
                while engine.status().num_running:
                    await asyncio.sleep(0.005)
            return json.loads(out), engine.status().ended, streams.device.held_tokens

    seen, ended, _ = asyncio.run(main())
    assert seen["models"] == ["lm"]
    chat, text = seen["chat"], seen["text"]
    assert chat["streamed"] == chat["whole"]
    assert (chat["finish"], chat["fluidity"], chat["scores"]) == ("length", 1.0, 6)
    assert chat["usage"] == [len("user: Hi\nassistant: "), 6, len("user: Hi\nassistant: ") + 6]
    assert text["by_text"] == text["by_ids"] == text["streamed"]
    assert sum(count for _, count in text["widths"]) == 5
    assert text["several"][0] == [0, text["by_text"]]
    assert [index for index, _ in text["several"]] == [0, 1]
    assert text["several_tokens"] == 10
    assert seen["errors"] == {
        "model": ["NotFoundError", "model_not_found", None],
        "field": ["BadRequestError", "unsupported", "n"],
        "length": ["BadRequestError", "context_length_exceeded", None],
        "deadline": ["BadRequestError", "bad_deadline", None],
    }
    assert seen["inside"] == [True, "expired"]
    assert seen["gone"] == 2
    assert seen["retries"] == [504, True]
    assert seen["timeout"][0] in ("APITimeoutError", "InternalServerError")
    # Each stream once: 7 whole, one expired inside, one left; the short wait is one of either.
    assert ended["on_time"] + ended.get("late", 0) == 7
    assert ended["dropped"] == 3

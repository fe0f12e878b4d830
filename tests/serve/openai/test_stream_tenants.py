"""Tenants at the OpenAI door: their shares reach the scheduler, they are counted and logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SETTINGS: dict[str, Any] = {
    "tenants": {"gold": {"share": 0.8}, "free": {"share": 0.1}},
    "log_queries": "all",
}


@pytest.fixture
def tokens_file(tmp_path: Path) -> str:
    path = tmp_path / "tokens"
    path.write_text(
        f"a infer {'g' * 16} gold\nb infer {'f' * 16} free\nops metrics,admin {'o' * 16}\n"
    )
    return str(path)


def bearer(letter: str) -> dict[str, str]:
    return {"authorization": f"Bearer {letter * 16}"}


def test_shares_reach_the_scheduler_and_tenants_the_log(
    serve_streams: Callable[..., Any], tokens_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serve_streams(tokens_file=tokens_file, **SETTINGS) as streams:
            assert streams.decoder.engine._scheduler.settings["tenant_shares"] == {
                "gold": 0.8,
                "free": 0.1,
            }

            for letter in "gfg":
                body = {"model": "lm", "prompt": "x" * 20, "max_tokens": 8, "temperature": 0}
                answer = await streams.client.post(
                    "/v1/completions", json=body, headers=bearer(letter)
                )
                assert answer.status_code == 200, answer.text
            metrics = await streams.client.get("/metrics", headers=bearer("o"))
            text = metrics.text
            name = "supernet_stream_tenant_ended_total"
            assert f'{name}{{model="lm",outcome="on_time",tenant="gold"}} 2.0' in text

    with caplog.at_level(logging.INFO, "serve.queries"):
        asyncio.run(main())
    facts = [entry.facts for entry in caplog.records if entry.name == "serve.queries"]
    assert [each["tenant"] for each in facts] == ["gold", "free", "gold"]
    assert {each["status"] for each in facts} == {"on_time"}
    assert all(each["request_id"] for each in facts)

"""`supernet top` on a server of streams: its figures and its panel."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from serve.commands.top_figures import figures, read, refusals
from serve.commands.top_streams import stream_figures, stream_panel
from serve.commands.top_view import view


def test_the_streams_of_a_span_are_shown(serve_streams: Callable[..., Any]) -> None:
    async def main() -> tuple[str, str]:
        async with serve_streams(policy="fixed:largest") as streams:
            await streams.complete("x", max_tokens=4)
            before = (await streams.client.get("/metrics")).text
            await asyncio.gather(*(streams.complete("y" * 70, max_tokens=5) for _ in range(3)))
            await streams.client.post("/v1/completions", json={"model": "lm", "prompt": 5})
            return before, (await streams.client.get("/metrics")).text

    old, new = map(read, asyncio.run(main()))
    assert figures(new, old, 2.0) == []
    (found,) = stream_figures(new, old, 2.0)
    assert (found.model, found.ended, found.on_time) == ("lm", 3, 1.0)
    assert (found.fluidity, found.tokens_per_s) == (1.0, 7.5)
    assert list(found.widths.values()) == [15]
    assert found.weighted == pytest.approx(1.0)
    assert 0 < found.first_s[0] < 1.0
    assert found.replicas == 1
    console = Console(file=io.StringIO(), width=120)
    panel = stream_panel("here", found)
    console.print(view("here", [], refusals(new, old), [panel]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("lm at here", "tokens/s 7.5", "on time 100.00 %", "bad_request"):
        assert word in shown

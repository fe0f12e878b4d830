"""A door in this process, and what is posted to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

URL = "/v2/models/tiny/infer"


def tensor(data: Any = None, shape: Any = (1, 1, 2, 2), **changes: Any) -> dict[str, Any]:
    fields = {"name": "input", "datatype": "UINT8", "shape": list(shape)}
    return {**fields, "data": [1, 2, 0, 0] if data is None else data, **changes}


def body(**changes: Any) -> dict[str, Any]:
    return {"id": "q1", "inputs": [tensor()], **changes}


@pytest.fixture
def ask(serve_timed):
    """`ask(use, **settings)` serves, awaits `use(client)`, and returns what it returned."""

    def run(use: Callable[[httpx.AsyncClient], Awaitable[Any]], **settings: Any) -> Any:
        async def main() -> Any:
            async with serve_timed(**settings) as client:
                return await use(client)

        return asyncio.run(main())

    return run


def post(content: Any, url: str = URL, **options: Any):
    return lambda client: client.post(url, json=content, **options)

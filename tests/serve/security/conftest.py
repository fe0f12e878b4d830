"""A profile of ten subnets to hide among, and a server that does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.config import ServeConfig, parse_config
from serve.doors.rest import RestDoor
from serve.hosts.assemble import build_server
from slackfit.profile import LatencyProfile, SubnetProfile

TOKENS = {
    "mallory": ("infer", "m" * 16),
    "honest": ("infer", "h" * 16),
    "looker": ("infer,metrics", "l" * 16),
    "prometheus": ("metrics", "p" * 16),
    "edge": ("infer,balance", "e" * 16),
    "auditor": ("infer,audit", "u" * 16),
    "root": ("admin", "r" * 16),
}
SECRET = "a secret of more than thirty-two bytes"


def ten_subnets(scale_s: float = 1e-3) -> LatencyProfile:
    """Return ten subnets of accuracies 0.70 to 0.88 that take 1 to 10 times `scale_s`."""
    return LatencyProfile(
        name="ten-secret-profile",
        device="secret-device",
        dtype="float32",
        batch_sizes=(1, 2, 4, 8),
        subnets=tuple(
            SubnetProfile(
                subnet_id=f"secretnet{number}",
                accuracy=0.70 + 0.02 * number,
                macs=number + 1,
                latency_s={"p50": tuple(scale_s * (number + 1) * f for f in (1.0, 1.4, 2.2, 3.8))},
            )
            for number in range(10)
        ),
    )


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[name][1]}"}


@pytest.fixture(scope="session")
def as_principal() -> Callable[[str], dict[str, str]]:
    """`as_principal(name)` is the header of one of `TOKENS`."""
    return bearer


@pytest.fixture(scope="session")
def ten() -> LatencyProfile:
    return ten_subnets()


@pytest.fixture
def defended(tmp_path: Path) -> Callable[..., ServeConfig]:
    """`defended(scale_s, server={...}, **security)` is the configuration of a defended server."""

    def make(
        scale_s: float = 1e-3, server: dict[str, object] | None = None, **security: object
    ) -> ServeConfig:
        profile, tokens, key = (tmp_path / n for n in ("ten.json", "tokens", "key"))
        ten_subnets(scale_s).save(profile)
        lines = [f"{name} {scopes} {secret}" for name, (scopes, secret) in TOKENS.items()]
        tokens.write_text("\n".join(lines))
        key.write_text(SECRET)
        return parse_config(
            {
                "device": "timed",
                "profile": str(profile),
                "input_shape": (1, 2, 2),
                "num_classes": 10,
                "model_name": "ten",
                "policy": "drainfit",
                "port": 0,
                "slo_ms": 200.0,
                "tokens_file": str(tokens),
                "security": {"grid_ms": 40.0, "key_file": str(key), **security},
                **(server or {}),
            }
        )

    return make


@contextlib.asynccontextmanager
async def opened(config: ServeConfig) -> AsyncIterator[tuple[RestDoor, httpx.AsyncClient]]:
    with contextlib.ExitStack() as resources:
        door = RestDoor(build_server(config, resources))
        transport = httpx.ASGITransport(door)
        async with (
            door.running(),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            yield door, client


@pytest.fixture(scope="session")
def door_of() -> Callable[[ServeConfig], Any]:
    """`door_of(config)` is a context with a door that is open, and a client of it."""
    return opened


@pytest.fixture(scope="session")
def over_http() -> Callable[..., Any]:
    """`over_http(config, use)` is what a coroutine function made of a client of such a server."""

    def run(config: ServeConfig, use: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with opened(config) as (_, client):
                return await use(client)

        return asyncio.run(main())

    return run

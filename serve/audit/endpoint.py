"""`audit_endpoint`: the attacks on a server that runs somewhere, with its operator's leave.

Loopback, or a token of scope `audit` in SUPERNET_TOKEN: `GET /admin/audit` says so or refuses. What
needs both an open and a defended server (the price) is left out and says so.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import Any

import httpx

from serve.access.guard import is_loopback
from serve.audit.audit_images import AuditImages
from serve.audit.checklist import Evidence, checklist
from serve.audit.local_servers import ATTACKER, AUDITOR, LOOKER, SPENDER, AuditedServer
from serve.audit.prober import Asked, Prober
from serve.audit.side import AttackScale, Side
from serve.bench.rows import Tell
from serve.client.environment import bearer
from serve.client.rest_answers import ClientError

_TIMEOUT_S = 10.0
_SLOTS = (1.0, 2.0, 4.0, 20.0)
_OPEN_SLOT_MS = 50.0


def may_audit(url: str) -> bool:
    """Return whether the server there has a defence. Raises ClientError unless it lets us audit."""
    if not url.startswith(("http://", "https://")):
        raise ClientError(f"{url}: give `local`, or a URL with http:// or https://")
    host = urllib.parse.urlsplit(url).hostname or ""
    if not is_loopback(host) and not bearer():
        raise ClientError(
            f"{url} is not on this host: put a token of scope `audit` into SUPERNET_TOKEN"
        )
    try:
        answer = httpx.get(f"{url.rstrip('/')}/admin/audit", headers=bearer(), timeout=_TIMEOUT_S)
        fields = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ClientError(f"{url}: no answer of a server of ours ({error})") from None
    if answer.status_code != 200 or not isinstance(fields, dict):
        why = fields.get("error", "") if isinstance(fields, dict) else ""
        raise ClientError(f"{url} lets nobody audit it with this token: {answer.status_code} {why}")
    return fields.get("security") is True


def image_shape(url: str) -> tuple[int, ...]:
    """Return the shape of an image that the server takes. Raises ClientError."""
    may_audit(url)

    async def ask() -> tuple[int, ...]:
        async with Prober(url, bearer().get("authorization", " ").partition(" ")[2] or None) as one:
            return (await one.info()).input_shape

    return asyncio.run(ask())


def audit_endpoint(
    url: str, images: AuditImages, *, scale: AttackScale, seed: int, tell: Tell
) -> dict[str, Any]:
    """Return the record of one server. Raises ClientError, and InferError where it refuses."""
    is_defended = may_audit(url)
    token = bearer().get("authorization", " ").partition(" ")[2]
    tokens = {name: token for name in (AUDITOR, ATTACKER, LOOKER, SPENDER) if token}
    server = AuditedServer(url, tokens, None, is_defended)
    return asyncio.run(_attacked(server, images, scale, seed, tell))


async def _attacked(
    server: AuditedServer, images: AuditImages, scale: AttackScale, seed: int, tell: Tell
) -> dict[str, Any]:
    async with Prober(server.url, server.tokens.get(AUDITOR)) as prober:
        info = await prober.info()
    settings = info.parameters.get("settings", {})
    grid_ms = float(settings.get("deadline_grid_ms", _OPEN_SLOT_MS))
    side = Side(
        server,
        images.images,
        info.subnet_ids,
        slos_ms=[slot * grid_ms for slot in _SLOTS],
        scale=scale,
        seed=seed,
        model=info.name,
    )
    found = await side.fingerprint()
    tell(f"{found['pinned']} of {found['subnets']} subnets pinned")
    corners = found["corners"]
    corner = Asked(corners[0]["min_accuracy"] if corners else 0.0, _SLOTS[-1] * grid_ms)
    shares = await side.shares(corner, None)
    tell(f"shares {shares['naive']:.3f} naive, {shares['adaptive']:.3f} adaptive")
    timing = await side.timing(0.0)
    tell(f"timing {timing['accuracy']:.3f}, chance {timing['chance']:.3f}")
    name = "defended" if server.is_defended else "undefended"
    left_out = "needs an open and a defended server on the same trace: --endpoint local"
    return {
        **dict.fromkeys(("undefended", "defended")),
        name: {
            "fingerprint": found,
            "share": shares,
            "goodput": None,
            "served_accuracy_lost": None,
            "timing": timing,
            "extraction": [],
            "checklist": checklist(Evidence(answers_name_subnets=not server.is_defended)),
        },
        "left_out": {"price": left_out, "extraction": left_out},
        "setting": {"url": server.url, "images": images.source, "seed": seed},
    }

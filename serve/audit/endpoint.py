"""`audit_endpoint`: the attacks on a server that runs somewhere, with its operator's leave.

Loopback, or a token of scope `audit` in SUPERNET_TOKEN: `GET /admin/audit` says so or refuses. What
needs both an open and a defended server (the price) is left out and says so; so is a part that the
server's rates or budgets ended.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Awaitable
from typing import Any

import httpx

from serve.access.guard import is_loopback
from serve.audit.audit_images import AuditImages
from serve.audit.checklist import Evidence, checklist
from serve.audit.local_servers import ATTACKER, AUDITOR, LOOKER, SPENDER, AuditedServer
from serve.audit.prober import Probe, Prober
from serve.audit.side import AttackScale, Side, is_limited
from serve.bench.rows import Tell
from serve.client import InferError
from serve.client.environment import bearer
from serve.client.rest_answers import ClientError

_TIMEOUT_S = 10.0
_SLOTS = (1.0, 2.0, 4.0, 20.0)
_OPEN_SLOT_MS = 50.0
_NEEDS_BOTH = "needs an open and a defended server on the same trace: --endpoint local"
_TOLD = {
    "fingerprint": "{pinned} of {subnets} subnets pinned",
    "share": "shares {naive:.3f} naive, {adaptive:.3f} adaptive",
    "timing": "timing {accuracy:.3f}, chance {chance:.3f}",
}


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
    left_out: dict[str, str] = {"price": _NEEDS_BOTH, "extraction": _NEEDS_BOTH}
    asked_until_limited: list[int] = []

    async def part(name: str, attack: Awaitable[dict[str, Any]]) -> dict[str, Any] | None:
        try:
            found = await attack
        except (InferError, ExceptionGroup) as error:
            if not is_limited(error):
                raise
            asked_until_limited.append(side.num_queries)
            left_out[name] = "the server lets this principal ask no more for now"
            tell(f"{name}: {left_out[name]}")
            return None
        tell(_TOLD[name].format(**found))
        return found

    found = await part("fingerprint", side.fingerprint())
    corners = found["corners"] if found is not None else []
    corner = Probe(corners[0]["min_accuracy"] if corners else 0.0, _SLOTS[-1] * grid_ms)
    timing = await part("timing", side.timing(0.0))
    shares = await part("share", side.shares(corner, None))
    spent = await side.spend()
    if spent["refused_after"]:
        asked_until_limited.append(side.num_queries)
    spent |= {"refused_after": next(iter(asked_until_limited), 0), "tried": side.num_queries}
    # A defended server tells an auditor what it hides from others: this token can't look.
    evidence = Evidence(
        **spent,
        answers_name_subnets=None if server.is_defended else bool(info.subnet_ids),
        has_watermark=False,  # servers of ours put none in
    )
    name = "defended" if server.is_defended else "undefended"
    return {
        **dict.fromkeys(("undefended", "defended")),
        name: {
            "fingerprint": found,
            "share": shares,
            "goodput": None,
            "served_accuracy_lost": None,
            "timing": timing,
            "extraction": [],
            "checklist": checklist(evidence),
        },
        "left_out": left_out,
        "setting": {"url": server.url, "images": images.source, "seed": seed},
    }

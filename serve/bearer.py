"""The token that our own commands bring to a server: from the environment, as a server's tokens."""

from __future__ import annotations

import os

VARIABLE = "SUPERNET_TOKEN"


def bearer() -> dict[str, str]:
    """Return the header (or gRPC metadata) with the token of SUPERNET_TOKEN, if there is one."""
    token = os.environ.get(VARIABLE, "").strip()
    return {"authorization": f"Bearer {token}"} if token else {}

"""What our clients take from the environment: a token, and which certificates they trust.

SUPERNET_TOKEN is the token that our own commands bring, as a server takes its tokens from there.
SSL_CERT_FILE names the trusted certificates. That variable is OpenSSL's own, so what is built on it
obeys already (aiohttp, curl); httpx is told not to look at its environment, because of proxies, and
gRPC does not know the variable. Not set: what each of them trusts by itself.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import httpx

from serve.client.rest_answers import ClientError

TOKEN = "SUPERNET_TOKEN"
_CERTIFICATES = "SSL_CERT_FILE"


def bearer() -> dict[str, str]:
    """Return the header (or gRPC metadata) with the token of SUPERNET_TOKEN, if there is one."""
    token = os.environ.get(TOKEN, "").strip()
    return {"authorization": f"Bearer {token}"} if token else {}


def trusted_pem() -> bytes | None:
    """Return the file's PEM certificates. Raises ClientError: it can't be read."""
    path = os.environ.get(_CERTIFICATES)
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise ClientError(
            f"{_CERTIFICATES} is {path!r}: can't be read ({error.strerror}); give a file of PEM "
            "certificates"
        ) from None


def trusting_context() -> ssl.SSLContext:
    """Return what a client over https checks its server by. Raises ClientError."""
    pem = trusted_pem()
    if pem is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cadata=pem.decode("ascii", "replace"))
    except ssl.SSLError as error:
        path = os.environ[_CERTIFICATES]
        raise ClientError(f"{_CERTIFICATES} is {path!r}: holds no certificates ({error})") from None

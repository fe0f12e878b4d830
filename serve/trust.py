"""Which certificates our clients trust: those of the file that SSL_CERT_FILE names.

The variable is OpenSSL's own, so what is built on it obeys already (aiohttp, curl); httpx is told
not to look at its environment, because of proxies, and gRPC does not know the variable. Not set:
what each of them trusts by itself.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import httpx

from serve.answer import ClientError

_VARIABLE = "SSL_CERT_FILE"


def trusted_pem() -> bytes | None:
    """Return the file's PEM certificates. Raises ClientError: it can't be read."""
    path = os.environ.get(_VARIABLE)
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise ClientError(
            f"{_VARIABLE} is {path!r}: can't be read ({error.strerror}); give a file of PEM "
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
        path = os.environ[_VARIABLE]
        raise ClientError(f"{_VARIABLE} is {path!r}: holds no certificates ({error})") from None

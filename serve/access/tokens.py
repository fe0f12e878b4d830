"""Bearer tokens: names, what each may do, and the comparison that tells nothing by its duration.

They come from a file (setting `tokens_file`) or from the environment variable SUPERNET_TOKENS,
never from a command line, which every user of the machine can read. One token per line, or behind
a semicolon: `NAME SCOPES SECRET [TENANT]`, with scopes joined by commas; calls with a token that
names a tenant are that tenant's. A line that begins with `#` is a comment. Nothing here prints or
logs a secret.

A file that changes is read again within a second, so that tokens are handed out and taken back
while the server runs. One that can't be read, or holds a mistake, changes nothing and is logged.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from serve.access.watched_files import WatchedFiles
from serve.config import ServeConfigError

logger = logging.getLogger(__name__)

VARIABLE = "SUPERNET_TOKENS"
SCOPES = ("infer", "metrics", "audit", "balance", "admin")
"""`infer`: all of `/v2`. `metrics`: `/metrics`. `admin`: `/admin/config`, and all others.
Of a server that hides its choice (`security`), `audit` sees it, `balance` predicted finishes."""

_ALL = frozenset(SCOPES)
_MIN_SECRET = 16  # characters: what is shorter can be guessed
_SECRET = re.compile(rf"[A-Za-z0-9._~+/-]{{{_MIN_SECRET},}}=*")  # RFC 6750's b64token
_FORM = "NAME SCOPES SECRET [TENANT]"


class Token(NamedTuple):
    """One token: whose it is, what it opens, and for which tenant, if that is said."""

    name: str
    scopes: frozenset[str]
    secret: str
    tenant: str | None = None

    def allows(self, scope: str) -> bool:
        """Whether the token opens `scope`."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def opens(self) -> frozenset[str]:
        """Every scope that it opens."""
        return _ALL if "admin" in self.scopes else self.scopes


class Tokens:
    """The tokens that a server knows."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = tuple(tokens)
        self._digests = [_digest(token.secret) for token in self._tokens]

    def find(self, secret: str) -> Token | None:
        """Return the token with this secret; every one is compared, whichever it is."""
        given = _digest(secret)
        found = None
        for token, digest in zip(self._tokens, self._digests, strict=True):
            if hmac.compare_digest(given, digest):
                found = token
        return found

    def tenants(self) -> set[str]:
        """Return the tenants that tokens name."""
        return {token.tenant for token in self._tokens if token.tenant is not None}

    def secret_for(self, scope: str) -> str | None:
        """Return the secret of the first token that opens `scope`, for a host that asks itself."""
        return next((token.secret for token in self._tokens if token.allows(scope)), None)


class RenewedTokens(Tokens):
    """The tokens of a file as it is now; `check` may refuse new ones with a ServeConfigError."""

    def __init__(
        self,
        path: str,
        check: Callable[[Tokens], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._check = check
        self._watched = WatchedFiles((path,), clock)  # before it is read: no change is missed
        self._current = self._read()

    def find(self, secret: str) -> Token | None:
        """Return the token with this secret, as the file has it now."""
        self._renew()
        return self._current.find(secret)

    def tenants(self) -> set[str]:
        """Return the tenants that tokens name."""
        return self._current.tenants()

    def secret_for(self, scope: str) -> str | None:
        """Return the secret of the first token that opens `scope`."""
        return self._current.secret_for(scope)

    def _renew(self) -> None:
        if not self._watched.changed():
            return
        try:
            self._current = self._read()
        except ServeConfigError as error:
            logger.error("%s; the tokens of before stay", error)
            return
        logger.warning("tokens_file %s was read again", self._path)

    def _read(self) -> Tokens:
        tokens = read_tokens(self._path)
        assert tokens is not None, "a path was given"
        self._check(tokens)
        return tokens


def read_tokens(path: str | None) -> Tokens | None:
    """Read the tokens of a file and of SUPERNET_TOKENS; None when neither is given.

    Raises ServeConfigError for what is no token, by its line and without its text.
    """
    tokens: list[Token] = []
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ServeConfigError(
                f"tokens_file {path}: can't be read ({type(error).__name__})"
            ) from None
        tokens += _parse(text, f"tokens_file {path}")
        if not tokens:
            raise ServeConfigError(f"tokens_file {path} holds no token, allowed lines {_FORM}")
    tokens += _parse(os.environ.get(VARIABLE, ""), VARIABLE)
    for field in ("name", "secret"):
        if len({getattr(token, field) for token in tokens}) < len(tokens):
            raise ServeConfigError(f"two tokens have the same {field}: give each its own")
    return Tokens(tokens) if tokens else None


def _parse(text: str, source: str) -> list[Token]:
    tokens: list[Token] = []
    for number, line in enumerate(re.split(r"[\n;]", text), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) not in (3, 4):
            raise ServeConfigError(
                f"{source}, line {number}: {len(words)} words, allowed 3 or 4: {_FORM}"
            )
        name, scopes, secret = words[:3]
        tenant = words[3] if len(words) == 4 else None
        unknown = set(scopes.split(",")) - set(SCOPES)
        if unknown:
            text = f"scope {', '.join(sorted(unknown))} is unknown, allowed {', '.join(SCOPES)}"
            raise ServeConfigError(f"{source}, line {number}: {text}")
        if not _SECRET.fullmatch(secret):
            text = f"the secret is no token of {_MIN_SECRET} letters, digits, ._~+/- or more"
            raise ServeConfigError(f"{source}, line {number}: {text}")
        tokens.append(Token(name, frozenset(scopes.split(",")), secret, tenant))
    return tokens


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()

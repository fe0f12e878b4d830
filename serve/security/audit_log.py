"""`AuditLog`: what was served to whom, a JSON line each, for the operator's eyes only.

Lines are appended in blocks, so that a query costs no write; a full disk ends the log, not serving,
and says so once in the server's log.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from serve.config import ServeConfigError

logger = logging.getLogger(__name__)

_BLOCK_LINES = 256
_AT_LEAST_EVERY_S = 1.0


class AuditLog:
    """A file that lines are appended to. Raises ServeConfigError where it can't be opened."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        try:
            self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise ServeConfigError(
                f"security: audit_log {path}: can't be written ({error.strerror})"
            ) from None
        self._path = path
        self._clock = clock
        self._entries: list[Mapping[str, Any]] = []
        self._written_s = clock()

    def note(self, entry: Mapping[str, Any]) -> None:
        """Take one entry; it is in the file within a second of the next one."""
        if self._file is None:
            return
        self._entries.append(entry)
        is_due = self._clock() - self._written_s >= _AT_LEAST_EVERY_S
        if is_due or len(self._entries) >= _BLOCK_LINES:
            self._write()

    def close(self) -> None:
        """Write what is left, and close."""
        if self._file is not None:
            self._write()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self) -> None:
        assert self._file is not None, "an open file"
        block = memoryview("".join(json.dumps(e) + "\n" for e in self._entries).encode())
        self._entries, self._written_s = [], self._clock()
        try:
            while block:
                block = block[os.write(self._file, block) :]
        except OSError as error:
            logger.error("audit_log %s: %s; it stops here", self._path, error.strerror)
            os.close(self._file)
            self._file = None

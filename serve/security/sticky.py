"""`StickyDraw`: numbers that look random and are the same whenever the same is asked.

A draw is a keyed hash (BLAKE2b, RFC 7693) of principal, specification, window of time and the
digest of the input. To ask again brings nothing new, so noise can't be averaged away; another input
draws anew. Without the key nobody can predict a draw, or compute whom it would go to.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serve.config import ServeConfigError

_LEAST_KEY = 32  # bytes
_MOST_KEY = 64  # that BLAKE2b takes
_LOOK_SHAPE = 4
_LOOK_LEVELS = 16.0


class StickyDraw:
    """Draws under one key; `unix_clock` tells which window it is, the same on all replicas."""

    def __init__(self, key: bytes, window_s: float, unix_clock: Callable[[], float]) -> None:
        self._key = key
        self._window_s = window_s
        self._unix_clock = unix_clock

    def window(self) -> int:
        """Return the number of the present window."""
        return int(self._unix_clock() // self._window_s)

    def window_left_s(self) -> float:
        """Return how long the present window lasts."""
        return self._window_s - self._unix_clock() % self._window_s

    def uniform(self, principal: str, specification: str, digest: bytes) -> float:
        """Return a number of [0, 1)."""
        text = f"{principal}\0{specification}\0{self.window()}\0".encode()
        drawn = hashlib.blake2b(text + digest, digest_size=8, key=self._key).digest()
        return (int.from_bytes(drawn, "big") >> 11) * 2.0**-53


def digest_of(sample: np.ndarray) -> bytes:
    """Return the digest of one input, 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(sample).data, digest_size=16).digest()


def look_of(sample: np.ndarray) -> bytes:
    """Return what an input looks like: the same for one that was changed a little, mostly.

    Of an image (C, H, W) coarse means; of anything else the digest of its coarse histogram.
    """
    if sample.ndim == 3 and min(sample.shape[1:]) >= _LOOK_SHAPE:
        channels, height, width = sample.shape
        high, wide = height // _LOOK_SHAPE, width // _LOOK_SHAPE
        cut = sample[:, : high * _LOOK_SHAPE, : wide * _LOOK_SHAPE]
        blocks = cut.reshape(channels, _LOOK_SHAPE, high, _LOOK_SHAPE, wide)
        means = blocks.mean(axis=(2, 4), dtype=np.float32)
    else:
        means = np.sort(sample, axis=None)[:: max(1, sample.size // 16)].astype(np.float32)
    coarse = np.rint(means / _LOOK_LEVELS).astype(np.int64)
    return hashlib.blake2b(coarse.tobytes(), digest_size=8).digest()


def read_key(path: str | None) -> bytes:
    """Return the secret in a file, or one that nobody has. Raises ServeConfigError."""
    if path is None:
        return secrets.token_bytes(_LEAST_KEY)
    try:
        text = Path(path).read_bytes().strip()
    except OSError as error:
        raise ServeConfigError(
            f"security: key_file {path}: can't be read ({error.strerror})"
        ) from None
    if len(text) < _LEAST_KEY:
        raise ServeConfigError(
            f"security: key_file {path} holds {len(text)} bytes, allowed {_LEAST_KEY} or more: "
            "`head -c 48 /dev/urandom | base64 > FILE` makes one"
        )
    return hashlib.blake2b(text, digest_size=_MOST_KEY).digest()

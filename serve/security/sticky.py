"""`StickyDraw`: numbers that look random and are the same whenever the same is asked.

A draw is a keyed hash (BLAKE2b, RFC 7693) of principal, window of time and question: the model, the
specification's candidates and the digest of the input. To ask again brings nothing new, so noise
can't be averaged away; another input draws anew. Without the key nobody can predict a draw, or
compute whom it would go to.
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
_LOOK_BANDS = 8
_LOOK_LEVELS = 16  # grey levels that look the same


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

    def uniform(self, principal: str, question: bytes) -> float:
        """Return a number of [0, 1)."""
        text = f"{principal}\0{self.window()}\0".encode()
        drawn = hashlib.blake2b(text + question, digest_size=8, key=self._key).digest()
        return (int.from_bytes(drawn, "big") >> 11) * 2.0**-53


def digest_of(sample: np.ndarray) -> bytes:
    """Return the digest of one input, 16 bytes."""
    return hashlib.sha256(np.ascontiguousarray(sample).data).digest()[:16]


def look_of(sample: np.ndarray) -> bytes:
    """Return what an input looks like: the same for one that was changed a little, mostly.

    Of an image uint8 (C, H, W) coarse means of bands of its rows, which are along memory and so
    a quarter of the cost of square parts; of ids a few of them, in order of size.
    """
    if sample.ndim == 3 and sample.shape[1] >= _LOOK_BANDS:
        channels, height, width = sample.shape
        high = height // _LOOK_BANDS
        bands = sample[:, : high * _LOOK_BANDS].reshape(channels * _LOOK_BANDS, high * width)
        level = _LOOK_LEVELS * high * width
        sums = np.add.reduce(bands, axis=1, dtype=np.uint32, initial=level // 2)
    else:
        level = _LOOK_LEVELS
        few = np.sort(sample, axis=None)[:: max(1, sample.size // 16)]
        sums = few.astype(np.int64) + level // 2
    return hashlib.blake2b((sums // level).data, digest_size=8).digest()


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

"""Image files to samples: JPEG and PNG only, bounded before a pixel is decoded, off the event loop.

A file says its size in its header; what claims more than `max_pixels` is refused unread, so that a
small file cannot become a large allocation. The image is scaled so that it just covers the model's
input (antialiased bilinear) and its centre is taken; an image of the right size is not touched.
Decoding holds a core for milliseconds: it runs on one thread of its own, with a bounded queue.
"""

from __future__ import annotations

import asyncio
import functools
import io
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serve.models.limits import RefusedError

FORMATS = ("JPEG", "PNG")
_MODES = {1: "L", 3: "RGB"}


class ImageDecoder:
    """Decodes image files on a thread of its own; at most `max_waiting` of them wait."""

    def __init__(self, *, max_pixels: int, max_waiting: int) -> None:
        self._max_pixels = max_pixels
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="decode")

    async def decode(self, files: Sequence[bytes], shape: tuple[int, ...]) -> np.ndarray:
        """Return the images as uint8 (B, C, H, W) of `shape`. Raises RefusedError."""
        with self._lock:
            if self._num_waiting + len(files) > self._max_waiting:
                raise RefusedError("queue_full", "too many images wait to be decoded")
            self._num_waiting += len(files)
        try:
            work = functools.partial(decode_images, files, shape, max_pixels=self._max_pixels)
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            with self._lock:
                self._num_waiting -= len(files)

    def close(self) -> None:
        """End the thread; what still waits is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def decode_images(files: Sequence[bytes], shape: tuple[int, ...], *, max_pixels: int) -> np.ndarray:
    """Return the images as uint8 (B, C, H, W) of `shape`. Raises RefusedError."""
    if shape[0] not in _MODES:
        text = f"the model takes {shape[0]} channels: send tensors, not images"
        raise RefusedError("bad_tensor", text)
    samples = np.empty((len(files), *shape), dtype=np.uint8)  # (B, C, H, W)
    for row, file in enumerate(files):
        samples[row] = _decode(file, row, shape, max_pixels)
    return samples


def _decode(file: bytes, row: int, shape: tuple[int, ...], max_pixels: int) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(file), formats=FORMATS)
    except UnidentifiedImageError:
        raise _bad(row, f"is not a file of {' or '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _bad(row, f"has more than the allowed {max_pixels} pixels", "too_large") from None
    except (OSError, ValueError, SyntaxError):
        raise _bad(row, "is damaged") from None
    with image:
        width, height = image.size
        if width * height > max_pixels:
            text = f"has {width} x {height} pixels, allowed {max_pixels} (max_image_pixels)"
            raise _bad(row, text, "too_large")
        try:
            fitted = ImageOps.fit(
                image.convert(_MODES[shape[0]]), (shape[2], shape[1]), Image.Resampling.BILINEAR
            )
        except (OSError, ValueError, SyntaxError, MemoryError):
            raise _bad(row, "is damaged") from None
    pixels = np.asarray(fitted, dtype=np.uint8).reshape(shape[1], shape[2], shape[0])  # (H, W, C)
    return pixels.transpose(2, 0, 1)


def _bad(row: int, text: str, reason: str = "bad_tensor") -> RefusedError:
    return RefusedError(reason, f"image {row} {text}")

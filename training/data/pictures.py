"""A picture file as people see it: RGB in 8 bit, upright.

Orientation in EXIF is applied, and 16 bit are scaled to 8: Pillow's own conversion clips them, so
that nearly all of a 16-bit picture is white. What can't be scaled without a guess is refused.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from training.data.array_folder import DataError

_MAX_PIXELS = 64_000_000  # of one picture; a decompression bomb is refused beyond it
_BROKEN_EXIF = (
    OSError, SyntaxError, ValueError, KeyError, TypeError, ArithmeticError, struct.error,
)  # fmt: skip


def read_picture(file: Path | IO[bytes], where: str, *, at_least: int = 0) -> Image.Image:
    """Return a picture as RGB, upright.

    With `at_least` the decoder may skip detail beyond twice that many pixels a side. Raises
    DataError naming `where`: no readable picture, too large, or values of unknown range.
    """
    try:
        with Image.open(file) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"{where}: {image.width} x {image.height} pixels is too large")
            if at_least:
                image.draft("RGB", (at_least, at_least))
            image.load()
            return _in_8_bit(_upright(image), where).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as bad:
        raise DataError(f"{where}: not a readable image ({bad})") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN_EXIF:  # an orientation that can't be read was not meant for anybody
        return image


def _in_8_bit(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "F":
        raise DataError(
            f"{where}: a picture of fractions, whose range is unknown; save 8 or 16 bit"
        )
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise DataError(f"{where}: values from {values.min()} to {values.max()}, allowed 16 bit")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))

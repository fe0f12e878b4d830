"""Pictures as people see them: upright, and in 8 bit; the same in training and at the door.

Orientation in EXIF is applied, and 16 bit are scaled to 8: Pillow's own conversion clips them, so
that nearly all of a 16-bit picture is white. What can't be scaled without a guess is refused.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image, ImageOps

_ORIENTATION = 0x0112
_BROKEN_EXIF = (
    OSError, SyntaxError, ValueError, KeyError, TypeError, ArithmeticError, struct.error,
)  # fmt: skip


def upright(image: Image.Image) -> Image.Image:
    """Return a loaded picture as its EXIF says that it is to be looked at; itself if it is so."""
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except _BROKEN_EXIF:  # an orientation that can't be read was not meant for anybody
        return image


def in_8_bit(image: Image.Image) -> Image.Image:
    """Return a picture whose values are in 8 bit; raises ValueError for those of unknown range."""
    if image.mode == "F":
        raise ValueError("a picture of fractions, whose range is unknown; save 8 or 16 bit")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"values from {values.min()} to {values.max()}, allowed 16 bit")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))

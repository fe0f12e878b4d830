"""A picture file as training reads it: RGB in 8 bit, upright (`supernet/picture.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from supernet.picture import in_8_bit, upright
from training.data.array_folder import DataError

_MAX_PIXELS = 64_000_000  # of one picture; a decompression bomb is refused beyond it
_DAMAGED = (
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError),
    Image.DecompressionBombError,
)


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
            try:
                return in_8_bit(upright(image)).convert("RGB")
            except ValueError as bad:
                raise DataError(f"{where}: {bad}") from None
    except DataError:
        raise
    except _DAMAGED as bad:
        raise DataError(f"{where}: not a readable image ({bad})") from None

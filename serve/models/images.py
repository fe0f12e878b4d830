"""Image files to samples: JPEG and PNG only, bounded before a pixel is decoded, off the event loop.

A file says its size in its header; what claims more than `max_pixels` is refused unread, so that a
small file cannot become a large allocation. The image is scaled so that it just covers the model's
input (antialiased bilinear) and its centre is taken; an image of the right size is not touched. A
JPEG that is much larger is decoded at a half, a quarter or an eighth of its size, which its
transform gives for less (`Image.draft`). What is classified is what people see, in training
and here: upright as EXIF says, 16 bit scaled to 8 (`supernet/picture.py`).

`ImageDecoder` runs it on threads of its own, the most urgent request first.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serve.models.limits import RefusedError
from supernet.picture import in_8_bit, upright

FORMATS = ("JPEG", "PNG")
_GAP = 2  # times the wanted size, for the last step to be a filter and not a choice of pixels
_MODES = {1: "L", 3: "RGB"}


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
        mode, wanted = _MODES[shape[0]], (shape[2], shape[1])
        side = _GAP * max(wanted)  # of either, as the picture may be lying on its side
        try:
            image.draft(mode, (side, side))  # JPEG only; never smaller
            image.load()
            seen = in_8_bit(upright(image)).convert(mode)
            fitted = ImageOps.fit(seen, wanted, Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, MemoryError):
            raise _bad(row, "is damaged") from None
    pixels = np.asarray(fitted, dtype=np.uint8).reshape(shape[1], shape[2], shape[0])  # (H, W, C)
    return pixels.transpose(2, 0, 1)


def _bad(row: int, text: str, reason: str = "bad_tensor") -> RefusedError:
    return RefusedError(reason, f"image {row} {text}")

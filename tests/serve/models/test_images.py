"""Image files to samples: what comes out, and what is refused before it is decoded."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from serve.models.images import decode_images
from serve.models.limits import RefusedError

GREY, COLOUR = (1, 4, 6), (3, 4, 6)  # (C, H, W)
MAX_PIXELS = 1_000_000


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def decode(*files: bytes, shape: tuple[int, int, int] = GREY) -> np.ndarray:
    return decode_images(files, shape, max_pixels=MAX_PIXELS)


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG that claims to be large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1_000_000), 9)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_image_of_the_right_size_is_not_touched(rng):
    grey = rng.integers(0, 256, (4, 6), dtype=np.uint8)
    colour = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(encoded(grey))[0, 0], grey)
    both = decode(encoded(colour), encoded(grey), shape=COLOUR)
    np.testing.assert_array_equal(both[0].transpose(1, 2, 0), colour)
    np.testing.assert_array_equal(both[1], np.broadcast_to(grey, (3, 4, 6)))


def test_larger_image_is_scaled_to_cover_and_its_centre_taken():
    pixels = np.zeros((40, 100), dtype=np.uint8)
    pixels[:, 15:85] = 200  # 20 to 80 is what 4 x 6 leaves of 40 x 100; a filter sees more
    assert (decode(encoded(pixels, "JPEG")) > 190).all()


def test_decompression_bomb_is_refused_unread():
    tracemalloc.start()
    for file in (bomb(5000, 5000), bomb(2**31 - 1, 2**31 - 1), bomb(10**4, 10**4)):
        with pytest.raises(RefusedError, match="pixels") as caught:
            decode(file)
        assert caught.value.reason == "too_large"
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 5_000_000


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (b"", "not a file of JPEG or PNG"),
        (b"GIF89a" + bytes(20), "not a file of JPEG or PNG"),
        (encoded(np.zeros((9, 9), dtype=np.uint8), "BMP"), "not a file of JPEG or PNG"),
        (encoded(np.arange(6400, dtype=np.uint8).reshape(80, 80))[:-60], "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "image 1"),
        (b"\xff\xd8\xff\xe0" + bytes(30), "image 1"),
    ],
)
def test_damaged_and_foreign_files_are_bad_tensors(file, text):
    good = encoded(np.zeros((4, 6), dtype=np.uint8))
    with pytest.raises(RefusedError, match=text) as caught:
        decode(good, file)
    assert caught.value.reason == "bad_tensor"


def test_model_of_two_channels_takes_no_images():
    with pytest.raises(RefusedError, match="2 channels: send tensors"):
        decode(b"", shape=(2, 4, 6))


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_looks_the_same(rng):
    """The transform of a JPEG gives a half, a quarter, an eighth for a part of the work."""
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((1200, 900), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    shape = (3, 96, 128)
    got = decode_images([file.getvalue()], shape, max_pixels=MAX_PIXELS * 2)[0]
    plain = np.asarray(picture.resize((128, 96), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(got.astype(int) - plain.astype(int)).mean() < 3.0


RAMP = np.tile(np.linspace(0, 255, 6).astype(np.uint8), (4, 1))  # (4, 6), dark to light


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_16_bit_are_scaled_not_clipped(shape: tuple[int, int, int]):
    """All but black had become white, and been answered with 200."""
    deep = stored(Image.fromarray(RAMP.astype(np.uint16) * 257))
    np.testing.assert_array_equal(decode(deep, shape=shape)[0, 0], RAMP)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda seen: seen),
        (2, np.fliplr),
        (3, lambda seen: np.rot90(seen, 2)),
        (6, lambda seen: np.rot90(seen, 1)),
        (8, lambda seen: np.rot90(seen, -1)),
        (99, lambda seen: seen),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_what_people_see_is_what_is_classified(orientation: int, turn, kind: str):
    """Orientation in EXIF had been ignored: people upright, pixels on their side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(np.ascontiguousarray(turn(RAMP)))
    seen = decode(stored(lying, kind, exif=exif))[0, 0].astype(int)
    assert np.abs(seen - RAMP).max() <= (0 if kind == "PNG" else 12)


def test_a_large_photograph_on_its_side_is_turned_and_read_at_a_part_of_its_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = Image.fromarray(RAMP).resize((600, 400), Image.Resampling.BILINEAR)
    lying = seen.transpose(Image.Transpose.ROTATE_90)
    pixels = decode(stored(lying, "JPEG", exif=exif))[0, 0].astype(int)
    assert (np.diff(pixels, axis=1) > 10).all(), "dark to light, from left to right"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_exif_that_is_broken_turns_nothing():
    broken = stored(Image.fromarray(RAMP), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    np.testing.assert_array_equal(decode(broken)[0, 0], RAMP)

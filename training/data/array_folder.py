"""The on-disk form of image data: a folder with `train/` and `test/`, each two plain arrays.

| file | what |
|---|---|
| `train/images.npy`, `test/images.npy` | uint8 (N, C, H, W) |
| `train/labels.npy`, `test/labels.npy` | int64 (N,) |
| `classes.json` | a list of class names, in order of the labels |

Arrays are memory-mapped and nothing in them can execute. A split's folder is at once a payload
folder of `supernet replay --data`. `training.convert` makes such folders from other layouts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """Image data is missing, malformed or inconsistent; the message names the file."""


class ArraySplit(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: np.ndarray
    labels: np.ndarray


class ArrayFolder(NamedTuple):
    """Both splits and the class names."""

    train: ArraySplit
    test: ArraySplit
    classes: tuple[str, ...]


def read_array_folder(folder: str | Path) -> ArrayFolder:
    """Open a folder; arrays stay on disk until they are used. Raises DataError."""
    root = Path(folder)
    try:
        classes = json.loads((root / "classes.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{root / 'classes.json'}: no such file; expected a folder with classes.json, train/ "
            "and test/ (make one with python -m training.convert)"
        ) from None
    except ValueError as error:
        raise DataError(f"{root / 'classes.json'}: not JSON ({error})") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{root / 'classes.json'}: expected a list of class names")
    train, test = (_read_split(root / name, len(classes)) for name in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{root}: train images are {train.images.shape[1:]}, test images "
            f"{test.images.shape[1:]}; both must have one shape"
        )
    return ArrayFolder(train, test, tuple(classes))


def write_array_folder(
    folder: str | Path, train: ArraySplit, test: ArraySplit, classes: Sequence[str]
) -> None:
    """Write a folder; it appears whole or not at all.

    Raises DataError when it exists already, or the arrays do not fit the format.
    """
    root = Path(folder)
    if root.exists():
        raise DataError(f"{root} exists already; choose another folder or delete it")
    for name, split in (("train", train), ("test", test)):
        check_split(split, len(classes), name)
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, split in (("train", train), ("test", test)):
        (partial / name).mkdir(parents=True)
        np.save(partial / name / "images.npy", split.images)
        np.save(partial / name / "labels.npy", split.labels.astype(np.int64))
    (partial / "classes.json").write_text(json.dumps(list(classes)) + "\n", encoding="utf-8")
    partial.replace(root)


def existing(path: Path) -> Path:
    """Return the path. Raises DataError when nothing is there."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return path


def _read_split(folder: Path, num_classes: int) -> ArraySplit:
    arrays: list[np.ndarray] = []
    for name in ("images.npy", "labels.npy"):
        try:
            arrays.append(np.load(folder / name, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            raise DataError(f"{folder / name}: no such file") from None
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"{folder / name}: not a readable .npy file ({error})") from None
        if not isinstance(arrays[-1], np.ndarray):
            raise DataError(f"{folder / name}: an archive of arrays, expected one (numpy.save)")
    split = ArraySplit(*arrays)
    check_split(split, num_classes, str(folder))
    return split._replace(labels=np.asarray(split.labels, dtype=np.int64))


def check_split(split: ArraySplit, num_classes: int, where: str) -> None:
    """Raise DataError, naming `where`, for arrays that are no images and labels of such classes."""
    images, labels = split
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise DataError(
            f"{where}: images are {images.dtype} {images.shape}, expected uint8 (N, C, H, W), N > 0"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where}: labels are {labels.dtype} {labels.shape}, expected int64 ({len(images)},)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"{where}: labels reach from {low} to {high}, allowed 0 to {num_classes - 1} "
            f"({num_classes} classes)"
        )

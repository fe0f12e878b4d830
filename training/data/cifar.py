"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), found in their published layouts or downloaded.

Below a root folder, in this order: an array folder in the root itself, the binary version
(`cifar-10-batches-bin`, `cifar-100-binary`, or its files in the root), the Python version that
torchvision keeps (`cifar-10-batches-py`, `cifar-100-python`); else the binary version is fetched
into the root. The Python version is a pickle: only arrays and plain values are read out of it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np

from training.data.array_folder import (
    ArrayFolder,
    ArraySplit,
    DataError,
    check_split,
    existing,
    read_array_folder,
)

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_PIXELS = 3 * 32 * 32
# All that a pickled array and its containers are made of.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class CifarLayout(NamedTuple):
    """Folders of one data set, the archive of its binary version, and how each is read."""

    binary: str
    pickled: str
    url: str
    md5: str
    read_binary: Callable[[Path], ArrayFolder]
    read_pickled: Callable[[Path], ArrayFolder]


def load_cifar(name: str, root: Path) -> ArrayFolder:
    """Return the data set `cifar10` or `cifar100` from below `root`, fetched when it is not there.

    Raises DataError: malformed files, or no network, with where to put the archive by hand.
    """
    if (root / "classes.json").exists():
        return read_array_folder(root)
    found = _published(LAYOUTS[name], root)
    for part, split in (("train", found.train), ("test", found.test)):
        check_split(split, len(found.classes), f"{root}, {name}, {part}")
    return found


def _published(layout: CifarLayout, root: Path) -> ArrayFolder:
    for folder in (root / layout.binary, root):
        if any(folder.glob("*.bin")):
            return layout.read_binary(folder)
    if (root / layout.pickled).is_dir():
        return layout.read_pickled(root / layout.pickled)
    _download(layout, root)
    return layout.read_binary(root / layout.binary)


def read_cifar10_binary(source: Path) -> ArrayFolder:
    """Read the binary version: records of one label and 3,072 pixels. Raises DataError."""
    parts = [_records(source / f"data_batch_{i}.bin", label_bytes=1) for i in range(1, 6)]
    test = _records(source / "test_batch.bin", label_bytes=1)
    classes = _lines(source / "batches.meta.txt", CIFAR10_CLASSES)
    return ArrayFolder(_joined(parts), test, classes)


def read_cifar100_binary(source: Path) -> ArrayFolder:
    """Read the binary version: coarse label, fine label, 3,072 pixels. Raises DataError."""
    train, test = (_records(source / f"{name}.bin", label_bytes=2) for name in ("train", "test"))
    known = tuple(f"class {i}" for i in range(100))
    return ArrayFolder(train, test, _lines(source / "fine_label_names.txt", known))


def read_cifar10_python(source: Path) -> ArrayFolder:
    """Read the Python version, as torchvision keeps it. Raises DataError."""
    parts = [_pickled(source / f"data_batch_{i}", "labels") for i in range(1, 6)]
    classes = _class_names(source / "batches.meta", "label_names")
    return ArrayFolder(_joined(parts), _pickled(source / "test_batch", "labels"), classes)


def read_cifar100_python(source: Path) -> ArrayFolder:
    """Read the Python version, fine labels, as torchvision keeps it. Raises DataError."""
    train, test = (_pickled(source / name, "fine_labels") for name in ("train", "test"))
    return ArrayFolder(train, test, _class_names(source / "meta", "fine_label_names"))


# Addresses and checksums as published at https://www.cs.toronto.edu/~kriz/cifar.html
LAYOUTS: dict[str, CifarLayout] = {
    "cifar10": CifarLayout(
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        read_cifar10_binary,
        read_cifar10_python,
    ),
    "cifar100": CifarLayout(
        "cifar-100-binary",
        "cifar-100-python",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        read_cifar100_binary,
        read_cifar100_python,
    ),
}


def _download(layout: CifarLayout, root: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(layout.url, str(root), md5=layout.md5)
    except (URLError, OSError, RuntimeError) as error:
        raise DataError(
            f"{root}: holds neither {layout.binary}, {layout.pickled} nor an array folder, and "
            f"{layout.url} can't be fetched ({error}). Fetch and unpack it there by hand, or set "
            "data.path to the folder that holds one of them"
        ) from None


def _joined(parts: list[ArraySplit]) -> ArraySplit:
    return ArraySplit(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _records(path: Path, *, label_bytes: int) -> ArraySplit:
    data = np.frombuffer(existing(path).read_bytes(), dtype=np.uint8)
    length = label_bytes + _PIXELS
    if len(data) == 0 or len(data) % length:
        raise DataError(f"{path}: {len(data)} bytes, expected whole records of {length}")
    records = data.reshape(-1, length)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return ArraySplit(images, records[:, label_bytes - 1].astype(np.int64))


def _pickled(path: Path, labels: str) -> ArraySplit:
    values = _pickled_values(path)
    images = np.asarray(values.get("data"))
    if images.ndim != 2 or images.shape[1] != _PIXELS or labels not in values:
        raise DataError(f"{path}: expected data (N, {_PIXELS}) and {labels}, as published")
    return ArraySplit(images.reshape(-1, 3, 32, 32), np.asarray(values[labels], dtype=np.int64))


def _class_names(path: Path, key: str) -> tuple[str, ...]:
    names = _pickled_values(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected {key}, a list of class names, as published")
    return tuple(names)


def _pickled_values(path: Path) -> dict[str, Any]:
    try:
        with existing(path).open("rb") as file:
            values = _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path}: not a CIFAR batch ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a CIFAR batch (a {type(values).__name__})")
    return values


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and plain values; anything else that a pickle could call is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def _lines(path: Path, default: tuple[str, ...]) -> tuple[str, ...]:
    if not path.exists():
        return default
    return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())

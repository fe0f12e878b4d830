"""The layout of ImageNet and of torchvision's ImageFolder: `train/CLASS/*`, `val/` or `test/`.

What is hidden (`.ipynb_checkpoints`, `.DS_Store`, `._photo.jpg`) is no data, and a picture is known
by its ending whatever its case.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from training.data.array_folder import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MAX_LISTED = 10


class LabelledPaths(NamedTuple):
    """Picture files, class by class, and the label of each."""

    paths: list[Path]
    labels: list[int]


class ClassFolders(NamedTuple):
    """The classes, ascending by name, and the files of both splits."""

    classes: tuple[str, ...]
    train: LabelledPaths
    test: LabelledPaths


def read_class_folders(root: Path) -> ClassFolders:
    """List the files below `root`; `test/` is taken before `val/`.

    Raises DataError: no such layout, an empty class, classes that differ between the splits.
    """
    train = root / "train"
    test = root / "test" if (root / "test").is_dir() else root / "val"
    classes, tested = _class_names(train), _class_names(test)
    if tested != classes:
        only = [
            f"only in {folder.name}/: {', '.join(names[:_MAX_LISTED])}"
            for folder, names in (
                (train, sorted(set(classes) - set(tested))),
                (test, sorted(set(tested) - set(classes))),
            )
            if names
        ]
        raise DataError(
            f"{root}: train/ and {test.name}/ must have the same class folders; {'; '.join(only)}"
        )
    return ClassFolders(classes, _files(train, classes), _files(test, classes))


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected train/CLASS/* and val/ or test/")
    names = (p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = tuple(sorted(names))
    if not classes:
        raise DataError(f"{folder}: no class folder in it")
    return classes


def _files(folder: Path, classes: tuple[str, ...]) -> LabelledPaths:
    found = LabelledPaths([], [])
    for label, name in enumerate(classes):
        paths = sorted(p for p in (folder / name).iterdir() if _is_picture(p))
        if not paths:
            raise DataError(f"{folder / name}: no image in it ({', '.join(SUFFIXES)})")
        found.paths.extend(paths)
        found.labels.extend([label] * len(paths))
    return found


def _is_picture(path: Path) -> bool:
    is_named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return is_named and path.is_file()

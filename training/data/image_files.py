"""Image data that stays on disk: `train/CLASS/*.jpg` with `val/` or `test/` beside it.

The layout of ImageNet and of torchvision's ImageFolder. Files are listed once and decoded when a
batch takes them, by a few threads and one batch ahead, so memory does not grow with the data set.
A training image is a random resized crop, mirrored every other time, drawn by the batch's key; an
evaluation image is resized by its shorter side (8/7 of the size) and cropped at its centre.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from supernet.input import InputSpec
from training.config import DataConfig
from training.data.array_folder import DataError
from training.data.samples import Dataset, Split, split_rows

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MAX_PIXELS = 64_000_000  # of one picture; a decompression bomb is refused beyond it
_MARGIN = 8 / 7  # 256 for 224, as is usual
_MEAN_OF = 256  # images that mean and deviation are taken from
_SCALE, _RATIO = (0.25, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Files with their labels (N,); `take` decodes to (B, 3, size, size) uint8."""

    paths: tuple[Path, ...]
    labels: torch.Tensor
    size: int
    is_cropped_randomly: bool

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: torch.Tensor, key: Sequence[int] | None = None) -> Split:
        """Decode the rows. Raises DataError naming a file that is no readable image."""
        draws: list[np.random.Generator | None] = [None] * len(rows)
        if key is not None and self.is_cropped_randomly:
            draws = [np.random.default_rng((*key, int(row))) for row in rows]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            images = list(pool.map(self._read, [self.paths[int(row)] for row in rows], draws))
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Split(stacked.contiguous(), self.labels[rows])

    def _read(self, path: Path, rng: np.random.Generator | None) -> np.ndarray:
        """(size, size, 3) uint8."""
        try:
            with Image.open(path) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise DataError(f"{path}: {image.width} x {image.height} pixels is too large")
                wanted = math.ceil(self.size * _MARGIN)
                if rng is None:  # the decoder may skip detail that will not be seen
                    image.draft("RGB", (wanted, wanted))
                rgb = image.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as bad:
            raise DataError(f"{path}: not a readable image ({bad})") from None
        box = _centre_box(rgb.size) if rng is None else _random_box(rgb.size, rng)
        square = (self.size, self.size)
        resized = rgb.resize(square, Image.Resampling.BILINEAR, box, reducing_gap=2.0)
        pixels = np.asarray(resized)
        return pixels[:, ::-1] if rng is not None and rng.random() < 0.5 else pixels


def load_image_files(options: DataConfig, seed: int) -> Dataset:
    """List the folder at `options.path`; no image is read but a few for mean and deviation.

    Raises DataError: no such layout, an empty class, classes that differ between the splits.
    """
    root = Path(options.path)
    test_folder = root / "test" if (root / "test").is_dir() else root / "val"
    classes = _class_names(root / "train")
    if _class_names(test_folder) != classes:
        raise DataError(
            f"{root}: train/ and {test_folder.name}/ must have the same class folders; "
            f"{len(classes)} and {len(_class_names(test_folder))} are there"
        )
    random_crop = options.augmentation == "random_resized_crop" and options.augment > 0
    paths, labels = _list(root / "train", classes)
    train_rows, held_out = split_rows(len(paths), options, seed, str(root))

    def files(rows: Sequence[int], of: list[Path], their: list[int], crop: bool) -> ImageFiles:
        known = torch.tensor([their[i] for i in rows])
        return ImageFiles(tuple(of[i] for i in rows), known, options.size, crop)

    train = files(train_rows.tolist(), paths, labels, random_crop)
    test_paths, test_labels = _list(test_folder, classes)
    return Dataset(
        name=root.name,
        input=_input_of(train),
        classes=classes,
        train=train,
        validation=files(held_out.tolist(), paths, labels, False),
        test=files(range(len(test_paths)), test_paths, test_labels, False),
    )


def _input_of(train: ImageFiles) -> InputSpec:
    every = max(1, len(train) // _MEAN_OF)
    sample = train.take(torch.arange(0, len(train), every)[:_MEAN_OF]).images.double() / 255.0
    mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
    return InputSpec(
        channels=3,
        height=train.size,
        width=train.size,
        mean=tuple(round(float(m), 4) for m in mean),
        std=tuple(max(0.01, round(float(s), 4)) for s in std),
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected train/CLASS/* and val/ or test/")
    classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    if not classes:
        raise DataError(f"{folder}: no class folder in it")
    return classes


def _list(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{folder / name}: no image in it ({', '.join(SUFFIXES)})")
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _centre_box(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The centre square that 7/8 of the shorter side span."""
    width, height = size
    side = min(width, height) / _MARGIN
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def _random_box(
    size: tuple[int, int], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random part of the area at a random aspect ratio; the whole image where none fits."""
    width, height = size
    for _ in range(10):
        area = rng.uniform(_SCALE[0], _SCALE[1]) * width * height
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return (left, top, left + w, top + h)
    return (0.0, 0.0, float(width), float(height))

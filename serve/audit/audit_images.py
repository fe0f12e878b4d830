"""`AuditImages`: what an attacker asks with, and what an auditor judges with.

A data folder as training makes them (`images.npy`, `labels.npy`, or `test/` and `train/` with
those); else one of `SUPERNET_DATA_DIR`; else crops of the two photographs that scikit-learn ships:
natural, unlabelled, of none of the model's classes. Fidelity to a victim needs no labels.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from traces.open_loop.payloads import load_payloads

DATA_DIR = "SUPERNET_DATA_DIR"
_SHIPPED = 12_000
_TINY = "tiny_imagenet_50/train.npz"
_MOST = 20_000


class AuditImages(NamedTuple):
    """Images uint8 (N, C, H, W) in drawn order, their labels if known, and of which source.

    `members`: images that the model was trained on, None where there are none.
    """

    images: np.ndarray
    labels: np.ndarray | None
    members: np.ndarray | None
    source: str

    def split(self, count: int) -> tuple[AuditImages, AuditImages]:
        """Return the first `count` images, for an attacker, and the others, for the judge."""
        return self._part(slice(None, count)), self._part(slice(count, None))

    def _part(self, part: slice) -> AuditImages:
        labels = None if self.labels is None else self.labels[part]
        return AuditImages(self.images[part], labels, self.members, self.source)


def find_images(data: Path | None, shape: tuple[int, ...], seed: int) -> AuditImages:
    """Return images (C, H, W) of `shape`, shuffled. Raises TraceError for a malformed folder.

    Raises ValueError where the folder's images have another shape.
    """
    found = _given(data) if data is not None else _beside(shape)
    if found.images.shape[1:] != shape:
        raise ValueError(
            f"{found.source}: images are {found.images.shape[1:]}, the model takes {shape}"
        )
    order = np.random.default_rng(seed).permutation(len(found.images))[:_MOST]
    labels = None if found.labels is None else found.labels[order]
    return AuditImages(found.images[order], labels, found.members, found.source)


def distinct(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return `count` different images: those given, then shifted and mirrored ones of them."""
    if count <= len(images):
        return images[:count]
    rng = np.random.default_rng(seed)
    made = [images]
    while sum(map(len, made)) < count:
        rows, columns = rng.integers(-3, 4, 2)
        moved = np.roll(images, (int(rows), int(columns)), axis=(2, 3))
        made.append(moved[..., ::-1] if rng.random() < 0.5 else moved)
    return np.concatenate(made)[:count]


def _given(data: Path) -> AuditImages:
    test = data / "test" if (data / "test").is_dir() else data
    payloads = load_payloads(test)
    train = data / "train" if (data / "train").is_dir() else data.parent / "train"
    members = load_payloads(train).images if (train / "images.npy").is_file() else None
    return AuditImages(payloads.images, payloads.labels, members, str(data))


def _beside(shape: tuple[int, ...]) -> AuditImages:
    root = os.environ.get(DATA_DIR)
    if root is not None and (Path(root) / "cifar10" / "test" / "images.npy").is_file():
        return _given(Path(root) / "cifar10")
    if root is not None and (Path(root) / _TINY).is_file():
        return AuditImages(_tiny_imagenet(Path(root) / _TINY, shape), None, None, _TINY)
    return AuditImages(_crops(shape), None, None, "crops of scikit-learn's two photographs")


def _tiny_imagenet(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    arrays = np.load(path, allow_pickle=False)
    offsets, jpeg = arrays["offsets"], arrays["jpeg"]
    order = np.random.default_rng(0).permutation(len(offsets) - 1)[:_MOST]
    images = np.empty((len(order), *shape), dtype=np.uint8)
    for place, index in enumerate(order):
        file = jpeg[offsets[index] : offsets[index + 1]].tobytes()
        images[place] = _fitted(Image.open(io.BytesIO(file)), shape)
    return images


def _crops(shape: tuple[int, ...]) -> np.ndarray:
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    images = np.empty((_SHIPPED, *shape), dtype=np.uint8)
    for place in range(_SHIPPED):
        photograph = photographs[place % len(photographs)]
        side = int(rng.integers(32, 200))
        left = int(rng.integers(0, photograph.width - side))
        top = int(rng.integers(0, photograph.height - side))
        images[place] = _fitted(photograph.crop((left, top, left + side, top + side)), shape)
    return images


def _fitted(picture: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    resized = picture.convert("RGB").resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)

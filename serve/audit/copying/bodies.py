"""Frozen bodies of an attacker's student: features of images that no query was spent on.

Where `SUPERNET_DATA_DIR` has a ResNet-20 that others trained on CIFAR-10, and the images fit it,
that is the body: an attacker who owns a good network of the same kind. Else k-means patches
(Coates, Ng and Lee, AISTATS 2011), learned on the attacker's own images without labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serve.audit.audit_images import DATA_DIR

_RESNET = "cifar10_resnets/resnet20.npz"
_CHUNK = 500
_PATCH, _STRIDE = 6, 2
_CENTRES = 96
_PATCHES = 40_000

Features = Callable[[np.ndarray], np.ndarray]


class FrozenBody(NamedTuple):
    """`features(images)` returns float32 (N, d); `name` says what it is."""

    name: str
    features: Features


def find_body(images: np.ndarray, seed: int) -> FrozenBody:
    """Return the best body there is for images (N, C, H, W)."""
    root = os.environ.get(DATA_DIR)
    if root is not None and images.shape[1:] == (3, 32, 32) and (Path(root) / _RESNET).is_file():
        return FrozenBody(
            "a ResNet-20 that others trained on CIFAR-10", _resnet(Path(root) / _RESNET)
        )
    return FrozenBody("k-means patches of the attacker's images", _patches(images, seed))


def _resnet(path: Path) -> Features:
    import torch

    from supernet import extract
    from supernet.weights.expected_input import input_of
    from supernet.weights.import_weights import import_supernet

    name = "resnet20_cifar_a"
    definition, state = import_supernet(path, origin="cifar_resnet", supernet=name)
    net, spec = extract(state, definition, definition.space.largest), input_of(definition, name)
    net.eval()
    (head,) = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    caught: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))

    def features(images: np.ndarray) -> np.ndarray:
        caught.clear()
        with torch.inference_mode():
            for start in range(0, len(images), _CHUNK):
                net(spec.normalise(torch.from_numpy(images[start : start + _CHUNK]), spec.height))
        return torch.cat(caught).numpy()

    return features


def _patches(images: np.ndarray, seed: int) -> Features:
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(seed)
    drawn = _normalised(_all_patches(images[rng.permutation(len(images))[:200]]))
    drawn = drawn.reshape(-1, drawn.shape[-1])
    drawn = drawn[rng.permutation(len(drawn))[:_PATCHES]]
    means = MiniBatchKMeans(_CENTRES, random_state=seed, batch_size=2048).fit(drawn)
    centres = np.asarray(means.cluster_centers_, dtype=np.float32)

    def features(images: np.ndarray) -> np.ndarray:
        rows: list[np.ndarray] = []
        for start in range(0, len(images), _CHUNK):
            patches = _normalised(_all_patches(images[start : start + _CHUNK]))  # (N, h, w, d)
            squared = (patches**2).sum(-1, keepdims=True) - 2 * patches @ centres.T
            distances = np.sqrt(np.maximum(squared + (centres**2).sum(-1), 0.0))
            active = np.maximum(distances.mean(-1, keepdims=True) - distances, 0.0)
            half = active.shape[1] // 2
            quarters = [
                active[:, rows_, columns].mean((1, 2))
                for rows_ in (slice(None, half), slice(half, None))
                for columns in (slice(None, half), slice(half, None))
            ]
            rows.append(np.concatenate(quarters, axis=1))
        return np.concatenate(rows).astype(np.float32)

    return features


def _all_patches(images: np.ndarray) -> np.ndarray:
    """Return the patches of images (N, C, H, W), float32 (N, rows, columns, d)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (_PATCH, _PATCH), axis=(2, 3))
    windows = windows[:, :, ::_STRIDE, ::_STRIDE].transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(*windows.shape[:3], -1).astype(np.float32)


def _normalised(patches: np.ndarray) -> np.ndarray:
    centred = patches - patches.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + 10.0)

"""A payload folder: the samples that a replay sends, with their labels.

`images.npy` is uint8 (N, C, H, W), `labels.npy` int64 (N,), and the optional `classes.json` a list
of class names. The arrays are memory-mapped, so a large folder costs what is touched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from traces.trace import TraceError


class Payloads(NamedTuple):
    """Samples (N, C, H, W) uint8, labels (N,) int64 or None, class names (may be empty)."""

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] = ()


def load_payloads(folder: Path | str) -> Payloads:
    """Read a payload folder; labels are optional, samples are not.

    Raises:
        TraceError: naming the file, what it holds and what is expected.
    """
    folder = Path(folder)
    images = _load_array(folder / "images.npy", "uint8 (N, C, H, W)")
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise _unexpected(folder / "images.npy", images, "non-empty uint8 (N, C, H, W)")
    labels_path = folder / "labels.npy"
    if not labels_path.exists():
        return Payloads(images, None, _load_classes(folder / "classes.json"))
    labels = _load_array(labels_path, "int64 (N,)")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise _unexpected(labels_path, labels, f"int64 ({len(images)},), one per image")
    return Payloads(images, labels, _load_classes(folder / "classes.json"))


def _load_array(path: Path, wanted: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file; a payload folder needs it as {wanted}") from None
    except (OSError, ValueError, EOFError) as error:
        raise TraceError(f"{path}: not a readable .npy file ({error}); expected {wanted}") from None


def _load_classes(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TraceError(f"{path}: expected a JSON list of class names")
    return tuple(names)


def _unexpected(path: Path, array: np.ndarray, wanted: str) -> TraceError:
    return TraceError(f"{path}: holds {array.dtype} {array.shape}, expected {wanted}")

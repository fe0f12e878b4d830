"""Payloads: the samples that a replay sends, with their labels; a folder of yours, or noise.

`images.npy` holds the samples (N, ...), such as uint8 (N, C, H, W), `labels.npy` int64 (N,), and
the optional `classes.json` a list of class names. The arrays are memory-mapped, so a large folder
costs what is touched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from traces.open_loop.target import DTYPES, Model, TensorSpec
from traces.trace import TraceError

NUM_NOISE = 64


class Payloads(NamedTuple):
    """Samples (N, ...), labels (N,) int64 or None, class names (may be empty)."""

    images: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def fitted(self, tensor: TensorSpec) -> Payloads:
        """Return these samples in the type that the model takes; numbers keep their value.

        Raises:
            TraceError: samples of another shape, or of a type whose values would not survive.
        """
        given, wanted = self.images.shape[1:], tensor.sample_shape
        fits = all(w in (-1, g) for g, w in zip(given, wanted, strict=False))
        if len(given) != len(wanted) or not fits:
            raise TraceError(f"samples have shape {list(given)}, the model takes {list(wanted)}")
        dtype = _dtype(tensor)
        if not np.can_cast(self.images.dtype, dtype, "safe"):
            raise TraceError(f"samples are {self.images.dtype}, the model takes {tensor.datatype}")
        return self._replace(images=self.images.astype(dtype, copy=False))


def load_payloads(folder: Path | str) -> Payloads:
    """Read a payload folder; labels are optional, samples are not.

    Raises:
        TraceError: naming the file, what it holds and what is expected.
    """
    folder = Path(folder)
    images = _load_array(folder / "images.npy", "numbers (N, ...), such as uint8 (N, C, H, W)")
    if images.dtype.kind not in "buif" or images.ndim < 2 or len(images) == 0:
        raise _unexpected(folder / "images.npy", images, "numbers (N, ...), N at least 1")
    labels_path = folder / "labels.npy"
    if not labels_path.exists():
        return Payloads(images, None, _load_classes(folder / "classes.json"))
    labels = _load_array(labels_path, "int64 (N,)")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise _unexpected(labels_path, labels, f"int64 ({len(images)},), one per image")
    return Payloads(images, labels, _load_classes(folder / "classes.json"))


def noise_payloads(model: Model, seed: int) -> Payloads:
    """Return `NUM_NOISE` samples of uniform noise: whole numbers, or [0, 1).

    Whole numbers come from the range that the model's parameter `input_range` names, else they are
    bytes or small. Texts, whose length is open, are as long as `max_tokens` allows.

    Raises:
        TraceError: the model leaves sizes open or takes no numbers; give samples then.
    """
    tensor, parameters = model.tensor, model.parameters
    sizes = tensor.sample_shape
    longest = parameters.get("max_tokens")
    if sizes == (-1,) and type(longest) is int and longest > 0:
        sizes = (longest,)
    if any(size < 0 for size in sizes):
        raise TraceError(
            f"the model takes samples of shape {list(sizes)}, -1 being any size: "
            "give samples (--data)"
        )
    rng, dtype = np.random.default_rng(seed), _dtype(tensor)
    shape = (NUM_NOISE, *sizes)
    if dtype.kind == "f":
        return Payloads(rng.random(shape).astype(dtype), None)
    low, high = _range(parameters.get("input_range"), dtype)
    return Payloads(rng.integers(low, high, size=shape, endpoint=True).astype(dtype), None)


def _range(told: object, dtype: np.dtype) -> tuple[int, int]:
    """Return the lowest and highest number to draw: as a server tells them, else small ones."""
    match told:
        case [int() as low, int() as high] if _fits(low, high, dtype):
            return low, high
        case _:
            return 0, {"b": 1, "i": 127, "u": 255}[dtype.kind]


def _fits(low: int, high: int, dtype: np.dtype) -> bool:
    if dtype.kind == "b":
        return False
    limits = np.iinfo(dtype)
    return limits.min <= low <= high <= limits.max


def _dtype(tensor: TensorSpec) -> np.dtype:
    if tensor.datatype not in DTYPES:
        raise TraceError(
            f"the model's input {tensor.name!r} is {tensor.datatype}; a replay sends "
            f"{', '.join(DTYPES)}"
        )
    return DTYPES[tensor.datatype]


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

"""SUSHI's encoding of a subnet or subgraph: kernels and channels per layer, 0 where absent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from subnetact.cache import SliceKey


def layers_of(keys: Iterable[SliceKey]) -> list[str]:
    """Return the layers of some slices, in the order that encodings use."""
    return sorted({key.layer for key in keys})


def encode(keys: Iterable[SliceKey], layers: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return [kernels, channels] of the largest slice of each layer, one after another."""
    place = {layer: 2 * n for n, layer in enumerate(layers)}
    encoding = np.zeros(2 * len(layers))
    for key in keys:
        at = place.get(key.layer)
        if at is not None:
            encoding[at : at + 2] = np.maximum(encoding[at : at + 2], key.shape[:2])
    return encoding

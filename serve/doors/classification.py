"""The protocol's classification extension: the most likely classes in the place of logits.

Each class is a text, `VALUE:INDEX`, as Triton writes it for a model without labels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from serve.proto.names import BYTES_LENGTH

BYTES_TYPE = "BYTES"


def classes_of(logits: np.ndarray, count: int) -> list[list[str]]:
    """Return the `count` classes of the highest logits (B, num_classes), highest first.

    Of equal ones the lower index comes first; of fewer classes than `count`, all.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [f"{row[index]:f}:{index}" for index in chosen]
        for row, chosen in zip(logits.tolist(), order.tolist(), strict=True)
    ]


def packed(texts: Iterable[str]) -> bytes:
    """Return the elements of a raw BYTES tensor, each behind its length."""
    encoded = [text.encode() for text in texts]
    return b"".join(BYTES_LENGTH.pack(len(text)) + text for text in encoded)

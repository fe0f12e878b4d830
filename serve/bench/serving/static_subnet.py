"""`StaticSubnet`: one extracted subnet as people serve it without a supernet: plain eager torch."""

from __future__ import annotations

import numpy as np
import torch

from supernet.checkpoint import Checkpoint
from supernet.subnets.extract import extract


class StaticSubnet:
    """An independent module, channels last, BatchNorm and all; the specification, not compiled."""

    def __init__(self, checkpoint: Checkpoint, subnet_id: str, *, threads: int) -> None:
        self._arch = checkpoint.subnet(subnet_id).arch
        self._input = checkpoint.input
        self._threads = threads
        net = extract(
            checkpoint.state,
            checkpoint.definition,
            self._arch,
            checkpoint.norm_statistics[subnet_id],
        )
        self._net = net.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Run (B, C, H, W) uint8 samples, return (B, num_classes) float32 logits."""
        if torch.get_num_threads() != self._threads:  # torch keeps it per thread
            torch.set_num_threads(self._threads)
        x = self._input.as_served(torch.from_numpy(inputs), self._arch.resolution)
        return self._net(x).float().numpy()

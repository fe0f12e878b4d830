"""`PackedExecutor`: runs batches on a CPU, with the hot slices packed for oneDNN.

The plain twin is `EagerExecutor`, and both give the same results. What fits the budget is packed at
the start, in the order of the subnets given; the rest runs on views. Without oneDNN (another
build, another machine) everything runs on views, with one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch

from subnetact.cache import SubgraphCache
from subnetact.executor import ThreadCount, check_inputs, computing_with
from subnetact.norms import FoldedNorms
from subnetact.packed_supernet import PackedSupernet
from subnetact.packing import is_available
from supernet.checkpoint import Checkpoint


class PackedExecutor:
    """An `Executor` on a CPU whose subnets share a `SubgraphCache`."""

    device = "cpu"
    dtype = "float32"
    details = ""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        packing: str = "folded",
        threads: int | None = 1,
        max_batch_size: int = 16,
        subnet_ids: Iterable[str] | None = None,
        budget_bytes: int | None = None,
    ):
        """Register the subnets (default: all served ones) and pack what `budget_bytes` allows.

        `packing` is `folded` or `shared`. Raises CheckpointError for a subnet that the checkpoint
        does not serve, ValueError for another packing or a number that is out of range.
        """
        for name, value in (("threads", threads), ("max_batch_size", max_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, allowed 1 or more")
        self.packing = packing
        self.threads = threads
        self.max_batch_size = max_batch_size
        self.input_shape = checkpoint.input_shape
        self.num_classes = checkpoint.num_classes
        self._input = checkpoint.input
        self._thread_count = ThreadCount(threads)
        state = {name: _channels_last(tensor) for name, tensor in checkpoint.state.items()}
        wanted = checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids)
        self.net = PackedSupernet(
            checkpoint.definition,
            state,
            FoldedNorms(checkpoint.definition, state),
            SubgraphCache(budget_bytes),
            max_programs=max(64, len(wanted)),
        )
        for subnet_id in wanted:
            arch = checkpoint.subnet(subnet_id).arch
            self.net.register(arch, checkpoint.norm_statistics[subnet_id])
        if not is_available():
            warnings.warn(
                "this build of torch cannot pack for oneDNN here: all subnets run on views, "
                "slower, with the same results",
                RuntimeWarning,
                stacklevel=2,
            )
        with computing_with(threads):  # layouts depend on it
            for subnet_id in wanted:
                self.net.load(self.net.slices(subnet_id, packing))

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the subnets that can be run."""
        return self.net.subnet_ids

    @torch.inference_mode()
    def run(self, subnet_id: str, inputs: np.ndarray) -> np.ndarray:
        """Run (B, C, H, W) uint8 samples on a subnet, return (B, num_classes) float32 logits.

        Raises KeyError for an unknown subnet, ValueError for inputs of another shape or type.
        """
        check_inputs(inputs, self.input_shape)
        self._thread_count.use()
        resolution = self.net.arch(subnet_id).resolution
        x = self._input.normalise(torch.from_numpy(inputs), resolution)
        return self.net.run(subnet_id, _channels_last(x)).float().numpy()

    def warm_up(self) -> None:
        """Run every subnet at the smallest and the largest batch size."""
        for batch_size in (self.max_batch_size, 1):
            inputs = np.zeros((batch_size, *self.input_shape), dtype=np.uint8)
            for subnet_id in self.subnet_ids:
                self.run(subnet_id, inputs)

    def close(self) -> None:
        """Let go of what is packed."""
        self.net.cache.clear()


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)

"""A CUDA executor with a CPU in place of the device, and what its results are held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from subnetact.cuda.accelerator import Accelerator
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.cuda.cuda_supernet import resident_bytes
from supernet import Checkpoint, extract
from tests.subnetact.cuda.lane_accelerator import LaneAccelerator

TOLERANCE = {
    "shared": 1e-5,
    "folded": 2e-4,
    "one_copy": 1e-5,
}  # relative to the largest logit, float32
BF16_TOLERANCE = 0.05


def make_executor(
    checkpoint: Checkpoint, accelerator: Accelerator | None = None, **options: Any
) -> CudaExecutor:
    options.setdefault("dtype", torch.float32)
    return CudaExecutor(checkpoint, accelerator or LaneAccelerator(), **options)


def samples(rng: np.random.Generator, batch_size: int) -> np.ndarray:
    return rng.integers(0, 256, size=(batch_size, 1, 8, 8), dtype=np.uint8)


def oracle(checkpoint: Checkpoint, subnet_id: str, inputs: np.ndarray) -> np.ndarray:
    arch = checkpoint.subnet(subnet_id).arch
    static = extract(
        checkpoint.state, checkpoint.definition, arch, checkpoint.norm_statistics[subnet_id]
    )
    with torch.inference_mode():
        x = checkpoint.input.normalise(torch.from_numpy(inputs), arch.resolution)
        return static(x).numpy()


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def all_bytes(executor: CudaExecutor) -> int:
    return resident_bytes(s for i in executor.subnet_ids for s in executor.net.slices(i))

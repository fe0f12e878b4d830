"""Normalisation statistics of one subnet, recomputed by forward passes over training data.

Running statistics of a weight-shared supernet describe no subnet, so every subnet gets its own
before it is evaluated or served. Each BatchNorm normalises with the batch's own statistics while
the moments are pooled over all batches: mean E[x] and biased variance E[x^2] - E[x]^2, exact for
the whole calibration set (OFA averages batch variances instead, which misses the variance of the
batch means).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class _PooledMoments:
    """Sums of x and x^2 per channel over all batches, in float64."""

    def __init__(self, norm: nn.BatchNorm2d):
        self._sum = torch.zeros(norm.num_features, dtype=torch.float64)
        self._square = torch.zeros(norm.num_features, dtype=torch.float64)
        self._count = 0

    def add(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Take in a batch's moments per channel over `count` values."""
        mean, variance = mean.double().cpu(), variance.double().cpu()
        self._sum += count * mean
        self._square += count * (variance + mean.square())
        self._count += count

    def mean_and_variance(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self._sum / self._count
        variance = (self._square / self._count - mean.square()).clamp_(min=0.0)
        return mean.to(torch.float32), variance.to(torch.float32)


@torch.inference_mode()
def calibrate(subnet: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Recompute the running statistics of an extracted subnet, in place.

    `batches` yields normalised inputs (B, C, H, W). Everything but BatchNorm runs in eval mode.
    Returns {buffer name: tensor} with `running_mean` and `running_var` of every BatchNorm.
    Raises ValueError when there is no batch.
    """
    subnet.eval()
    norms = {n: m for n, m in subnet.named_modules() if isinstance(m, nn.BatchNorm2d)}
    moments = {name: _PooledMoments(norm) for name, norm in norms.items()}
    originals = {name: norm.forward for name, norm in norms.items()}
    for name, norm in norms.items():
        norm.forward = _normalise_with_batch(norm, moments[name])  # type: ignore[method-assign]
    try:
        num_batches = sum(1 for _ in map(subnet, batches))
    finally:
        for name, norm in norms.items():
            norm.forward = originals[name]  # type: ignore[method-assign]
    if num_batches == 0:
        raise ValueError("calibration needs at least one batch of inputs, got none")
    statistics: dict[str, torch.Tensor] = {}
    for name, norm in norms.items():
        mean, variance = moments[name].mean_and_variance()
        norm.running_mean, norm.running_var = mean.to(norm.weight), variance.to(norm.weight)
        statistics[f"{name}.running_mean"] = mean
        statistics[f"{name}.running_var"] = variance
    return statistics


def _normalise_with_batch(norm: nn.BatchNorm2d, moments: _PooledMoments):
    def forward(x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        # The kernel that normalises has the moments already; a pass of our own over x in float64
        # took longer than the convolutions.
        y, mean, inverse = torch.native_batch_norm(
            x, norm.weight, norm.bias, None, None, True, 0.0, norm.eps
        )
        variance = inverse.double().pow(-2) - norm.eps
        moments.add(mean, variance, x.numel() // x.shape[1])
        return y

    return forward

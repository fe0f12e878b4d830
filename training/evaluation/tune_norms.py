"""Normalisation of each served subnet, tuned by gradient while all weights stand still.

Subnets share the affine vectors of their norms, though each has statistics of its own; networks
whose widths had vectors of their own too were more accurate (Yu et al., Slimmable Neural Networks,
ICLR 2019). They need no room beside the statistics: with scale `g` and offset `b` shared,

    g s (x - m) / d + b + t  =  g (x - m') / d' + b    where d' = d / s, m' = m - t d' / g

so a scale `s` > 0 and an offset `t` of a subnet's own *are* other statistics, which every executor
takes as they are. `s` and `t` are learnt from the full model's soft outputs, all subnets side by
side, so that the full model runs once per batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from supernet import Arch, InputSpec, SupernetDefinition, extract
from training.config import DataConfig
from training.data.augment import DrawKey, augment
from training.data.data import epoch_batches, steps_per_epoch
from training.data.samples import Samples, Split

_SMALLEST_SCALE = 1e-3  # below it an offset would need statistics far from any activation
_LR = 3e-3

Statistics = dict[str, torch.Tensor]


class TuningOptions(NamedTuple):
    """How long, on what. `epochs` may be a fraction; `data` says batch size and augmentation."""

    epochs: float
    data: DataConfig
    seed: int = 0


class _TunedSubnet:
    """One extracted subnet whose norms have a scale and an offset to learn."""

    def __init__(self, subnet: nn.Module, resolution: int):
        self.subnet, self.resolution = subnet.requires_grad_(False), resolution
        self._norms = {n: m for n, m in subnet.named_modules() if isinstance(m, nn.BatchNorm2d)}
        self._scales: dict[str, nn.Parameter] = {}
        self._offsets: dict[str, nn.Parameter] = {}
        for name, norm in self._norms.items():
            self._scales[name] = nn.Parameter(torch.zeros_like(norm.weight))
            self._offsets[name] = nn.Parameter(torch.zeros_like(norm.weight))
            norm.forward = self._forward(name, norm)  # type: ignore[method-assign]

    def parameters(self) -> list[nn.Parameter]:
        """What is learnt: a logarithm of the scale and an offset per channel."""
        return [*self._scales.values(), *self._offsets.values()]

    def _forward(self, name: str, norm: nn.BatchNorm2d) -> Callable[[torch.Tensor], torch.Tensor]:
        movable = norm.weight.abs() > _SMALLEST_SCALE

        def forward(x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
            weight = norm.weight * self._scales[name].exp()
            bias = norm.bias + self._offsets[name] * movable
            return F.batch_norm(
                x, norm.running_mean, norm.running_var, weight, bias, False, 0.0, norm.eps
            )

        return forward

    @torch.no_grad()
    def statistics(self) -> Statistics:
        """The statistics that do the same with the shared vectors."""
        made: Statistics = {}
        for name, norm in self._norms.items():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            movable = norm.weight.abs() > _SMALLEST_SCALE
            deviation = (norm.running_var.double() + norm.eps).sqrt()
            # A variance is not negative, so no deviation is below that of eps.
            deviation = (deviation / self._scales[name].double().exp()).clamp_min(norm.eps**0.5)
            moved = self._offsets[name].double() * deviation / norm.weight.double()
            mean = norm.running_mean.double() - torch.where(movable, moved, 0.0)
            made[f"{name}.running_mean"] = mean.float()
            made[f"{name}.running_var"] = (deviation.square() - norm.eps).clamp_min(0.0).float()
        return made


def tune_norms(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    statistics: Mapping[Arch, Statistics],
    samples: Samples,
    input_spec: InputSpec,
    options: TuningOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Arch, Statistics]:
    """Return tuned statistics of each arch; the largest's, which teaches, stay as they are.

    `statistics` are calibrated ones of every arch and of the largest. Adam, its rate falling along
    a line to zero; cross-entropy with the largest's probabilities on augmented training samples.
    Raises ValueError when the largest's statistics are missing, or there is less than one batch.
    """
    largest = definition.space.largest
    if not definition.buffer_shapes(largest):
        raise ValueError(f"{definition.family_name} has no BatchNorm whose norms could be tuned")
    if largest not in statistics:
        raise ValueError(f"tuning needs the statistics of {largest.subnet_id}, which teaches")
    size = options.data.batch_size
    total = round(options.epochs * steps_per_epoch(samples, size))
    if total < 1 or len(samples) < size:
        raise ValueError(
            f"{options.epochs:g} epochs of {len(samples)} samples are less than one batch of {size}"
        )
    teacher = extract(state, definition, largest, statistics[largest])
    tuned = {
        arch: _TunedSubnet(extract(state, definition, arch, own), arch.resolution)
        for arch, own in statistics.items()
        if arch != largest
    }
    optimizers = {a: torch.optim.Adam(t.parameters(), lr=_LR) for a, t in tuned.items()}
    for step, batch in zip(range(total), _batches(samples, options), strict=False):
        key = DrawKey(options.seed, step)
        images = {
            r: augment(batch.images, input_spec, r, options.data, key)
            for r in {largest.resolution, *(t.resolution for t in tuned.values())}
        }
        with torch.no_grad():
            targets = torch.softmax(teacher(images[largest.resolution]), 1)
        for arch, one in tuned.items():
            for group in optimizers[arch].param_groups:
                group["lr"] = _LR * (1.0 - step / total)
            optimizers[arch].zero_grad()
            F.cross_entropy(one.subnet(images[one.resolution]), targets).backward()
            optimizers[arch].step()
        progress(step + 1, total)
    return {a: tuned[a].statistics() if a in tuned else own for a, own in statistics.items()}


def _batches(samples: Samples, options: TuningOptions) -> Iterator[Split]:
    """Shuffled batches, epoch after epoch."""
    flips = options.data.augmentation == "crop_alternating_flip"
    for epoch in count():
        yield from epoch_batches(
            samples, options.data.batch_size, options.seed, epoch, alternating_flip=flips
        )

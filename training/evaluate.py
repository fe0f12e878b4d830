"""What the subnets are worth: calibrate, measure on held-out images, keep the Pareto set.

Statistics are calibrated on training images, accuracy is measured in eval mode on images that
were never trained on. A subnet is dropped when another one is at least as accurate and no more
expensive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from supernet import Arch, InputSpec, ServedSubnet, SupernetDefinition, calibrate, cost, extract
from supernet.space import SearchSpace
from training.data import Split

_BATCH_SIZE = 64
_ARCHS = 3

Progress = Callable[[int, int], None]


class Evaluation(NamedTuple):
    """Measured subnets ascending in MACs, and the calibrated statistics of each by id."""

    subnets: tuple[ServedSubnet, ...]
    norm_statistics: dict[str, dict[str, torch.Tensor]]


def candidate_archs(space: SearchSpace, *, random_archs: int, seed: int) -> list[Arch]:
    """The space's ladder from smallest to largest, and random archs between."""
    rng = np.random.default_rng((seed, _ARCHS))
    archs = [*space.ladder(), *(space.sample(rng) for _ in range(random_archs))]
    return list(dict.fromkeys(archs))


def evaluate(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    archs: Sequence[Arch],
    *,
    input_spec: InputSpec,
    calibration_images: torch.Tensor,
    held_out: Split,
    progress: Progress | None = None,
) -> Evaluation:
    """Calibrate and measure each arch. `calibration_images` are (N, C, H, W) uint8.

    Raises ValueError when there is no image to calibrate or to measure on.
    """
    if not len(held_out):
        raise ValueError("evaluation needs held-out images, got none")
    measured: list[ServedSubnet] = []
    statistics: dict[str, dict[str, torch.Tensor]] = {}
    for done, arch in enumerate(archs, start=1):
        subnet = extract(state, definition, arch)
        statistics[arch.subnet_id] = calibrate(
            subnet, _inputs(calibration_images, input_spec, arch.resolution)
        )
        correct = count_correct(subnet, held_out, input_spec, arch.resolution)
        macs, params = cost(definition, arch)
        measured.append(
            ServedSubnet(
                arch=arch,
                accuracy=correct / len(held_out),
                ci95=wilson_interval(correct, len(held_out)),
                macs=macs,
                params=params,
            )
        )
        if progress is not None:
            progress(done, len(archs))
    measured.sort(key=lambda s: (s.macs, s.subnet_id))
    return Evaluation(tuple(measured), statistics)


def pareto(evaluation: Evaluation) -> Evaluation:
    """Keep subnets that are more accurate than every cheaper one."""
    kept: list[ServedSubnet] = []
    for subnet in evaluation.subnets:
        if not kept or subnet.accuracy > kept[-1].accuracy:
            kept.append(subnet)
    return Evaluation(
        tuple(kept), {s.subnet_id: evaluation.norm_statistics[s.subnet_id] for s in kept}
    )


@torch.inference_mode()
def count_correct(
    net: torch.nn.Module, split: Split, input_spec: InputSpec, resolution: int
) -> int:
    """How many images of a split the network classifies correctly, in eval mode."""
    assert not net.training, "measuring in train mode would use the held-out batch's statistics"
    predictions = [net(x).argmax(1).cpu() for x in _inputs(split.images, input_spec, resolution)]
    return int((torch.cat(predictions) == split.labels).sum())


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson, JASA 1927)."""
    z = 1.959963984540054
    p, denominator = correct / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / denominator
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def _inputs(images: torch.Tensor, input_spec: InputSpec, resolution: int) -> Iterator[torch.Tensor]:
    for batch in images.split(_BATCH_SIZE):
        yield input_spec.normalise(batch, resolution).contiguous(memory_format=torch.channels_last)

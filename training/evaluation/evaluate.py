"""What the subnets are worth: calibrate, measure on held-out images, keep the Pareto set.

Statistics are calibrated on training images, accuracy is measured in eval mode on images that
were never trained on. A subnet is dropped when another one is at least as accurate and no more
expensive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

from supernet import Arch, InputSpec, ServedSubnet, SupernetDefinition, calibrate, cost, extract
from supernet.space import SearchSpace
from training.data.data import batches_of, drawn_batches
from training.data.samples import Samples
from training.evaluation.retrieval import nearest_neighbours, reference_neighbours

_BATCH_SIZE = 64

Progress = Callable[[int, int], None]


class Measurement(NamedTuple):
    """One subnet: which of the (N,) held-out samples it got right, and its statistics.

    Right is the label, or for an embedding the neighbour that the largest subnet finds.
    """

    arch: Arch
    correct: torch.Tensor
    statistics: dict[str, torch.Tensor]

    @property
    def accuracy(self) -> float:
        """A fraction."""
        return float(self.correct.double().mean())

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % confidence interval."""
        return wilson_interval(int(self.correct.sum()), len(self.correct))


class Accurate(Protocol):
    """A subnet whose accuracy is known."""

    @property
    def arch(self) -> Arch: ...

    @property
    def accuracy(self) -> float: ...


_Accurate = TypeVar("_Accurate", bound=Accurate)


class Evaluation(NamedTuple):
    """Measured subnets ascending in MACs, and the calibrated statistics of each by id."""

    subnets: tuple[ServedSubnet, ...]
    norm_statistics: dict[str, dict[str, torch.Tensor]]


def uniform_archs(space: SearchSpace) -> list[Arch]:
    """Every uniform shape of a space, and its ladder (which knows resolutions too)."""
    return list(dict.fromkeys((*space.ladder(), *space.uniforms())))


def watched_archs(space: SearchSpace) -> list[Arch]:
    """Smallest, middle and largest: what is measured while training goes on."""
    ladder = space.ladder()
    return list(dict.fromkeys((ladder[0], ladder[len(ladder) // 2], ladder[-1])))


def evaluate(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    archs: Sequence[Arch],
    *,
    input_spec: InputSpec,
    calibration: Samples,
    calibration_images: int,
    held_out: Samples,
    progress: Progress | None = None,
) -> Evaluation:
    """Calibrate each arch on `calibration_images` drawn from one set, measure it on another.

    Raises ValueError when there is no image to calibrate or to measure on.
    """
    if not len(held_out):
        raise ValueError("evaluation needs held-out images, got none")
    served: list[ServedSubnet] = []
    statistics: dict[str, dict[str, torch.Tensor]] = {}
    reference = reference_neighbours(state, definition, held_out, input_spec)
    for done, arch in enumerate(archs, start=1):
        m = measure(
            state,
            definition,
            arch,
            input_spec=input_spec,
            calibration=calibration,
            calibration_images=calibration_images,
            held_out=held_out,
            reference=reference,
        )
        size = cost(definition, arch)._asdict()
        served.append(ServedSubnet(arch=arch, accuracy=m.accuracy, ci95=m.ci95, **size))
        statistics[arch.subnet_id] = m.statistics
        if progress is not None:
            progress(done, len(archs))
    served.sort(key=lambda s: (s.macs, s.subnet_id))
    return Evaluation(tuple(served), statistics)


def measure(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    arch: Arch,
    *,
    input_spec: InputSpec,
    calibration: Samples,
    calibration_images: int,
    held_out: Samples,
    statistics: Mapping[str, torch.Tensor] | None = None,
    reference: torch.Tensor | None = None,
) -> Measurement:
    """Measure one subnet on held-out samples, with given statistics or calibrated ones.

    Families without BatchNorm have none. `reference` are the largest's neighbours, which an
    embedding's are compared with (retrieval.py). Computed where `state` is.
    """
    device = next(iter(state.values())).device
    subnet = extract(state, definition, arch, statistics).to(device)
    if statistics is None and definition.buffer_shapes(arch):
        images = drawn_batches(calibration, _BATCH_SIZE, calibration_images)
        inputs = (network_input(b.images.to(device), input_spec, arch.resolution) for b in images)
        statistics = calibrate(subnet, inputs)
    if reference is None:
        correct = is_correct(subnet, held_out, input_spec, arch.resolution)
    else:
        found = nearest_neighbours(subnet, held_out, input_spec, arch.resolution)
        correct = found == reference
    return Measurement(arch, correct, dict(statistics or {}))


def pareto_of(
    measured: Iterable[_Accurate], macs_of: Callable[[_Accurate], int]
) -> list[_Accurate]:
    """Those that are more accurate than every cheaper one, ascending in MACs."""
    kept: list[_Accurate] = []
    for subnet in sorted(measured, key=lambda s: (macs_of(s), s.arch.subnet_id)):
        if not kept or subnet.accuracy > kept[-1].accuracy:
            kept.append(subnet)
    return kept


@torch.inference_mode()
def is_correct(
    net: torch.nn.Module, split: Samples, input_spec: InputSpec, resolution: int
) -> torch.Tensor:
    """(N,) booleans: which samples of a split the network classifies correctly, in eval mode."""
    assert not net.training, "measuring in train mode would use the held-out batch's statistics"
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    hits = [
        net(network_input(batch.images.to(device), input_spec, resolution)).argmax(1).cpu()
        == batch.labels
        for batch in batches_of(split, _BATCH_SIZE)
    ]
    return torch.cat(hits)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson, JASA 1927)."""
    z = 1.959963984540054
    p, denominator = correct / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / denominator
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / denominator
    # The share itself is inside, whatever rounding says of 0 and 1.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def network_input(samples: torch.Tensor, input_spec: InputSpec, resolution: int) -> torch.Tensor:
    """Plain (B, C, H, W) uint8 samples or token ids as what a network takes."""
    x = input_spec.normalise(samples, resolution)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

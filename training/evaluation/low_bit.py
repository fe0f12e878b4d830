"""What low-bit weights do to a checkpoint's subnets: measured, and served where that is signed.

One set of low-bit weights serves all subnets; each has norm statistics of its own, calibrated with
those weights. The loss is a paired one: float and low-bit judge the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from supernet import Arch, Checkpoint, ServedSubnet, extract
from supernet.low_bit.covered import low_bit_names
from supernet.low_bit.low_bit_weights import LowBitWeights
from supernet.low_bit.quantisers import quantise
from supernet.subnets.agreement import next_tokens, top1_agreement
from training.data.samples import Dataset, Samples
from training.evaluation.decoder import choosing_windows, reported_windows
from training.evaluation.domination import paired_difference
from training.evaluation.evaluate import Measurement, measure, wilson_interval

SERVED = "signed_binary"
"""The quantiser whose weights are stored and served; the others are what it is measured against."""


class LowBitMeasurement(NamedTuple):
    """One subnet with low-bit weights.

    `loss` is against its float form on validation (a fraction, with its paired 95 % interval; of a
    decoder in agreement, paired by windows), `accuracy` that on test, `statistics` its own norm
    statistics.
    """

    subnet: ServedSubnet
    accuracy: float
    ci95: tuple[float, float]
    loss: float
    loss_ci95: tuple[float, float]
    statistics: Mapping[str, torch.Tensor]


def quantised_state(checkpoint: Checkpoint, quantiser: str) -> dict[str, torch.Tensor]:
    """The supernet's state with low-bit weights. Raises NoLowBitError for a family without."""
    names = low_bit_names(checkpoint.definition)
    low_bit = {name: quantise(checkpoint.state[name], quantiser).dequantised() for name in names}
    return {**checkpoint.state, **low_bit}


def measure_low_bit(
    checkpoint: Checkpoint,
    data: Dataset,
    quantiser: str = SERVED,
    *,
    calibration_images: int = 512,
    progress: Callable[[Sequence[ServedSubnet]], Iterable[ServedSubnet]] = lambda rows: rows,
) -> list[LowBitMeasurement]:
    """Measure every served subnet with low-bit weights made of the checkpoint's.

    Raises NoLowBitError for a family without them, ValueError for an unknown quantiser or data
    without samples to calibrate or measure on.
    """
    for name in ("train", "validation", "test"):
        if not len(getattr(data, name)):
            raise ValueError(f"{data.name}: low-bit weights need {name} samples, got none")
    state = quantised_state(checkpoint, quantiser)
    if checkpoint.definition.family.generates:
        return _of_decoder(checkpoint, state, data, progress)
    found: list[LowBitMeasurement] = []
    for subnet in progress(checkpoint.subnets):

        def judged(
            weights: Mapping[str, torch.Tensor],
            held_out: Samples,
            statistics: Mapping[str, torch.Tensor] | None,
            subnet: ServedSubnet = subnet,
        ) -> Measurement:
            return measure(
                weights,
                checkpoint.definition,
                subnet.arch,
                input_spec=checkpoint.input,
                calibration=data.train,
                calibration_images=calibration_images,
                held_out=held_out,
                statistics=statistics,
            )

        own = checkpoint.norm_statistics[subnet.subnet_id]
        wide = judged(checkpoint.state, data.validation, own)
        narrow = judged(state, data.validation, None)
        loss, loss_ci95 = paired_difference(wide.correct.numpy(), narrow.correct.numpy())
        correct = judged(state, data.test, narrow.statistics).correct
        interval = wilson_interval(int(correct.sum()), len(correct))
        accuracy = float(correct.double().mean())
        found.append(
            LowBitMeasurement(subnet, accuracy, interval, loss, loss_ci95, narrow.statistics)
        )
    return found


def with_low_bit_entries(
    checkpoint: Checkpoint, measured: Sequence[LowBitMeasurement], tolerance: float | None = None
) -> Checkpoint:
    """Return the checkpoint with signed-binary weights, and entries of what was measured.

    With a `tolerance`, a fraction, only those that lose no more.
    """
    offered = [m for m in measured if tolerance is None or m.loss <= tolerance]
    floats = {i: checkpoint.norm_statistics[i] for i in checkpoint.subnet_ids}
    entries = {
        replace(m.subnet, precision=SERVED, accuracy=m.accuracy, ci95=m.ci95): m.statistics
        for m in offered
    }
    return replace(
        checkpoint,
        low_bit=LowBitWeights.of(checkpoint.state, checkpoint.definition),
        low_bit_subnets=tuple(entries),
        norm_statistics=floats | {s.subnet_id: own for s, own in entries.items()},
        fingerprint="",
    )


def low_bit_alone(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint without latent weights: all its subnets have the one-bit ones.

    A subnet's float entry is then the same network in float arithmetic, with the same accuracy;
    int8 entries, which were of the latent weights, are left out. Raises ValueError for a checkpoint
    without low-bit entries.
    """
    if checkpoint.low_bit is None or not checkpoint.low_bit_subnets:
        raise ValueError(
            f"{checkpoint.name} has no subnets with low-bit weights; make them with `supernet "
            "precision --to signed_binary`"
        )
    entries = {subnet.arch.subnet_id: subnet for subnet in checkpoint.low_bit_subnets}
    statistics = {i: checkpoint.norm_statistics[s.subnet_id] for i, s in entries.items()}
    floats = tuple(replace(subnet, precision="fp32") for subnet in entries.values())
    bare = checkpoint.serving(floats, statistics, checkpoint.accuracy_source)
    return replace(
        bare,
        state=checkpoint.low_bit.in_place_of(checkpoint.state),
        low_bit=replace(checkpoint.low_bit, replaces=True),
        low_bit_subnets=checkpoint.low_bit_subnets,
        norm_statistics={
            name: {n: t.clone() for n, t in statistics[i].items()}  # a file shares no tensors
            for i, subnet in entries.items()
            for name in (i, subnet.subnet_id)
        },
    )


def _of_decoder(
    checkpoint: Checkpoint,
    state: Mapping[str, torch.Tensor],
    data: Dataset,
    progress: Callable[[Sequence[ServedSubnet]], Iterable[ServedSubnet]],
) -> list[LowBitMeasurement]:
    """Quality is the agreement with the largest float width, of every width, as it is of those."""
    definition = checkpoint.definition
    windows, choosing = reported_windows(data), choosing_windows(data)
    wanted = next_tokens(extract(checkpoint.state, definition, definition.space.largest), choosing)

    def agreed(weights: Mapping[str, torch.Tensor], arch: Arch) -> np.ndarray:
        """(W,) of each validation window the share of tokens that are as wanted."""
        said = next_tokens(extract(weights, definition, arch), choosing)
        pairs = zip(said, wanted, strict=True)
        return torch.cat([(mine == theirs).double().mean(1) for mine, theirs in pairs]).numpy()

    found: list[LowBitMeasurement] = []
    for subnet in progress(checkpoint.subnets):
        own = top1_agreement(
            state,
            definition,
            [subnet.arch],
            windows,
            reference=checkpoint.state,
        )[subnet.subnet_id]
        wide, narrow = (agreed(weights, subnet.arch) for weights in (checkpoint.state, state))
        loss, loss_ci95 = paired_difference(wide, narrow)
        found.append(LowBitMeasurement(subnet, own.share, own.ci95, loss, loss_ci95, {}))
    return found

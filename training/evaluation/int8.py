"""What int8 does to a checkpoint's subnets: measured on held-out samples, offered if it is little.

A subnet's activation ranges are taken on training samples drawn at random, its int8 graph is made,
and both graphs, float and int8, are run on the same samples: the loss is a paired one. What loses
more than the tolerance on the validation samples is not offered; the accuracy that an entry states
is measured on the test samples, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from subnetact.cpu.activation_ranges import Ranges, activation_ranges, ranges_to_tensors
from subnetact.cpu.compiled_session import CompiledSession
from subnetact.cpu.subnet_sessions import SubnetSessions
from supernet import Checkpoint, ServedSubnet
from supernet.served_form import ServedForm
from training.data.data import batches_of, drawn_batches
from training.data.samples import Dataset, Samples
from training.evaluation.domination import paired_difference
from training.evaluation.evaluate import wilson_interval

_BATCH_SIZE = 64


class Int8Measurement(NamedTuple):
    """One subnet in int8: what it loses on validation (a fraction, with its paired 95 % interval).

    `int8` is the entry to serve, with its accuracy on test, None where too much is lost.
    """

    subnet: ServedSubnet
    loss: float
    ci95: tuple[float, float]
    int8: ServedSubnet | None
    ranges: Ranges


def measure_int8(
    checkpoint: Checkpoint,
    data: Dataset,
    *,
    tolerance: float,
    calibration_images: int = 512,
    threads: int = 1,
    progress: Callable[[Sequence[ServedSubnet]], Iterable[ServedSubnet]] = lambda rows: rows,
) -> list[Int8Measurement]:
    """Measure every float subnet in int8; `tolerance` is the loss, a fraction, that is accepted.

    Raises ValueError when there is nothing to calibrate or to measure on, OrtMissingError without
    onnxruntime, GraphError for a network that no rule writes.
    """
    for name in ("train", "validation", "test"):
        if not len(getattr(data, name)):
            raise ValueError(f"{data.name}: int8 needs {name} samples, got none")
    floats = SubnetSessions(checkpoint, threads=threads)
    measured: list[Int8Measurement] = []
    for subnet in progress(checkpoint.subnets):
        form = ServedForm(subnet.subnet_id)
        calibration = drawn_batches(data.train, _BATCH_SIZE, calibration_images)
        inputs = (_inputs(checkpoint, subnet, batch.images.numpy()) for batch in calibration)
        ranges = activation_ranges(floats.graph(form), inputs, threads=threads)
        rounded = SubnetSessions(checkpoint, threads=threads, ranges={form.subnet_id: ranges})
        session = rounded.open(ServedForm(form.subnet_id, "int8"))
        wide, narrow = (
            _is_correct(checkpoint, subnet, each, data.validation)
            for each in (floats.open(form), session)
        )
        loss, ci95 = paired_difference(wide, narrow)
        int8 = None
        if loss <= tolerance:
            correct = _is_correct(checkpoint, subnet, session, data.test)
            interval = wilson_interval(int(correct.sum()), len(correct))
            int8 = replace(subnet, precision="int8", accuracy=float(correct.mean()), ci95=interval)
        measured.append(Int8Measurement(subnet, loss, ci95, int8, ranges))
    return measured


def with_int8(checkpoint: Checkpoint, measured: Sequence[Int8Measurement]) -> Checkpoint:
    """Return the checkpoint with the entries that lose little, and the ranges they round by."""
    offered = [m for m in measured if m.int8 is not None]
    return replace(
        checkpoint,
        int8_subnets=tuple(m.int8 for m in offered if m.int8 is not None),
        activation_ranges={m.subnet.subnet_id: ranges_to_tensors(m.ranges) for m in offered},
    )


def _is_correct(
    checkpoint: Checkpoint, subnet: ServedSubnet, session: CompiledSession, samples: Samples
) -> np.ndarray:
    """(N,) booleans: which samples a session classifies correctly."""
    hits = [
        session.run(_inputs(checkpoint, subnet, batch.images.numpy())).argmax(axis=1)
        == batch.labels.numpy()
        for batch in batches_of(samples, _BATCH_SIZE)
    ]
    return np.concatenate(hits)


def _inputs(checkpoint: Checkpoint, subnet: ServedSubnet, samples: np.ndarray) -> np.ndarray:
    """Return plain samples as the graph of a subnet takes them."""
    if checkpoint.input.kind == "image":
        return np.ascontiguousarray(samples)
    return samples.reshape(len(samples), -1)[:, : subnet.arch.resolution].astype(np.int64)

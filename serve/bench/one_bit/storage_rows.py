"""How large a checkpoint of one-bit weights is: per weight that has one, and the whole folder."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

from serve.bench.rows import Row, row
from supernet.checkpoint import Checkpoint, save_checkpoint
from supernet.low_bit.low_bit_weights import LowBitWeights
from training.evaluation.low_bit import LowBitMeasurement, low_bit_alone, with_low_bit_entries


def storage_rows(name: str, checkpoint: Checkpoint) -> list[Row]:
    """Bits per weight of the layers that have one bit, and of all weights in all of the folder.

    Measured on a folder that is written: weights, norm statistics, entries and header. Accuracies
    are none: sizes do not depend on them.
    """
    entries = [
        LowBitMeasurement(
            s, 0.0, (0.0, 1.0), 0.0, (0.0, 0.0),
            {n: t.clone() for n, t in checkpoint.norm_statistics[s.subnet_id].items()},
        )
        for s in checkpoint.subnets
    ]  # fmt: skip
    alone = low_bit_alone(with_low_bit_entries(checkpoint, entries))
    assert alone.low_bit is not None, "made a line above"
    shapes = checkpoint.definition.parameter_shapes()
    weights = sum(map(math.prod, shapes.values()))
    covered = sum(math.prod(shapes[n]) for n in alone.low_bit.tensors)
    with TemporaryDirectory() as folder:
        save_checkpoint(alone, Path(folder) / "alone")
        num_bytes = sum(f.stat().st_size for f in (Path(folder) / "alone").iterdir())
    figure = f"actuation/onebit/storage/{name}"
    detail = (
        f"{covered:,} of {weights:,} weights have one bit; the folder, norm statistics of "
        f"{2 * len(entries)} entries included, has {num_bytes:,} bytes, "
        f"fp32 weights {4 * weights:,}"
    )
    return [
        row(f"{figure}/bits_per_low_bit_weight", alone.low_bit.bits_per_weight, "bits", detail),
        row(f"{figure}/bits_per_weight_of_all", 8 * num_bytes / weights, "bits", detail),
    ]


def largest_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of the largest subnet's weights as they are stored in a precision.

    Vectors (norms, biases) are float32 in all, scales of int8 a float per row.
    """
    definition = checkpoint.definition
    shapes = definition.parameter_shapes(definition.space.largest)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if precision == "fp32":
        return 4 * sum(sizes.values())
    if precision == "int8":
        return sum(n + 4 * shapes[m][0] if len(shapes[m]) > 1 else 4 * n for m, n in sizes.items())
    packed = LowBitWeights.of(checkpoint.state, definition).tensors
    planes = 2 if precision == "ternary" else 1
    return sum(
        planes * packed[m].bits.nbytes + packed[m].scale.nbytes if m in packed else 4 * n
        for m, n in sizes.items()
    )

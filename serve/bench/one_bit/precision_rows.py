"""The table of five precisions of one supernet at equal epochs, and what the axis costs float."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from serve.bench.actuation.rounds import medians_text, rotated
from serve.bench.graphs.intervals import mean_interval, paired
from serve.bench.one_bit.precision_runs import AXES, SIZES, PrecisionRuns
from serve.bench.one_bit.storage_rows import largest_bytes
from serve.bench.rows import Row, Tell, row
from subnetact.cpu.graph_executor import GraphExecutor
from training.config import LowBit

PRECISIONS = ("fp32", "int8", *AXES[1:])
_BATCHES = (1, 8)
_FIGURE = "actuation/onebit/precisions"
Accuracies = dict[str, dict[str, float]]


def precision_rows(
    runs: PrecisionRuns, *, seeds: Sequence[int], at_least_s: float, tell: Tell
) -> list[Row]:
    """Train what is missing, then return the rows: accuracies, per byte, per millisecond.

    Low-bit weights run as float graphs of what they are worth, which is what their milliseconds
    are of: on a CPU with VNNI a convolution gains nothing from one bit (docs/one_bit.md).
    """
    measured = {axis: [runs.accuracies(axis, seed) for seed in seeds] for axis in AXES}
    rows: list[Row] = []
    for precision in PRECISIONS:
        source = measured[precision if precision in AXES else "none"]
        for size in SIZES:
            found = mean_interval([each[precision][size] for each in source])
            figure = f"{_FIGURE}/{precision}/{size}/accuracy"
            rows.append(row(figure, found.mean, "fraction", found.detail()))
            tell(f"  {figure}: {found.mean:.4f}")
    rows += _costs(runs, measured, seeds, at_least_s)
    return rows + axis_rows(measured)


def axis_rows(measured: dict[str, list[Accuracies]]) -> list[Row]:
    """What training the signed-binary axis takes from the float subnets, seed by seed."""
    rows: list[Row] = []
    for size in SIZES:
        lost = paired(
            *([each["fp32"][size] for each in measured[axis]] for axis in ("none", "signed_binary"))
        )
        detail = {"said": "accuracy of fp32 without the axis less with it", **lost.detail()}
        rows.append(row(f"{_FIGURE}/fp32_lost_to_the_axis/{size}", lost.mean, "fraction", detail))
    return rows


def decoder_quality_rows(runs: PrecisionRuns, seeds: Sequence[int]) -> list[Row]:
    """Qualities and perplexities of a decoder's largest width: float, int8 and one-bit."""
    rows: list[Row] = []
    others: dict[LowBit, str] = {"none": "int8", "signed_binary": "signed_binary"}
    for axis, other in others.items():
        measured = [runs.accuracies(axis, seed) for seed in seeds]
        for precision in ("fp32", other):
            for kind, unit in (("quality", "fraction"), ("perplexity", "perplexity")):
                largest = [list(each[f"{precision}/{kind}"].values())[-1] for each in measured]
                found = mean_interval(largest)
                beside = "with_the_axis" if axis != "none" else "without_the_axis"
                figure = f"actuation/onebit/decoder/trained/{beside}/{precision}/{kind}"
                rows.append(row(figure, found.mean, unit, found.detail()))
    return rows


def _costs(
    runs: PrecisionRuns,
    measured: dict[str, list[Accuracies]],
    seeds: Sequence[int],
    at_least_s: float,
) -> list[Row]:
    """Bytes and milliseconds of the largest subnet, and points of accuracy over each."""
    plain, signed = (runs.served(axis, seeds[0]) for axis in ("none", "signed_binary"))
    largest = plain.subnets[-1].subnet_id
    executors = {
        "fp32": (GraphExecutor(plain, _no_views), largest),
        "int8": (GraphExecutor(plain, _no_views), f"{largest}-i8"),
        "signed_binary": (GraphExecutor(signed, _no_views), f"{largest}-sb"),
    }
    rows: list[Row] = []
    for batch in _BATCHES:
        samples = np.random.default_rng(0).integers(
            0, 256, (batch, *plain.input.shape), dtype=np.uint8
        )
        calls: dict[str, Callable[[], object]] = {
            name: (lambda e=executor, i=form_id, s=samples: e.run(i, s))
            for name, (executor, form_id) in executors.items()
        }
        samples_s = rotated(calls, at_least_s)
        for precision in PRECISIONS:
            source = measured[precision if precision in AXES else "none"]
            points = 100 * mean_interval([each[precision]["max"] for each in source]).mean
            timed = precision if precision in samples_s else "signed_binary"
            taken_ms = 1e3 * float(np.median(samples_s[timed]))
            detail = f"largest, batch {batch}, 1 thread; {medians_text(samples_s)}"
            figure = f"{_FIGURE}/{precision}/max"
            rows.append(row(f"{figure}/b{batch}", taken_ms, "ms", detail))
            per_ms = points * batch / taken_ms
            rows.append(row(f"{figure}/b{batch}/points_per_ms", per_ms, "points/ms", detail))
            if batch == _BATCHES[0]:
                num_bytes = largest_bytes(plain, precision)
                rows.append(row(f"{figure}/bytes", num_bytes, "bytes", "weights as stored"))
                per_kb = 1e3 * points / num_bytes
                rows.append(row(f"{figure}/points_per_kb", per_kb, "points/kB", "of the above"))
    for executor, _ in executors.values():
        executor.close()
    return rows


def _no_views() -> GraphExecutor:
    raise RuntimeError("every form has its session; none runs on views")

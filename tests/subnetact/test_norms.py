"""Folded norms in 16 bit: which subnets keep them, and what is lost."""

from __future__ import annotations

import pytest
import torch

from subnetact.norms import FoldedNorms
from supernet import SupernetDefinition


def folded(
    tiny: SupernetDefinition, statistics_of, **values: tuple[int, float]
) -> tuple[torch.dtype, float]:
    """Fold the largest subnet with one channel of a buffer changed: (channel, value) by its name.

    Return what it is kept in, and the largest error of a shift.
    """
    arch = tiny.space.largest
    statistics = statistics_of(arch, 0)
    name = next(n.removesuffix(".running_mean") for n in statistics if n.endswith("running_mean"))
    state = {n: t.clone() for n, t in tiny.build().state_dict().items()}
    for key, (channel, value) in values.items():
        holder = statistics if key.startswith("running") else state
        holder[f"{name}.{key}"][channel] = value
    half, full = FoldedNorms(tiny, state, torch.float16), FoldedNorms(tiny, state)
    for norms in (half, full):
        norms.add(arch, statistics)
    got, exact = half.affines(arch)[name], full.affines(arch)[name]
    return half.flat(arch.subnet_id).dtype, float((got.shift - exact.shift).abs().max())


def test_a_shift_near_zero_does_not_cost_a_subnet_its_half_size(
    tiny: SupernetDefinition, statistics_of
) -> None:
    dtype, error = folded(tiny, statistics_of, running_mean=(0, 1e-6))
    assert dtype == torch.float16
    assert error < 1e-2


@pytest.mark.parametrize("values", [{"running_mean": (1, 1e6)}, {"weight": (1, 1e-6)}])
def test_what_does_not_fit_keeps_float32(
    tiny: SupernetDefinition, statistics_of, values: dict[str, tuple[int, float]]
) -> None:
    dtype, error = folded(tiny, statistics_of, **values)
    assert dtype == torch.float32
    assert error == 0

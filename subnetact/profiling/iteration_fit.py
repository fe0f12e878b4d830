"""Fitting the cost of a decoder's iterations to measured times, no coefficient below zero.

One least-squares problem over all subnets: the linear layers have a curve for each, the head and
attention one set of coefficients that all share, attention by the share of the blocks that a subnet
keeps (not by its heads: what reading keys and values takes does not depend on them). Residuals
are relative, so that a short iteration weighs as much as a long one. Solved by Lawson and Hanson's
NNLS (1974).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from slackfit.streams.iteration_cost import CostCurve, IterationCost, IterationWork

LINEAR_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HEAD_ROWS = (1, 2, 4, 8, 16)


class MeasuredIteration(NamedTuple):
    """What one iteration took on one subnet, in seconds."""

    subnet_id: str
    work: IterationWork
    seconds: float


def fit_iterations(
    measured: Sequence[MeasuredIteration],
    qualities: Mapping[str, float],
    depths: Mapping[str, float] | None = None,
) -> tuple[IterationCost, ...]:
    """Return the cost of each subnet of `qualities`, fitted to all measured iterations together.

    `depths` are shares of the blocks that subnets keep (default: all): attention costs as much.
    Raises ValueError when a subnet was not measured.
    """
    from scipy.optimize import nnls

    subnet_ids = tuple(qualities)
    missing = sorted(set(subnet_ids) - {each.subnet_id for each in measured})
    if missing:
        raise ValueError(f"no iteration was measured on {', '.join(missing)}")
    shares = {subnet_id: (depths or {}).get(subnet_id, 1.0) for subnet_id in subnet_ids}
    rows = np.array([_features(each, shares) for each in measured])
    seconds = np.array([each.seconds for each in measured])
    fitted, _ = nnls(rows / seconds[:, None], np.ones(len(seconds)))
    curves = fitted[: len(subnet_ids) * len(LINEAR_TOKENS)].reshape(len(subnet_ids), -1)
    common = fitted[curves.size :]
    head = common[: len(HEAD_ROWS)]
    attention = {i: common[-4:] * share for i, share in shares.items()}
    return tuple(
        IterationCost(
            subnet_id=subnet_id,
            quality=qualities[subnet_id],
            linear=CostCurve(LINEAR_TOKENS, tuple(np.cumsum(steps).tolist())),
            head=CostCurve(HEAD_ROWS, tuple(np.cumsum(head).tolist())),
            decode_s=float(attention[subnet_id][0]),
            position_s=float(attention[subnet_id][1]),
            chunk_s=float(attention[subnet_id][2]),
            pair_s=float(attention[subnet_id][3]),
        )
        for subnet_id, steps in zip(subnet_ids, curves, strict=True)
    )


def relative_errors(
    costs: Sequence[IterationCost], measured: Sequence[MeasuredIteration]
) -> list[float]:
    """Return |predicted - measured| / measured of each iteration."""
    by_id = {cost.subnet_id: cost for cost in costs}
    return [abs(by_id[m.subnet_id].seconds(m.work) / m.seconds - 1.0) for m in measured]


def _features(each: MeasuredIteration, shares: Mapping[str, float]) -> list[float]:
    work, share = each.work, shares[each.subnet_id]
    none = [0.0] * len(LINEAR_TOKENS)
    linear = _steps(work.tokens, LINEAR_TOKENS)
    curves = [x for i in shares for x in (linear if i == each.subnet_id else none)]
    attention = [work.decodes, work.decode_positions, work.chunks, work.chunk_pairs]
    return [*curves, *_steps(work.rows, HEAD_ROWS), *(share * count for count in attention)]


def _steps(count: int, points: Sequence[int]) -> list[float]:
    """How much of each rise of a curve through `points` a count has taken; 0 has taken none.

    The curve is the sum of its rises, so rises that are not negative make one that never falls.
    """
    if count == 0:
        return [0.0] * len(points)
    rises = [1.0]
    for a, b in pairwise(points):
        above = (count - a) / (b - a)
        rises.append(max(0.0, above if b == points[-1] else min(1.0, above)))
    return rises

"""What every fleet of several types of device must respect, whatever its policy, as a program.

The bounds `mean` and `windows` of the certificate, over mixtures: there are n of each type; of the
queries the share x of each (type, subnet) is on time, and

  each type has the time for its own:       queries x sum(x seconds) <= n x (duration + deadline)
  enough are on time, and not more than come:    attainment <= sum(x) <= 1
  those have the promised mean:                  sum(x (accuracy of the subnet - promised)) >= 0
  the busiest window's queries end in time:      sum(n x the most queries/s of the type) >= rate

Relaxed as there: batches of the best size, in parts and in parallel, the future known. A subnet
below a floor, or slower alone than the longest deadline, counts for nothing. Solved by HiGHS.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from slackfit.profile import LatencyProfile
from traces.planning.catalog import DeviceOffer
from traces.planning.certificate import window_demand_qps
from traces.planning.possible import alone_s
from traces.planning.promise import Promise
from traces.planning.traffic import Traffic
from traces.trace import FloatArray

_SLACK = 1e-6  # of a row: HiGHS allows itself as much


class _WayToServe(NamedTuple):
    """A subnet of a type of device, by number: seconds of a query at best, and its accuracy."""

    device: int
    query_s: float
    accuracy: float


class MixedBound:
    """The least fleets of some types of device that could keep a promise on traffic."""

    def __init__(self, offers: Sequence[DeviceOffer], traffic: Traffic, promise: Promise) -> None:
        """Lay the program out; what a group is promised is bounded as if nobody else came."""
        self._prices = np.array([offer.price_per_hour for offer in offers])
        profiles = [offer.profile for offer in offers]
        blocks = [_BoundRows.of(profiles, traffic, promise)]
        for part in promise.parts:
            own = traffic.picked(traffic.groups[part.group])
            floor = max(part.floor, promise.floor)
            asked = Promise(part.attainment, part.accuracy, floor)
            blocks.append(_BoundRows.of(profiles, own, asked))
        self._rows, self._least, self._most = _side_by_side(blocks, len(offers))

    def cheapest(self, most: Sequence[int], total: int) -> tuple[int, ...] | None:
        """Return the cheapest numbers of each type, `most` of each and `total` together at most.

        None: no such numbers keep the promise.
        """
        return self._solved(self._prices, [0] * len(most), most, total)

    def fewest(self, most: Sequence[int], total: int) -> tuple[int, ...] | None:
        """Return the numbers of each type with the fewest devices, as `cheapest`."""
        return self._solved(np.ones(len(most)), [0] * len(most), most, total)

    def fewest_beside(self, others: Sequence[int], most: int) -> int | None:
        """Return how few of the first type do beside so many of the others; None: `most` do not."""
        found = self._solved(
            np.eye(1 + len(others))[0], [0, *others], [most, *others], most + sum(others)
        )
        return None if found is None else found[0]

    def cost(self, numbers: Sequence[int]) -> float:
        """Return the price of so many of each type an hour."""
        return float(self._prices @ np.array(numbers))

    def _solved(
        self, objective: FloatArray, low: Sequence[int], high: Sequence[int], total: int
    ) -> tuple[int, ...] | None:
        # By name, and here: scipy has no complete types, and is slow to import.
        optimize: Any = import_module("scipy.optimize")
        types, width = len(low), self._rows.shape[1]
        shares = width - types
        is_device = np.arange(width) < types
        enough = optimize.LinearConstraint(self._rows, self._least - _SLACK, self._most + _SLACK)
        few = optimize.LinearConstraint(is_device.astype(float)[None], -np.inf, total)
        with _nothing_on_stdout():
            found = optimize.milp(
                np.where(is_device, np.append(objective, np.zeros(shares)), 0.0),
                integrality=is_device.astype(int),
                bounds=optimize.Bounds([*low, *[0.0] * shares], [*high, *[1.0] * shares]),
                constraints=[enough, few],
                options={"mip_rel_gap": 0.0},
            )
        return None if found.x is None else tuple(round(n) for n in found.x[:types])


class _BoundRows(NamedTuple):
    """Rows of one promise: over numbers of devices, over shares; each at least, at most so much."""

    devices: FloatArray
    shares: FloatArray
    least: FloatArray
    most: FloatArray

    @staticmethod
    def of(profiles: Sequence[LatencyProfile], traffic: Traffic, promise: Promise) -> _BoundRows:
        """Return the rows of a promise to all of `traffic`; none where nothing arrives."""
        count, types = len(traffic.arrival_s), len(profiles)
        if not count:
            return _BoundRows(np.zeros((0, types)), np.zeros((0, 0)), np.zeros(0), np.zeros(0))
        longest_s = float(np.max(traffic.slo_s))
        ways = list(_ways(profiles, promise.floor, longest_s))
        device = np.array([way.device for way in ways], dtype=np.int64)
        per_device = np.array([way.query_s for way in ways]) * (
            count / (traffic.duration_s + longest_s)
        )
        own = device[None] == np.arange(types)[:, None]  # (types, ways)
        rates_qps = np.zeros(types)
        for way in ways:
            rates_qps[way.device] = max(rates_qps[way.device], 1.0 / way.query_s)
        demand_qps = max(window_demand_qps(traffic, promise), 0.0)
        return _BoundRows(
            devices=np.vstack(
                [np.eye(types), np.zeros((2, types)), rates_qps / _scale(demand_qps)]
            ),
            shares=np.vstack(
                [
                    np.where(own, -per_device, 0.0),
                    np.ones(len(ways)),
                    np.array([way.accuracy - promise.accuracy for way in ways]),
                    np.zeros(len(ways)),
                ]
            ),
            least=np.array(
                [*np.zeros(types), promise.attainment, 0.0, demand_qps / _scale(demand_qps)]
            ),
            most=np.array([*np.full(types, np.inf), 1.0, np.inf, np.inf]),
        )


@contextmanager
def _nothing_on_stdout() -> Iterator[None]:
    """Drop what machine code prints: HiGHS tells of its heuristics on stdout, asked to or not.

    A plan's JSON may go there. The C library keeps lines back where stdout is no terminal, so it
    must let go of them before stdout is what it was.
    """
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        libc.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _ways(
    profiles: Sequence[LatencyProfile], floor: float, longest_s: float
) -> Iterator[_WayToServe]:
    for device, profile in enumerate(profiles):
        for subnet in profile.subnets:
            if subnet.accuracy < floor or alone_s(profile, subnet.subnet_id) > longest_s:
                continue
            row = profile.table()[subnet.subnet_id]
            least_s = min(row[size] / size for size in range(1, len(row)))
            yield _WayToServe(device, least_s, subnet.accuracy)


def _scale(demand_qps: float) -> float:
    """Return what rates are divided by, so that a row's numbers are near one."""
    return demand_qps or 1.0


def _side_by_side(
    blocks: Sequence[_BoundRows], types: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the rows of all promises: devices are common, shares are of each promise alone."""
    width = types + sum(block.shares.shape[1] for block in blocks)
    rows: list[FloatArray] = []
    begin = types
    for block in blocks:
        own = np.zeros((len(block.devices), width))
        own[:, :types] = block.devices
        own[:, begin : begin + block.shares.shape[1]] = block.shares
        begin += block.shares.shape[1]
        rows.append(own)
    least = np.concatenate([block.least for block in blocks])
    return np.vstack(rows), least, np.concatenate([block.most for block in blocks])

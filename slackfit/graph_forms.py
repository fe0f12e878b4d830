"""`GraphForms`: what batches take on a device that replays captured graphs, with one and without.

A profile of such a device has two times for each (subnet, batch size): its quantiles are of a
replay, its row `eager` is the median of the same batch launched call by call. Which of them holds
depends on the graphs that there are: a batch runs on the fastest graph of its subnet that takes it
(it is filled up to the graph's size), or eagerly where there is none or that is faster.

Pure: the device chooses by it, the scheduler plans by it, and a residency policy
(`slackfit.residency`) decides by it which graphs to have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import replace

from slackfit.profile import LatencyProfile, ProfileError, SubnetProfile
from slackfit.residency import Candidate, Savings

EAGER = "eager"
"""The name of the row of a subnet's latencies that is of batches without a graph."""
GRAPHS = "graphs"
"""The key of a profile that says for which graphs it was made by `as_captured`."""
_REPLAYED = "p50"


class GraphForms:
    """Both times of every (subnet, profiled batch size), in seconds."""

    def __init__(self, profile: LatencyProfile) -> None:
        """Raise ProfileError for a subnet without a row `eager`."""
        self.sizes = profile.batch_sizes
        self._replayed_s: dict[str, dict[int, float]] = {}
        self._eager_s: dict[str, dict[int, float]] = {}
        for subnet in profile.subnets:
            if EAGER not in subnet.latency_s:
                raise ProfileError(
                    f"profile {profile.name!r} does not say what {subnet.subnet_id!r} takes "
                    f"without a graph (no row {EAGER!r}); measure it again with `supernet profile`"
                )
            for table, row in ((self._replayed_s, _REPLAYED), (self._eager_s, EAGER)):
                times_s = zip(self.sizes, subnet.latency_s[row], strict=True)
                table[subnet.subnet_id] = dict(times_s)

    def knows(self, subnet_id: str, size: int) -> bool:
        """Whether the profile has a row for a subnet, and this batch size in it."""
        return size in self._replayed_s.get(subnet_id, {})

    def graph_size(self, subnet_id: str, size: int, live: Collection[int]) -> int | None:
        """Return the size of the graph that a batch of a profiled size runs on; None: eagerly.

        `live` are the sizes that the subnet has graphs of, profiled ones.
        """
        replayed_s = self._replayed_s[subnet_id]
        able = [graph for graph in live if graph >= size and graph in replayed_s]
        if not able:
            return None
        best = min(able, key=lambda graph: (replayed_s[graph], graph))
        return best if replayed_s[best] <= self._eager_s[subnet_id][size] else None

    def within(
        self, largest: int, live: Mapping[str, Collection[int]]
    ) -> dict[str, tuple[int, ...]]:
        """Return the graphs that a profile counts which was cut to batches of up to `largest`.

        Its last row is of batches that are filled up to the next profiled size, so a graph of that
        size goes by `largest` there. Larger ones have no row, and are left out: where there is none
        but those, a plan says what batches take eagerly, and they take no longer.
        """
        kept = self.sizes[: bisect_left(self.sizes, largest) + 1]
        return {
            subnet_id: tuple(min(size, largest) for size in sizes if size in kept)
            for subnet_id, sizes in live.items()
        }

    def savings(self, num_bytes: int, capture_s: float) -> Savings:
        """Return what each graph saves the batches that it takes, by `batch_name`.

        The candidates' keys are (subnet id, size); each graph has `num_bytes` and is captured in
        `capture_s`. Of the graphs of one subnet the better one counts, so they share a site.
        """
        return Savings(
            Candidate((subnet_id, graph), subnet_id, max(1, num_bytes), capture_s, saved_s)
            for subnet_id in self._replayed_s
            for graph in self.sizes
            if (saved_s := self._saved_s(subnet_id, graph))
        )

    def _saved_s(self, subnet_id: str, graph: int) -> dict[str, float]:
        replayed_s = self._replayed_s[subnet_id][graph]
        return {
            batch_name(subnet_id, size): eager_s - replayed_s
            for size, eager_s in self._eager_s[subnet_id].items()
            if size <= graph and eager_s > replayed_s
        }


def batch_name(subnet_id: str, size: int) -> str:
    """Return what savings call batches of a padded size on a subnet."""
    return f"{subnet_id}@{size}"


def as_captured(profile: LatencyProfile, live: Mapping[str, Collection[int]]) -> LatencyProfile:
    """Return a profile of what batches take while subnets have graphs of the sizes `live`.

    Every quantile of a batch without a graph is longer in proportion to its median. A graph of no
    profiled size counts for nothing: what it takes is not known (`GraphForms.within`). The key
    `graphs` of what is returned says which there were, so that a log can tell. Raises ProfileError
    for a subnet without a row `eager`.
    """
    forms = GraphForms(profile)
    return replace(
        profile,
        extra={**profile.extra, GRAPHS: {i: list(sizes) for i, sizes in live.items()}},
        subnets=tuple(
            replace(subnet, latency_s=_rows(subnet, forms, live.get(subnet.subnet_id, ())))
            for subnet in profile.subnets
        ),
    )


def _rows(
    subnet: SubnetProfile, forms: GraphForms, live: Collection[int]
) -> dict[str, tuple[float, ...]]:
    sizes, rows = forms.sizes, subnet.latency_s
    graphs = [forms.graph_size(subnet.subnet_id, size, live) for size in sizes]

    def row(quantile: str) -> tuple[float, ...]:
        given_s = rows[quantile]
        return tuple(
            given_s[i] * rows[EAGER][i] / rows[_REPLAYED][i]
            if graph is None
            else given_s[sizes.index(graph)]
            for i, graph in enumerate(graphs)
        )

    return {quantile: rows[EAGER] if quantile == EAGER else row(quantile) for quantile in rows}

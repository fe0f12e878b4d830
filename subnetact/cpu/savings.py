"""What each packed slice saves each subnet: measured inside whole runs, for residency policies.

A site that is timed alone, again and again, finds its weights in the processor's cache, which in a
run of the whole subnet they are not; savings taken so promised twice what came true. So whole runs
are made, on views, on shared and on folded slices in turn, with a clock around every site.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median

import torch

from slackfit.residency import Candidate, Savings
from subnetact.cache import SLICE_PACKINGS, SliceKey
from subnetact.cpu.packed_supernet import PackedSlice, PackedSupernet
from subnetact.program import SiteCall

Clock = Callable[[], float]


class _Site:
    """One site in one form: its call, and the seconds of each run of it."""

    def __init__(self, call: SiteCall, clock: Clock):
        self._call = call
        self._clock = clock
        self.samples_s: list[float] = []

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        start_s = self._clock()
        y = self._call(*inputs)
        self.samples_s.append(self._clock() - start_s)
        return y

    @property
    def median_s(self) -> float:
        """Median of all runs but the first, which warms up."""
        return median(self.samples_s[1:])


@torch.inference_mode()
def measure_savings(
    net: PackedSupernet,
    subnet_ids: Iterable[str],
    *,
    batch_size: int = 1,
    repeats: int = 5,
    packings: Sequence[str] = SLICE_PACKINGS,
    clock: Clock = time.perf_counter,
) -> tuple[Savings, dict[SliceKey, PackedSlice]]:
    """Time every site of the subnets on views, shared and folded, and packing itself.

    Returns the candidates (seconds saved per batch of `batch_size`, seconds to load, bytes) and
    {key: slice} to load them by. Times are medians of `repeats` interleaved runs; a form that is
    no faster than views is no candidate for that subnet. Holds one subnet's slices twice meanwhile.
    """
    saved_s: dict[SliceKey, dict[str, float]] = {}
    load_s: dict[SliceKey, float] = {}
    slices: dict[SliceKey, PackedSlice] = {}
    for subnet_id in subnet_ids:
        forms = {packing: net.slices(subnet_id, packing) for packing in packings}
        views = [_Site(net.site_call(form, packed=False), clock) for form in forms[packings[0]]]
        packed: dict[str, list[_Site]] = {}
        for packing, wanted in forms.items():
            packed[packing] = []
            for form in wanted:
                start_s = clock()
                call = net.site_call(form, packed=True)
                load_s.setdefault(form.key, clock() - start_s)
                slices.setdefault(form.key, form)
                packed[packing].append(_Site(call, clock))
        _run_all(net, subnet_id, batch_size, [views, *packed.values()], repeats)
        for packing, wanted in forms.items():
            for form, on_views, site in zip(wanted, views, packed[packing], strict=True):
                if site.median_s < on_views.median_s:
                    gain_s = on_views.median_s - site.median_s
                    saved_s.setdefault(form.key, {})[subnet_id] = gain_s
    return Savings(
        Candidate(key, key.layer, slices[key].num_bytes, load_s[key], per_subnet)
        for key, per_subnet in saved_s.items()
    ), slices


def _run_all(
    net: PackedSupernet,
    subnet_id: str,
    batch_size: int,
    forms: Sequence[list[_Site]],
    repeats: int,
) -> None:
    """Run the subnet with each list of sites in turn, `repeats` times after one to warm up."""
    x = net.random_input(subnet_id, batch_size)
    program = net.actuate(subnet_id).program
    for _ in range(1 + repeats):
        for sites in forms:
            program.run(x, sites)

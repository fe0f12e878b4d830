"""What each packed slice saves each subnet: measured site by site, for the residency policies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch

from slackfit.residency import Candidate, Savings
from subnetact.cache import SliceKey
from subnetact.packed_supernet import PackedSupernet, Slice


@torch.inference_mode()
def measure_savings(
    net: PackedSupernet, subnet_ids: Iterable[str], *, batch_size: int = 1, repeats: int = 3
) -> tuple[Savings, dict[SliceKey, Slice]]:
    """Time every site of the subnets on views, shared and folded, and packing itself.

    Returns the candidates (seconds saved per batch of `batch_size`, seconds to load, bytes) and
    {key: slice} to load them by. Times are medians of `repeats` interleaved runs; a form that is
    no faster than views is no candidate for that subnet.
    """
    saved_s: dict[SliceKey, dict[str, float]] = {}
    load_s: dict[SliceKey, float] = {}
    slices: dict[SliceKey, Slice] = {}
    for subnet_id in subnet_ids:
        shared, folded = (net.slices(subnet_id, mode) for mode in ("shared", "folded"))
        for forms in zip(shared, folded, strict=True):
            forms = tuple({form.key: form for form in forms}.values())
            views_s, *packed_s = _time_site(net, forms, batch_size, repeats)
            for form, (run_s, packing_s) in zip(forms, packed_s, strict=True):
                slices.setdefault(form.key, form)
                load_s.setdefault(form.key, packing_s)
                if run_s < views_s[0]:
                    saved_s.setdefault(form.key, {})[subnet_id] = views_s[0] - run_s
    return Savings(
        Candidate(key, key.layer, slices[key].num_bytes, load_s[key], per_subnet)
        for key, per_subnet in saved_s.items()
    ), slices


def _time_site(
    net: PackedSupernet, forms: tuple[Slice, ...], batch_size: int, repeats: int
) -> list[tuple[float, float]]:
    """Median seconds to (run, pack) one site: on views first, then in each form."""
    geometry = forms[0].site.geometry
    x = _random(batch_size, *geometry.input_shape)
    inputs = [x]
    if forms[0].site.adds:
        inputs.append(_random(batch_size, geometry.weight_shape[0], *geometry.output_size))
    calls = [(net.site_call(forms[0], packed=False), 0.0)]
    for form in forms:
        start_s = time.perf_counter()
        call = net.site_call(form, packed=True)
        calls.append((call, time.perf_counter() - start_s))
    samples_s: list[list[float]] = [[] for _ in calls]
    for round_number in range(-1, repeats):
        for (call, _), samples in zip(calls, samples_s, strict=True):
            taken_s = _time(lambda call=call: call(*inputs))
            if round_number >= 0:
                samples.append(taken_s)
    return [(median(s), packing_s) for s, (_, packing_s) in zip(samples_s, calls, strict=True)]


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(shape).contiguous(memory_format=torch.channels_last)


def _time(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s

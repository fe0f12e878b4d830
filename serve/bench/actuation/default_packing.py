"""The combined row of `supernet bench actuation`: latency, memory and hit rate of one set-up.

The six OFA-ResNet50 subnets served in turn, batch 1, one thread, as the executor packs them: with
everything folded (the default), and under a budget of 40 % of the supernet's bytes, filled for a
uniform mix. Latency is over the six extracted networks in eager mode, memory over their bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

import numpy as np
import torch

from serve.bench.actuation.random_supernet import statistics_of
from serve.bench.actuation.six_subnets import SIX_SUBNETS
from serve.bench.rows import Row, Tell, row
from subnetact.cache import SubgraphCache
from subnetact.cpu.packed_supernet import PackedSupernet
from subnetact.cpu.savings import measure_savings
from subnetact.norms import FoldedNorms
from supernet.definition import SupernetDefinition
from supernet.subnets.extract import extract

_BUDGET = 0.4
_WARM_UP = 1


def default_rows(
    definition: SupernetDefinition,
    state: Mapping[str, torch.Tensor],
    *,
    repeats: int,
    tell: Tell = print,
) -> list[Row]:
    """Return two rows each for the default and for the budget: latency and memory."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    statistics = {arch: statistics_of(definition, arch, rng) for arch in SIX_SUBNETS.values()}
    static = {
        arch.subnet_id: extract(state, definition, arch, own).to(memory_format=torch.channels_last)
        for arch, own in statistics.items()
    }
    six = sum(
        tensor.nbytes
        for net in static.values()
        for name, tensor in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )
    whole = sum(t.nbytes for n, t in state.items() if not n.endswith("num_batches_tracked"))
    rows: list[Row] = []
    for name, budget in (("default", None), ("budget40", int(_BUDGET * whole))):
        norms = FoldedNorms(definition, state)
        net = PackedSupernet(definition, state, norms, SubgraphCache(budget))
        ids = [net.register(arch, own) for arch, own in statistics.items()]
        _fill(net, ids, budget)
        ratio = _ratio(net, static, repeats)
        counts, held = net.cache.counts, net.cache.held_bytes
        hit_rate = counts.hits / counts.lookups
        total = whole + norms.num_bytes + held
        detail = (
            f"six subnets in turn, batch 1, one thread: latency {ratio:.3f} of the extracted in "
            f"eager mode, memory {total / six:.3f} of their {six} bytes (weights {whole}, norms "
            f"{norms.num_bytes}, cache {held}, budget {budget}), hit rate {hit_rate:.3f}"
        )
        tell(f"  {name}: {detail}")
        for figure, value in (("latency", ratio), ("memory", total / six), ("hits", hit_rate)):
            rows.append(
                row(f"actuation/ofa_resnet50/{name}/b1/t1/{figure}", value, "ratio", detail)
            )
    return rows


def _fill(net: PackedSupernet, ids: list[str], budget: int | None) -> None:
    if budget is None:
        for subnet_id in ids:
            net.load(net.slices(subnet_id))
        return
    savings, slices = measure_savings(net, ids)
    mix = dict.fromkeys(ids, 1.0 / len(ids))
    chosen = savings.fill(mix, budget)
    net.load(form for key, form in slices.items() if key in chosen)


def _ratio(net: PackedSupernet, static: Mapping[str, torch.nn.Module], repeats: int) -> float:
    """Median over rounds of the six subnets' time over the extracted ones' in the same round."""
    inputs = {subnet_id: net.random_input(subnet_id, 1) for subnet_id in static}
    ratios: list[float] = []
    for round_number in range(-_WARM_UP, max(3, repeats)):
        ours_s = theirs_s = 0.0
        for subnet_id, x in inputs.items():
            start_s = time.perf_counter()
            net.run(subnet_id, x)
            middle_s = time.perf_counter()
            static[subnet_id](x)
            ours_s += middle_s - start_s
            theirs_s += time.perf_counter() - middle_s
        if round_number >= 0:
            ratios.append(ours_s / theirs_s)
    return median(ratios)

"""The memory part of `supernet bench actuation`, second half: 500 subnets servable on views.

Over the SUSHI line's six subnets extracted side by side in fp32. Counted is everything that serving
the 500 keeps: the storage of every tensor that is alive (weights, norm statistics),
`_PER_TENSOR_BYTES` for each tensor's own record, and all Python objects that were made, as
tracemalloc sees them. Modules that torch imports are not.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from serve.bench.actuation.bench_net import BenchNet
from serve.bench.actuation.random_supernet import random_state, statistics_of
from serve.bench.rows import Row, Tell, row
from subnetact.views.eager_executor import EagerExecutor
from supernet.arch import Arch
from supernet.checkpoint import Checkpoint, ServedSubnet
from supernet.definition import SupernetDefinition

_SERVABLE = 500
_TENSORS = (torch.Tensor, nn.Parameter, nn.Buffer)
_PER_TENSOR_BYTES = 320  # a TensorImpl (about 200) and a storage's record, rounded up


def servable_memory_rows(
    net: BenchNet, *, servable: int = _SERVABLE, tell: Tell = print
) -> list[Row]:
    """Return one row: `servable` random subnets on views over what `net` serves, extracted."""
    extracted = sum(_static_bytes(net.definition, arch) for arch in net.served)
    archs = net.archs(servable)
    for arch in archs:
        net.definition.buffer_shapes(arch)  # cached by the definition, so not counted below
    gc.collect()
    others, other_tensors = set(_storages()), sum(1 for _ in _tensors())
    tracemalloc.start()
    try:
        executor = _executor(net, archs)
        executor.run(archs[0].subnet_id, net.images[:1])
        gc.collect()
        python_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    alive = sum(size for at, size in _storages().items() if at not in others)
    records = _PER_TENSOR_BYTES * (sum(1 for _ in _tensors()) - other_tensors)
    weights = sum(t.nbytes for t in net.state.values())
    ratio = (alive + records + python_bytes) / extracted
    figure = f"actuation/{net.name}/memory/{servable}_servable_on_views_over_extracted"
    detail = (
        f"{len(executor.subnet_ids)} random subnets in fp32: tensors {alive} (weights {weights}), "
        f"their records {records}, Python objects {python_bytes}; "
        f"{len(net.served)} subnets extracted {extracted} bytes"
    )
    tell(f"  {net.name} {servable} servable on views over {len(net.served)} extracted: {ratio:.3f}")
    return [row(figure, ratio, "ratio", detail)]


def _executor(net: BenchNet, archs: Iterable[Arch]) -> EagerExecutor:
    """Return an executor on weights and statistics of its own."""
    rng = np.random.default_rng(0)
    subnets = tuple(
        ServedSubnet(arch=arch, accuracy=0.5, ci95=(0.0, 1.0), macs=0, params=0) for arch in archs
    )
    statistics: Mapping[str, Mapping[str, torch.Tensor]] = {
        s.subnet_id: statistics_of(net.definition, s.arch, rng) for s in subnets
    }
    checkpoint = Checkpoint(
        name=net.name,
        definition=net.definition,
        input=net.input,
        state=random_state(net.definition),
        norm_statistics=statistics,
        subnets=subnets,
    )
    return EagerExecutor(checkpoint, max_batch_size=1)


def _storages() -> dict[int, int]:
    """{address: bytes} of every tensor's storage that is alive."""
    plain = (t for t in _tensors() if t.layout == torch.strided and not t.is_meta)
    storages = (tensor.untyped_storage() for tensor in plain)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _tensors() -> Iterator[torch.Tensor]:
    """Every tensor that is alive and has memory; by type, as some objects' `isinstance` runs code.

    A recorded graph leaves fake ones.
    """
    for found in gc.get_objects():
        if type(found) in _TENSORS:
            yield found


def _static_bytes(definition: SupernetDefinition, arch: Arch) -> int:
    """Bytes of an extracted subnet in fp32: parameters and running statistics."""
    shapes = {**definition.parameter_shapes(arch), **definition.buffer_shapes(arch)}
    return 4 * sum(int(np.prod(shape)) for shape in shapes.values())

"""The memory part of `supernet bench actuation`: 500 servable subnets over six extracted ones.

Counted is everything that serving them keeps: the storage of every tensor that is alive (weights,
norms, what the bound views widened), `_PER_TENSOR_BYTES` for each tensor's own record, and all
Python objects that were made, as tracemalloc sees them. Modules that torch imports are not.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np
import torch
from subnetact.cpu.packed_supernet import PackedSupernet
from subnetact.cpu.resident_weights import resident_weights

from serve.bench.actuation.random_supernet import random_state, statistics_of
from serve.bench.actuation.six_subnets import SIX_SUBNETS
from serve.bench.rows import Row, Tell, row
from subnetact.cache import SubgraphCache
from subnetact.norms import FoldedNorms
from subnetact.program import Program
from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.subnets.subgraph import Subgraph

_SERVABLE, _BOUND = 500, 4
_BITS = ((32, 32), (32, 16), (16, 16))  # of weights, of norms
_PER_TENSOR_BYTES = 320  # a TensorImpl (about 200) and a storage's record, rounded up
_DTYPE = {16: torch.float16, 32: torch.float32}


def memory_rows(definition: SupernetDefinition, *, tell: Tell = print) -> list[Row]:
    """Return rows for each number of bits, and one for the bytes of a filled cache."""
    six = sum(_static_bytes(definition, arch) for arch in SIX_SUBNETS.values())
    rows: list[Row] = []
    for weight_bits, norm_bits in _BITS:
        rows += _rows_of(definition, six, weight_bits, norm_bits)
        tell(f"  memory weights{weight_bits} norms{norm_bits}: {rows[-2]['value']:.3f}")
    return [*rows, _cache_row(definition, six)]


def _rows_of(
    definition: SupernetDefinition, six: int, weight_bits: int, norm_bits: int
) -> list[Row]:
    rng = np.random.default_rng(0)
    warm = random_state(definition)
    Program(definition, definition.space.smallest, warm)  # imports what tracing needs
    for arch in _archs(definition, np.random.default_rng(0)).values():
        definition.buffer_shapes(arch)  # the bench's own need; cached, so not counted below
    del warm
    gc.collect()
    others, other_tensors = set(_storages()), sum(1 for _ in _tensors())
    state = resident_weights(random_state(definition), weight_bits)
    tracemalloc.start()
    archs = _archs(definition, rng)
    net = PackedSupernet(
        definition,
        state,
        FoldedNorms(definition, state, _DTYPE[norm_bits]),
        SubgraphCache(),
        max_programs=_BOUND,
    )
    for arch in archs.values():
        net.register(arch, statistics_of(definition, arch, rng))
    for subnet_id in list(archs)[: 2 * _BOUND]:
        net.actuate(subnet_id)
    gc.collect()  # forgotten programs are cycles
    python_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    alive = {at: size for at, size in _storages().items() if at not in others}
    tensors = sum(1 for _ in _tensors()) - other_tensors
    total = sum(alive.values()) + python_bytes + _PER_TENSOR_BYTES * tensors
    weights = sum(tensor.nbytes for tensor in state.values())
    figure = f"ofa_resnet50/memory/weights{weight_bits}_norms{norm_bits}"
    detail = (
        f"{_SERVABLE} random subnets, {_BOUND} bound: weights {weights}, norms "
        f"{net.norms.num_bytes}, other tensors "
        f"{sum(alive.values()) - weights - net.norms.num_bytes}, records of {tensors} tensors "
        f"{_PER_TENSOR_BYTES * tensors}, Python objects {python_bytes}, cache 0 bytes; six "
        f"extracted subnets {six} bytes"
    )
    supernet_bytes = Subgraph.of(definition, definition.space.largest).num_bytes()
    return [
        row(f"actuation/{figure}/500_servable_over_six_extracted", total / six, "ratio", detail),
        row(
            f"actuation/{figure}/norms_over_supernet",
            net.norms.num_bytes / supernet_bytes,
            "ratio",
            f"{net.norms.num_bytes} bytes over {supernet_bytes}",
        ),
    ]


def _cache_row(definition: SupernetDefinition, six: int) -> Row:
    """Bytes of a cache that holds every slice of the six subnets, folded: the most it can be."""
    state = random_state(definition)
    net = PackedSupernet(definition, state, FoldedNorms(definition, state), SubgraphCache())
    rng = np.random.default_rng(0)
    for arch in SIX_SUBNETS.values():
        subnet_id = net.register(arch, statistics_of(definition, arch, rng))
        net.load(net.slices(subnet_id))
    held = net.cache.held_bytes
    return row(
        "actuation/ofa_resnet50/memory/cache_over_six_extracted",
        held / six,
        "ratio",
        f"{held} bytes: every slice of the six subnets resident and folded, no budget",
    )


def _archs(definition: SupernetDefinition, rng: np.random.Generator) -> dict[str, Arch]:
    archs: dict[str, Arch] = {}
    while len(archs) < _SERVABLE:
        arch = definition.space.sample(rng)
        archs[arch.subnet_id] = arch
    return archs


def _storages() -> dict[int, int]:
    """{address: bytes} of every tensor's storage that is alive."""
    plain = (t for t in _tensors() if t.layout == torch.strided and not t.is_meta)
    storages = (tensor.untyped_storage() for tensor in plain)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _tensors() -> Iterator[torch.Tensor]:
    """Every tensor that is alive; by its type, since some objects' `isinstance` runs code."""
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor):
            yield found


def _static_bytes(definition: SupernetDefinition, arch: Arch) -> int:
    """Bytes of an extracted subnet in fp32: parameters and running statistics."""
    shapes = {**definition.parameter_shapes(arch), **definition.buffer_shapes(arch)}
    return 4 * sum(int(np.prod(shape)) for shape in shapes.values())

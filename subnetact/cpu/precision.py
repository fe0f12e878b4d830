"""In how many bits a checkpoint's weights and norms may be kept: what was measured decides.

`supernet precision` measures every served subnet in 32 bit, with 16-bit norms, and with 16-bit
norms and weights, and writes what it found into the checkpoint's provenance. 16 bit is used only
where no subnet lost more than `ALLOWED_LOSS`, and only for the very tensors that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from subnetact.cpu.resident_weights import resident_weights
from subnetact.norms import FoldedNorms
from supernet.arch import Arch
from supernet.checkpoint import Checkpoint
from supernet.definition import SupernetDefinition

ALLOWED_LOSS = 0.001
_KEY = "precision"


class Bits(NamedTuple):
    """Bits of the resident convolution weights and of the folded norms: 32 or 16 each."""

    weights: int = 32
    norms: int = 32

    @property
    def norm_dtype(self) -> torch.dtype:
        """The type in which folded norms are kept."""
        return torch.float16 if self.norms == 16 else torch.float32


class Precision(NamedTuple):
    """One subnet's accuracy (fractions) in 32 bit, with 16-bit norms, and with all in 16 bit."""

    wide: float
    norms16: float
    all16: float


def store(
    definition: SupernetDefinition,
    state: Mapping[str, torch.Tensor],
    arch: Arch,
    statistics: Mapping[str, torch.Tensor],
    bits: Bits,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return (weights, statistics) as a server that keeps `bits` reads them, for `extract`."""
    norms = FoldedNorms(definition, state, bits.norm_dtype)
    norms.add(arch, statistics)
    return resident_weights(state, bits.weights), norms.statistics(arch)


def with_precision(
    checkpoint: Checkpoint, measured: Mapping[str, Precision], source: str
) -> dict[str, Any]:
    """Return the checkpoint's provenance with what was measured on `source`, by subnet id."""
    return {
        **checkpoint.provenance,
        _KEY: {
            "fingerprint": checkpoint.fingerprint,
            "source": source,
            "subnets": {i: row._asdict() for i, row in measured.items()},
        },
    }


def bits_of(checkpoint: Checkpoint) -> Bits:
    """Return what measurement allows for this checkpoint; 32 bit where nothing was measured.

    A record of other tensors (an older training, other statistics) counts for nothing.
    """
    record: Mapping[str, Any] = checkpoint.provenance.get(_KEY, {})
    rows = [Precision(**row) for row in record.get("subnets", {}).values()]
    covered = set(checkpoint.subnet_ids) <= set(record.get("subnets", {}))
    if record.get("fingerprint") != checkpoint.fingerprint or not covered or not rows:
        return Bits()
    return allowed_bits(rows)


def allowed_bits(rows: list[Precision]) -> Bits:
    """Return the fewest bits with which no subnet loses more than `ALLOWED_LOSS`."""
    if max(row.wide - row.all16 for row in rows) <= ALLOWED_LOSS + 1e-12:
        return Bits(16, 16)
    if max(row.wide - row.norms16 for row in rows) <= ALLOWED_LOSS + 1e-12:
        return Bits(32, 16)
    return Bits()

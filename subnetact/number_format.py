"""`NumberFormat`: in which integers an int8 graph computes, by what the processor can."""

from __future__ import annotations

import platform
from collections.abc import Collection
from typing import NamedTuple

from subnetact.device import cpu_flags


class NumberFormat(NamedTuple):
    """Activations are bytes, unsigned or signed; weights are signed, `weight_limit` at most."""

    name: str
    unsigned: bool
    weight_limit: int


U8S8 = NumberFormat("u8s8", unsigned=True, weight_limit=127)
# Without VNNI, x86 adds two products in 16 bits, which saturates: weights of 7 bits don't.
U8S7 = NumberFormat("u8s7", unsigned=True, weight_limit=63)
S8S8 = NumberFormat("s8s8", unsigned=False, weight_limit=127)  # what ARM multiplies
_VNNI = ("avx512_vnni", "avx_vnni")


def best_format(machine: str | None = None, flags: Collection[str] | None = None) -> NumberFormat:
    """Return the format for a processor (default: this one): its machine name and its flags.

    >>> best_format("x86_64", ["avx2"]).name, best_format("aarch64", []).name
    ('u8s7', 's8s8')
    """
    machine = (platform.machine() if machine is None else machine).lower()
    flags = cpu_flags() if flags is None else flags
    if machine in ("aarch64", "arm64"):
        return S8S8
    return U8S8 if any(flag in flags for flag in _VNNI) else U8S7

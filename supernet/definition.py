"""`SupernetDefinition`: which supernet (family and config), able to build any of its subnets.

This is principle 1 in code. A family is an ordinary module built from `(config, arch)`; built at
the largest arch it is the supernet, built on the meta device at any other arch it says by its
parameter shapes which leading slices that subnet uses. Nothing else describes elasticity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from supernet.arch import Arch
from supernet.family import Family, FamilyConfig
from supernet.registry import get_family
from supernet.space import SearchSpace

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SupernetDefinition:
    """A family's name and its frozen config; hashable, so descriptions can be cached."""

    family_name: str
    config: FamilyConfig

    @property
    def family(self) -> Family:
        """The registered family. Raises ValueError listing the known ones."""
        return get_family(self.family_name)

    @property
    def space(self) -> SearchSpace:
        """The legal archs of this supernet."""
        return _space(self)

    def build(self, arch: Arch | None = None) -> nn.Module:
        """Build an ordinary, freshly initialised module at `arch` (default: the supernet).

        Raises ValueError when `arch` is outside the space.
        """
        arch = self.space.largest if arch is None else arch
        self.space.validate(arch)
        return self.family.module(self.config, arch)

    def on_meta(self, arch: Arch) -> nn.Module:
        """Build at `arch` without allocating weights."""
        with torch.device("meta"):
            return self.build(arch)

    def parameter_shapes(self, arch: Arch) -> Mapping[str, Shape]:
        """Return {parameter name: shape at `arch`}; shapes are leading slices of the largest."""
        return _parameter_shapes(self, arch)

    def buffer_shapes(self, arch: Arch) -> Mapping[str, Shape]:
        """Return {buffer name: shape at `arch`} (normalisation statistics)."""
        return _buffer_shapes(self, arch)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` rebuilds."""
        return {"family": self.family_name, "config": asdict(self.config)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SupernetDefinition:
        """Rebuild from `to_json` data. Raises ValueError naming what is unknown or missing."""
        missing = [key for key in ("family", "config") if key not in data]
        if missing:
            raise ValueError(f"supernet definition lacks {', '.join(missing)}")
        family = get_family(str(data["family"]))
        return cls(family.name, family.make_config(data["config"]))


@lru_cache(maxsize=64)
def _space(definition: SupernetDefinition) -> SearchSpace:
    return definition.family.space(definition.config)


@lru_cache(maxsize=4096)
def _parameter_shapes(definition: SupernetDefinition, arch: Arch) -> Mapping[str, Shape]:
    net = definition.on_meta(arch)
    return MappingProxyType({name: tuple(p.shape) for name, p in net.named_parameters()})


@lru_cache(maxsize=4096)
def _buffer_shapes(definition: SupernetDefinition, arch: Arch) -> Mapping[str, Shape]:
    net = definition.on_meta(arch)
    return MappingProxyType({name: tuple(b.shape) for name, b in net.named_buffers()})

"""`SupernetDefinition`: which supernet (family and config), able to build any of its subnets.

This is principle 1 in code. A family is an ordinary module built from `(config, arch)`; built at
the largest arch it is the supernet, built on the meta device at any other arch it says by its
parameter shapes which leading slices that subnet uses. Nothing else describes elasticity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from supernet.arch import Arch
from supernet.describe import Description, Shape, describe
from supernet.family import Family, FamilyConfig
from supernet.registry import find_variant, get_family
from supernet.space import SearchSpace


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
        space = self.space
        if arch is None:
            arch = space.whole
        elif arch.kernel or not space.kernel or arch != space.whole:
            space.validate(arch)
        return self.family.module(self.config, arch)

    def on_meta(self, arch: Arch | None = None) -> nn.Module:
        """Build at `arch` (default: the supernet) without allocating weights."""
        with torch.device("meta"):
            return self.build(arch)

    def parameter_shapes(self, arch: Arch | None = None) -> Mapping[str, Shape]:
        """Return {parameter name: shape at `arch`}, leading slices of the supernet's (default)."""
        return _description(self, arch).parameters

    def buffer_shapes(self, arch: Arch | None = None) -> Mapping[str, Shape]:
        """Return {buffer name: shape at `arch`} (normalisation statistics)."""
        return _description(self, arch).buffers

    @property
    def output(self) -> OutputSpec:
        """What the network gives for one sample: logits, or without classes its embedding."""
        if self.config.num_classes:
            return OutputSpec("logits", self.config.num_classes)
        size: int = self.config.embedding_size  # type: ignore[attr-defined]
        return OutputSpec("embedding", size)

    def example_input(self, arch: Arch, batch_size: int = 1) -> torch.Tensor:
        """Return zeros of the network's input at `arch`, on the current default device."""
        return self.family.example_input(self.config, arch, batch_size)

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


class OutputSpec(NamedTuple):
    """The (B, size) float32 output: `logits` of classes, or an `embedding`."""

    kind: Literal["logits", "embedding"]
    size: int


def define_supernet(name: str, **overrides: Any) -> SupernetDefinition:
    """Return the definition of a named variant, some config fields replaced.

    A family's name stands for its first variant. Raises ValueError listing the known variants,
    or the known config keys.
    """
    family, base = find_variant(name)
    if not overrides:
        return SupernetDefinition(family.name, replace(base))
    known = {field: getattr(base, field) for field in base.__dataclass_fields__}
    return SupernetDefinition(family.name, family.make_config({**known, **overrides}))


def create_supernet(name: str, **overrides: Any) -> nn.Module:
    """Build a named variant at full size, freshly initialised.

    Raises ValueError listing the known variants, or the known config keys.
    """
    return define_supernet(name, **overrides).build()


@lru_cache(maxsize=64)
def _space(definition: SupernetDefinition) -> SearchSpace:
    return definition.family.space(definition.config)


@lru_cache(maxsize=4096)
def _description(definition: SupernetDefinition, arch: Arch | None) -> Description:
    return describe(lambda: definition.build(arch))

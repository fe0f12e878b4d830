"""Supernet families and their named variants.

A family registers itself with the decorator `supernet_family` on its module; named variants are
rows of its table. Families of this package are imported on first look-up, in the explicit list
below; those of other packages through the entry point group `supernet.families`
(docs/families.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from torch import nn

from supernet.family import (
    ChannelGroup,
    Family,
    FamilyConfig,
    example_image,
    no_channel_groups,
)
from supernet.space import SearchSpace

_BUILT_IN = (
    "supernet.families.resnet",
    "supernet.families.pooled_resnet",
    "supernet.families.ofa_resnet50",
    "supernet.families.ofa_mobilenet_v3",
    "supernet.families.ofa_proxyless",
    "supernet.families.mobilenet_v3",
    "supernet.families.efficientnet_lite",
    "supernet.families.vit",
    "supernet.families.image_tower",
    "supernet.families.convnext",
    "supernet.families.bert",
    "supernet.families.decoder",
    "supernet.families.graph_sage",
)
_ENTRY_POINTS = "supernet.families"
_families: dict[str, Family] = {}

Network = TypeVar("Network", bound=type[nn.Module])


def supernet_family(
    name: str,
    *,
    config: type[Any],
    space: Callable[[Any], SearchSpace],
    variants: Mapping[str, FamilyConfig],
    channel_groups: Callable[[Any], tuple[ChannelGroup, ...]] = no_channel_groups,
    letters: Mapping[str, str] | None = None,
    example_input: Callable[..., Any] = example_image,
    generates: bool = False,
) -> Callable[[Network], Network]:
    """Register the decorated `nn.Module`, built from `(config, arch)`, as a family.

    The first variant is what the family's own name stands for. Raises ValueError when the name
    is taken by another module.
    """

    def register(module: Network) -> Network:
        register_family(
            Family(
                name=name,
                module=module,
                config=config,
                space=space,
                channel_groups=channel_groups,
                variants=variants,
                letters=letters or {},
                example_input=example_input,
                generates=generates,
            )
        )
        return module

    return register


def register_family(family: Family) -> Family:
    """Make a family known by name. Raises ValueError when the name is taken by another."""
    known = _families.get(family.name)
    if known is not None and known.module is not family.module:
        raise ValueError(f"supernet family {family.name!r} is already registered")
    _families[family.name] = family
    return family


def get_family(name: str) -> Family:
    """Return a family by name. Raises ValueError listing the known ones."""
    _load_built_in()
    if name not in _families:
        raise ValueError(f"unknown supernet family {name!r}; known: {', '.join(list_families())}")
    return _families[name]


def list_families() -> list[str]:
    """Names of all registered families."""
    _load_built_in()
    return sorted(_families)


def list_supernets() -> list[str]:
    """Names of all variants of all families, e.g. for `supernet.define_supernet`."""
    _load_built_in()
    return sorted(variant for family in _families.values() for variant in family.variants)


def find_variant(name: str) -> tuple[Family, FamilyConfig]:
    """Return a named variant's family and config; a family's name stands for its first variant.

    Raises ValueError listing the known variants.
    """
    _load_built_in()
    for family in _families.values():
        variant = next(iter(family.variants), "") if name == family.name else name
        if variant in family.variants:
            return family, family.variants[variant]
    raise ValueError(f"unknown supernet {name!r}; known: {', '.join(list_supernets())}")


@cache
def _load_built_in() -> None:
    for module in _BUILT_IN:
        import_module(module)
    for entry_point in entry_points(group=_ENTRY_POINTS):
        entry_point.load()

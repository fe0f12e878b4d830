"""Supernet families and their named variants.

A family registers itself with `register_family`; named variants are rows of its table. Families
of this package are imported on first look-up, in the explicit list below.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from supernet.family import Family

if TYPE_CHECKING:
    from supernet.definition import SupernetDefinition

_BUILT_IN = ("supernet.families.resnet",)
_families: dict[str, Family] = {}


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
    """Names of all variants of all families, e.g. for `define_supernet`."""
    _load_built_in()
    return sorted(variant for family in _families.values() for variant in family.variants)


def define_supernet(name: str, **overrides: Any) -> SupernetDefinition:
    """Return the definition of a named variant, some config fields replaced.

    Raises ValueError listing the known variants, or the known config keys.
    """
    from supernet.definition import SupernetDefinition

    _load_built_in()
    for family in _families.values():
        if name in family.variants:
            base: Any = family.variants[name]
            known = {f: getattr(base, f) for f in base.__dataclass_fields__}
            config = family.make_config({**known, **overrides}) if overrides else replace(base)
            return SupernetDefinition(family.name, config)
    raise ValueError(f"unknown supernet {name!r}; known: {', '.join(list_supernets())}")


def _load_built_in() -> None:
    for module in _BUILT_IN:
        import_module(module)
